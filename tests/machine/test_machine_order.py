"""Live runs with `record: {order: total}`: each is a path of the model, and a forged one is not."""

import json
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from live_runs import CONFIGS, pirlab, run_json, wait_for

from emulator.checker.path import Recorded, check_path
from emulator.config import load_experiment
from emulator.config.model import Cell, from_plain
from emulator.kvm.params import Notify
from emulator.live_path import PathError, check_run, not_covered, said_step
from emulator.machine.memory import Memory, Shape
from emulator.machine.recorder import Drain
from emulator.machine.steps import Steps
from emulator.order import CODES, HEADER_FILE, ORDER_BYTES, ORDER_FILE, read_steps

SHORT = ("record.order=total", "run.warmup=50ms", "run.for=300ms", "expect=[]")
STEPS_SHOWN = 12


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A run of configs/first-run.yaml, 0.35 s, in order."""
    code, run = run_json("first-run", tmp_path_factory.mktemp("order"), *SHORT)
    assert code == 0
    return Path(run["run_dir"])


@pytest.fixture(scope="module")
def recorded(first) -> Recorded:
    header = json.loads((first / HEADER_FILE).read_text())
    cell = from_plain(Cell, header["cell"])
    return Recorded(
        kvm=cell.kvm,
        pins=tuple(vcpu.pcpu for vcpu in cell.vcpus),
        has_pi_sender=tuple(header["has_pi_sender"]),
        steps=read_steps(first / ORDER_FILE),
        whole=True,
    )


def forged(run: Recorded, *steps, without=None) -> Recorded:
    """The run with these steps in the place of those of their numbers."""
    forgery = {source: list(own) for source, own in run.steps.items()}
    for step in steps:
        forgery[step.source][step.number] = step
    if without is not None:
        own = forgery[without.source]
        del own[without.number]
        forgery[without.source] = [s._replace(number=i) for i, s in enumerate(own)]
    return replace(run, steps=forgery)


def some(run: Recorded, op: str, on: int = 0, after: int = 200):
    """A step well inside the run."""
    return next(step for step in run.steps[on][after:] if step.op == op)


# -- a path ---------------------------------------------------------------------------------------


def test_a_short_live_run_is_a_path_of_the_model(first):
    done = pirlab("check", first, "--json")
    verdict = json.loads(done.stdout)

    assert done.returncode == 0
    assert verdict["schema"] == "pirlab-check-run/1"
    assert verdict["verdict"] == "path"
    assert verdict["steps"] > 5000
    assert verdict["cpus"] == 2
    assert verdict["cells"][0]["divergence"] is None
    assert pirlab("check", first).stdout.startswith("a path of the model\n")


@pytest.mark.parametrize(
    ("config", "sets"),
    [
        ("halted-target", ()),  # threads that sleep and are woken
        ("vtd-posted", ()),  # the IOMMU posts, the wake-up handler wakes
        ("vtd-remapped", ()),  # host interrupts whose handlers post
        ("ipi-virtualization", ("matrix={}", "kvm.senders=ipi-virtualization")),
        ("exitless-timer", ("matrix={}", "kvm.timer=hrtimer", "kvm.exitless_timer=true")),
        ("migration", ("kvm.rule=kvm-v5.16",)),  # threads that share pCPUs and move
        ("apicv-inhibit", ("matrix={}", "kvm.apicv_inhibit=40ms", "run.watchdog=2s")),
    ],
)
def test_every_kind_of_sender_and_sleeper_is_a_path_of_the_model(tmp_path, config, sets):
    code, run = run_json(config, tmp_path, *SHORT, *sets)
    (checked,) = check_run(Path(run["run_dir"]))

    assert code == 0
    assert checked.is_path, checked.answer.divergence
    assert checked.answer.steps > 1000


def test_every_cell_of_a_matrix_has_a_verdict_of_its_own(tmp_path):
    _, run = run_json("same-vcpu-shortcut", tmp_path, *SHORT)
    done = pirlab("check", run["run_dir"], "--rule", "kvm-v5.18", "--json")
    verdicts = [cell["verdict"] for cell in json.loads(done.stdout)["cells"]]

    assert done.returncode == 1
    assert verdicts == ["diverged", "diverged", "path"]


def test_every_config_is_covered_and_what_is_not_is_refused_with_the_reason():
    cells = [cell for path in CONFIGS.glob("*.yaml") for cell in load_experiment(path).cells]
    (moving,) = load_experiment(CONFIGS / "migration.yaml", ("kvm.apicv_inhibit=1ms",)).cells

    assert [cell.name for cell in cells if not_covered(cell)] == []
    assert "pin: float together with kvm.apicv_inhibit" in not_covered(moving)


# -- no path --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op", ["pi_test_and_set_pir", "pi_test_and_set_on", "pi_test_on", "load_mode", "mp_state"]
)
def test_a_step_with_another_result_than_the_memorys_is_named(recorded, op):
    step = some(recorded, op)
    other = not step.result if isinstance(step.result, bool) else step.result + 1
    found = check_path(forged(recorded, step._replace(result=other))).divergence

    assert found is not None
    assert found.step == step._replace(result=other)
    assert len(found.before) == STEPS_SHOWN
    assert found.before[-1] == found.step


def test_a_step_that_is_missing_is_named_by_what_stands_in_its_place(recorded):
    step = some(recorded, "smp_mb")
    after = recorded.steps[0][step.number + 1]
    found = check_path(forged(recorded, without=step)).divergence

    assert found is not None
    assert found.step == after._replace(number=step.number)
    assert "the text does smp_mb()" in found.why


def test_two_steps_of_different_cpus_in_the_other_order_are_no_path(recorded):
    """The first sets ON, the second clears it."""
    earlier, later = neighbours(recorded)
    found = check_path(
        forged(
            recorded,
            earlier._replace(begin=later.begin, end=later.end),
            later._replace(begin=earlier.begin, end=earlier.end),
        )
    ).divergence

    assert found is not None
    assert found.step is not None
    assert found.step.number in (earlier.number, later.number), said_step(found.step)


def neighbours(run: Recorded):
    """ON set for vCPU 1 by CPU 0, and cleared by CPU 1 next, long after."""
    of_vcpu = [("pi_test_and_set_on", (1,)), ("pi_clear_on", (1,))]
    steps = [s for own in run.steps.values() for s in own if (s.op, s.args) in of_vcpu]
    steps.sort(key=lambda s: s.begin)
    return next(
        (a, b)
        for a, b in pairwise(steps[20:])
        if a.source == 0 and b.source == 1 and run.steps[0][a.number + 3].end < b.begin
    )


@pytest.mark.parametrize("by", [1, 2, 1000])
def test_a_step_with_another_ticket_is_named(recorded, by):
    step = some(recorded, "pi_test_on")
    found = check_path(forged(recorded, step._replace(end=step.end + by))).divergence

    assert found is not None
    assert found.step == step._replace(end=step.end + by)
    assert f"nobody has ticket {step.end}" in found.why


def test_a_path_of_one_rule_is_none_of_another(first):
    (checked,) = check_run(first, rule=Notify.KVM_V5_16)
    found = checked.answer.divergence

    assert found is not None
    assert found.step is not None
    assert found.step.op == "running_vcpu"
    assert "the text does load_vcpu_cpu" in found.why


def test_a_run_with_a_museum_switch_is_a_path_with_it_and_not_without(tmp_path):
    _, run = run_json("first-run", tmp_path, *SHORT, "kvm.bugs=[B04]")

    assert pirlab("check", run["run_dir"]).returncode == 0
    done = pirlab("check", run["run_dir"], "--bug", "none")
    assert done.returncode == 1
    assert "the text does store_mode" in done.stdout


# -- refused, and partial -------------------------------------------------------------------------


def test_a_run_without_an_order_is_refused_with_what_to_do(tmp_path):
    _, run = run_json("first-run", tmp_path, *SHORT, "record.order=none")
    done = pirlab("check", run["run_dir"])

    assert done.returncode == 2
    assert "-s record.order=total" in done.stderr
    assert not (Path(run["run_dir"]) / ORDER_FILE).exists()


def spoilt(first: Path, tmp_path: Path, data: bytes | None = None, **header: object) -> Path:
    """A copy of the run's record with another header or other bytes."""
    old = json.loads((first / HEADER_FILE).read_text())
    (tmp_path / HEADER_FILE).write_text(json.dumps({**old, **header}))
    whole = (first / ORDER_FILE).read_bytes()
    (tmp_path / ORDER_FILE).write_bytes(whole if data is None else data)
    return tmp_path


def test_a_record_of_another_text_is_refused(first, tmp_path):
    with pytest.raises(PathError, match="another protocol text"):
        check_run(spoilt(first, tmp_path, source="0123456789abcdef"))


def test_of_a_record_that_was_overrun_what_came_before_is_checked(first, tmp_path):
    end = {"status": "complete", "dropped": 3, "open": [0, 1001], "tickets": 9}
    (checked,) = check_run(spoilt(first, tmp_path, end=end))

    assert checked.is_path
    assert 500 < checked.answer.steps < 2500
    assert checked.part.startswith("3 steps did not fit into the rings: checked the ")


def test_a_full_ring_ends_a_processs_record_and_says_where(tmp_path):
    memory = Memory.create(
        tmp_path / "memory", Shape(pcpus=1, vcpus=1, devices=0, ring_records=2, order_records=4)
    )
    steps = Steps(memory, 0, 0)
    for _ in range(3):
        steps.note("smp_processor_id")
        steps.close(CODES["smp_mb"], steps.enter(), (), None, ())
    steps.flush()
    with (tmp_path / "events").open("wb") as events, (tmp_path / "order").open("wb") as order:
        drain = Drain(memory, events, order)
        drain.drain()
        steps.note("smp_processor_id")  # there is room again, and a gap before it
        steps.flush()
        drain.drain()
        end = drain.order_end()

    assert end == {"dropped": 3, "open": [5, 0], "tickets": 6}
    assert [step.begin for step in read_steps(tmp_path / "order")[0]] == [0, 1, 0, 3]


def test_a_record_that_was_cut_off_is_refused(first, tmp_path):
    with pytest.raises(PathError, match="cut off in the middle of a step"):
        check_run(spoilt(first, tmp_path, (first / ORDER_FILE).read_bytes()[:-1]))
    with pytest.raises(PathError, match="a step that there is not"):
        check_run(spoilt(first, tmp_path, b"\xff" * ORDER_BYTES))


def test_of_a_run_whose_process_was_killed_what_came_before_is_checked(start):
    run = start("storm", "-s", "record.order=total", "-s", "run.for=20s")
    wait_for(lambda: (run.run_dir / ORDER_FILE).stat().st_size > 1 << 20, "steps on record")
    run.children["pcpu1"].send_signal(signal.SIGKILL)
    code, _, _ = run.finish()
    done = pirlab("check", run.run_dir, "--json")
    (cell,) = json.loads(done.stdout)["cells"]

    assert code == 3
    assert done.returncode == 0
    assert cell["steps"] > 10_000
    assert cell["part"].startswith("the run broke: checked the ")
