"""A counterexample is saved, shown, loaded, followed; a spoilt one is refused with a sentence."""

import json

import pytest

from emulator.checker import (
    Claim,
    CounterexampleError,
    Walk,
    check,
    load_counterexample,
    render,
    replay_file,
)
from emulator.checker.lint import KINDS
from emulator.kvm.params import Bug


@pytest.fixture(scope="module")
def found():
    return check("lost-wakeup", stop_at_first=True).counterexample


@pytest.fixture
def saved(found, tmp_path):
    path = tmp_path / "lost.jsonl"
    found.save(path)
    return path


def entries(found):
    return [(s.actor, s.op, s.args, s.result) for s in found.steps]


def respell(path, change):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_seeds_history_is_nineteen_steps_long(found):
    assert len(found.steps) == 19


def test_the_seeds_history_is_shown_as_on_the_mailing_list(found):
    assert render(found).splitlines() == [
        "CPU0 (vCPU 0)",
        "-" * 71,
        "vcpu_enter_guest()",
        "  local_irq_disable()",
        "  vcpu->mode = IN_GUEST_MODE",
        "  smp_mb()",
        "  pi_test_on() = 0",
        "  vcpu->mode is IN_GUEST_MODE",
        "  VM-entry",
        "  VM-exit: HLT",
        "  vcpu->mode = OUTSIDE_GUEST_MODE",
        "  local_irq_enable()",
        "pi_test_on() = 0",
        "kvm_vcpu_block()",
        "  set_current_state(TASK_INTERRUPTIBLE)",
        "  kvm_vcpu_check_block(): pi_test_on() = 0",
        "  no event pending",
        "    <irq> device interrupt 0x22",
        "    <irq> pi_test_and_set_pir(224) = 0",
        "    <irq> pi_test_and_set_on() = 0",
        "    <irq> vcpu == running vcpu: skip everything     <-- rule kvm-v5.8",
        "    <irq> iret",
        "  schedule()",
        "    local_irq_disable()",
        "    deactivated, put, off the CPU",
        "",
        "*** lost wake-up: vCPU 0 sleeps, PIR[224] and ON set, no notification or",
        "    wake-up outstanding.  19 steps, shortest; rule kvm-v5.8, bound R<=1 T<=1",
        "    F<=1, sc.",
    ]


def test_a_store_buffer_is_shown_where_it_drains():
    shown = render(check("entry-barrier").counterexample)

    assert "vcpu->mode = IN_GUEST_MODE        (buffered)" in shown
    assert "\n~ vcpu->mode = IN_GUEST_MODE reaches memory" in shown
    assert shown.splitlines()[0].split() == ["CPU0", "(vCPU", "0)", "CPU2"]


def test_the_margin_can_show_source_lines_and_the_descriptor(found):
    shown = render(found, lines=True, state=True)

    assert "kvm/deliver.py:" in shown
    assert "PIR 224     ON 1 SN 0 NV f2 mode OUTSIDE" in shown


def test_folding_keeps_the_steps_that_conflict_and_drops_the_others():
    found = check("preempted-sleeper", stop_at_first=True).counterexample
    folded = render(found, fold=True)

    assert len(folded.splitlines()) < len(render(found).splitlines())
    assert "pi_test_and_set_pir(33) = 0" in folded
    assert "pi_set_on()" in folded
    assert "smp_mb()" not in folded


def test_a_saved_counterexample_is_the_same_when_loaded(found, saved):
    assert load_counterexample(saved) == found


def test_a_saved_counterexample_leads_to_the_same_loss(found, saved):
    replay = replay_file(saved)

    assert replay.claim is Claim.EVERY_POST_IS_DELIVERED
    assert replay.text == found.text


def test_a_broken_step_claim_is_replayed_too(tmp_path):
    found = check("gate", bugs=[Bug.NO_GATE], stop_at_first=True).counterexample
    found.save(tmp_path / "gate.jsonl")

    assert replay_file(tmp_path / "gate.jsonl").claim is Claim.GATE


def test_each_line_names_actor_cpu_step_arguments_result_and_source(saved):
    header, *steps, last = (json.loads(line) for line in saved.read_text().splitlines())

    assert header["rule"] == "kvm-v5.8"
    assert header["bounds"] == "R<=1 T<=1 F<=1"
    assert last["final"]["vcpus"][0]["pir"] == [224]
    surroundings = {"interrupt", "iret"}
    for step in steps:
        assert {"step", "actor", "cpu", "op", "args", "result", "line"} <= set(step)
        assert step["op"] in KINDS or step["op"] in surroundings


def spoil_truncated(lines):
    del lines[-1]


def spoil_source(lines):
    lines[0]["source"] = "0" * 16


def spoil_unknown_step(lines):
    lines[4]["op"] = "frobnicate"


def spoil_result(lines):
    lines[4]["result"] = True


def spoil_missing_step(lines):
    del lines[7]


def spoil_final(lines):
    lines[-1]["final"]["vcpus"][0]["on"] = 0


def spoil_look(lines):
    next(line for line in lines if line.get("looks"))["looks"][0][2] = "odd"


def spoil_scenario(lines):
    lines[0]["scenario"]["assigned"] = 99


def spoil_bounds(lines):
    lines[0]["scenario"]["bounds"]["remote"] = 8


def spoil_field(lines):
    del lines[3]["actor"]


def spoil_format(lines):
    lines[0]["format"] = "something-else/9"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_truncated, "it breaks off"),
        (spoil_source, "search again"),
        (spoil_unknown_step, "step 4, vcpu0: frobnicate"),
        (spoil_result, "step 4, vcpu0: pi_test_on"),
        (spoil_missing_step, "the header says 19 steps, the file holds 18"),
        (spoil_final, "final is not what the steps lead to"),
        (spoil_look, "is told otherwise than it went"),
        (spoil_scenario, "the scenario's fields have other types"),
        (spoil_bounds, r"a bound is not in 0\.\.7"),
        (spoil_field, "not what the format says"),
        (spoil_format, "does not say format"),
    ],
)
def test_a_spoilt_file_is_refused_with_a_sentence(saved, spoil, says):
    respell(saved, spoil)

    with pytest.raises(CounterexampleError, match=says):
        replay_file(saved)


def test_what_is_not_json_is_refused_with_its_line(saved):
    saved.write_text(saved.read_text() + "not json\n")

    with pytest.raises(CounterexampleError, match="line 22 is not JSON"):
        replay_file(saved)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CounterexampleError, match="cannot be read"):
        replay_file(tmp_path / "nothing.jsonl")


def test_a_way_of_the_model_is_followed_to_its_end(found):
    walk = Walk(found.scenario)

    assert walk.follow(entries(found)) is None
    assert walk.world.owes(walk.states[-1]) == [0]


def test_a_trace_may_hold_the_looks_too(found):
    with_looks = []
    for step in found.steps:
        with_looks.append((step.actor, step.op, step.args, step.result))
        with_looks += [(step.actor, *look) for look in step.looks]

    assert Walk(found.scenario).follow(with_looks) is None


def test_a_look_that_saw_something_else_diverges(found):
    at = next(i for i, step in enumerate(found.steps) if step.looks)
    trace = entries(found)[: at + 1]
    op, args, _ = found.steps[at].looks[0]
    divergence = Walk(found.scenario).follow([*trace, (found.steps[at].actor, op, args, "odd")])

    assert divergence.at == at + 1


def test_a_wrong_result_diverges_and_says_what_was_possible(found):
    trace = entries(found)
    trace[3] = (*trace[3][:3], True)
    divergence = Walk(found.scenario).follow(trace)

    assert divergence.at == 3
    assert divergence.possible == (("vcpu0", "pi_test_on", [0], False),)
    assert "vcpu0 could do: pi_test_on(0) = False" in str(divergence)
