"""The posted-interrupt cases over two processes: they say what they say in memory."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from emulator.conformance import ConformanceError
from emulator.conformance.document import Case, load
from emulator.conformance.runner import run_case
from emulator.machine import suite
from emulator.machine.errors import RunBroken
from emulator.machine.host import runtime_root
from emulator.machine.suite import SENDER, TARGET, Pair
from emulator.suite import GROUPS, MODULE, conduct, run_live

GOLDEN = Path(__file__).parent.parent / "golden" / "apicv_cases.json"
CASES = {case.id: case for case in load(GOLDEN).cases if case.group in GROUPS}
SPIN, HLT, PENDING = (CASES[name] for name in ("pi-spin-02", "pi-hlt-01", "pi-irr-01"))
DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair(MODULE) as running:
        yield running


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.01)  # a poll with a deadline, not a guess


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def runtimes_of(launcher: int) -> list[Path]:
    """The runtime directories that are process `launcher`'s."""
    found = []
    for owner in runtime_root().glob("pirlab-*/owner"):
        with contextlib.suppress(OSError):
            if owner.read_text().split()[:1] == [str(launcher)]:
                found.append(owner.parent)
    return found


def wrong(case: Case) -> Iterator[Case]:
    """The case with one of its expectations made wrong, each in turn."""
    other = {
        "delivered": [0x77], "rvi": 1, "svi": 1, "vppr": 1, "vtpr": 1, "virr": [0x77],
        "visr": [0x77], "in_root": not case.expect["in_root"], "if": 0, "activity": "mwait",
        "recognized": True, "exits": [{"reason": "HLT"}], "pid": {"on": 1},
        "lapic": {"irr": [0x77]}, "pi_processings": 7, "physical_eois": 7,
        "notifications_sent": [],
    }  # fmt: skip
    for key in case.expect:
        yield replace(case, expect=case.expect | {key: other[key]})


# -- what the processes do ------------------------------------------------------------------------


def test_every_posted_interrupt_case_passes_over_two_processes():
    result = run_live(GOLDEN)

    assert [case for case in result.cases if not case.ok] == []
    assert {case.id for case in result.cases} == CASES.keys()
    assert (
        sum(case.id in CASES and CASES[case.id].group == "pi_suite" for case in result.cases) == 8
    )
    assert result.as_json()["schema"] == "pirlab-conformance/1"


def test_target_and_sender_are_two_processes_besides_this_one(pair):
    assert len({os.getpid(), *pair.pids.values()}) == 3
    assert all(psutil.Process(pid).ppid() == os.getpid() for pid in pair.pids.values())
    titles = {role: " ".join(psutil.Process(pid).cmdline()) for role, pid in pair.pids.items()}
    assert all(role in title for role, title in titles.items())


@pytest.mark.parametrize("case", [SPIN, HLT, PENDING], ids=lambda case: case.id)
def test_a_wrong_expectation_fails_with_the_words_that_it_has_in_memory(pair, case):
    for bad in wrong(case):
        live = conduct(pair, bad)

        assert not live.ok, bad.expect
        assert live == run_case(bad)


@pytest.mark.parametrize(
    "change",
    [
        {"setup": {"unheard-of": {}}},
        {"steps": [{"op": "unheard-of"}]},
        {"steps": [7]},
        {"steps": [{"op": "guest", "insn": "nop"}]},
        {"steps": [{"op": "post", "vectors": [300]}]},
        {"steps": [{"op": "post", "vectors": "all"}]},
        {"steps": [{"op": "phys_interrupt", "vector": "high"}]},
        {"steps": [{"op": "phys_interrupt", "vector": 33, "urgent": 1}]},
        {"expect": {}},
    ],
    ids=str,
)
def test_what_nobody_understands_fails_and_the_pair_goes_on(pair, change):
    bad = replace(SPIN, **change)

    assert conduct(pair, bad) == run_case(bad)
    assert not conduct(pair, bad).ok
    assert conduct(pair, SPIN).ok


@pytest.mark.parametrize("spins", [True, False], ids=["spinning", "halted"])
def test_a_spinning_target_burns_its_core_and_a_halted_one_sleeps_until_the_vector(pair, spins):
    case = SPIN if spins else HLT
    target = psutil.Process(pair.pids["target"])
    text = json.dumps([case.defaults, case.setup, case.steps, case.expect])
    for pcpu in (TARGET, SENDER):
        assert pair.ask(pcpu, ["case", text]) == ["", []]
    post = next(i for i, step in enumerate(case.steps) if step["op"] == "post")
    for i in range(post):
        assert pair.ask(TARGET, ["step", i]) == ["", []]

    state = psutil.STATUS_RUNNING if spins else psutil.STATUS_SLEEPING
    wait_for(lambda: target.status() == state, f"{state} target")
    assert pair.ask(SENDER, ["step", post]) == ["", [255]]
    for i in range(post, len(case.steps)):
        assert pair.ask(TARGET, ["step", i]) == ["", []]
    assert pair.ask(TARGET, ["expect", [255]])[0] == ""


def test_a_notification_that_was_never_sent_is_not_there(pair):
    mute = replace(SPIN, steps=[step for step in SPIN.steps if step["op"] != "phys_interrupt"])

    result = conduct(pair, mute)

    assert result.why == "delivered: expected [0x80], got []"


def test_a_notification_of_a_failed_case_does_not_come_into_the_next(pair):
    astray = replace(SPIN, steps=[*SPIN.steps[:2], {"op": "phys_interrupt", "vector": 255}, 7])
    silent = replace(SPIN, steps=SPIN.steps[:1], expect={"pi_processings": 0, "delivered": []})

    for _ in range(20):
        assert not conduct(pair, astray).ok
        assert conduct(pair, silent).ok


# -- however it ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["sender", "target"])
def test_a_killed_process_is_a_sentence_and_leaves_nothing_behind(role):
    def kill_it() -> None:
        with Pair(MODULE) as pair:
            pids.update(pair.pids)
            assert conduct(pair, SPIN).ok
            os.kill(pids[role], signal.SIGKILL)
            conduct(pair, SPIN)

    pids: dict[str, int] = {}
    with pytest.raises(RunBroken) as caught:
        kill_it()

    end = "was killed by SIGKILL (exit status -9)"
    assert str(caught.value) == f"the {role} (pid {pids[role]}) {end}"
    assert all(gone(pid) for pid in pids.values())
    assert runtimes_of(os.getpid()) == []


def test_a_process_that_does_not_answer_is_given_up_at_the_deadline(monkeypatch):
    def stop_it() -> None:
        with Pair(MODULE) as pair:
            pids.update(pair.pids)
            os.kill(pids["sender"], signal.SIGSTOP)
            conduct(pair, SPIN)

    monkeypatch.setattr(suite, "ANSWER_DEADLINE_S", 0.3)
    pids: dict[str, int] = {}
    with pytest.raises(RunBroken) as caught:
        stop_it()

    assert f"sender (pid {pids['sender']}) did not report 'answer'" in str(caught.value)
    assert all(gone(pid) for pid in pids.values())


def test_a_process_that_breaks_is_a_sentence_with_its_last_words():
    with pytest.raises(RunBroken) as caught, Pair(MODULE) as pair:
        pair.ask(SENDER, ["whistle"])

    assert "the sender" in str(caught.value)
    assert "unknown order ['whistle']" in str(caught.value)


def test_processes_that_cannot_start_are_a_sentence_and_leave_nothing_behind():
    with pytest.raises(RunBroken, match="No module named"), Pair("emulator.unheard_of"):
        pytest.fail("started")
    assert runtimes_of(os.getpid()) == []


def test_the_orderly_end_leaves_nothing_behind():
    with Pair(MODULE) as pair:
        pids = pair.pids
        # Even while it runs: there is nothing that a killed launcher could leave.
        assert runtimes_of(os.getpid()) == []

    assert all(gone(pid) for pid in pids.values())


def test_a_killed_launcher_takes_both_along_and_leaves_nothing_behind(tmp_path):
    many = json.loads(GOLDEN.read_text())
    suite_case = next(case for case in many["cases"] if case["group"] == "pi_suite")
    many["cases"] = [suite_case | {"id": f"again-{i}"} for i in range(10_000)]
    path = tmp_path / "many.json"
    path.write_text(json.dumps(many))
    code = f"from emulator.suite import run_live; run_live({str(path)!r})"
    launcher = subprocess.Popen([sys.executable, "-c", code])
    try:
        process = psutil.Process(launcher.pid)

        def titled() -> list[psutil.Process]:
            found = process.children()
            return [child for child in found if "suite" in " ".join(child.cmdline())]

        wait_for(lambda: len(titled()) == 2 and not runtimes_of(launcher.pid), "pair at work")
        children = titled()
    finally:
        launcher.kill()
        launcher.wait()

    wait_for(lambda: all(gone(child.pid) for child in children), "end of the pair")
    assert runtimes_of(launcher.pid) == []


def test_a_file_without_a_case_that_runs_live_is_refused_in_a_sentence(tmp_path):
    data = json.loads(GOLDEN.read_text())
    data["cases"] = [case for case in data["cases"] if case["group"] not in GROUPS]
    path = tmp_path / "others.json"
    path.write_text(json.dumps(data))

    with pytest.raises(ConformanceError, match="no case of a group that runs live"):
        run_live(path)
