"""A recorded run against the model: what an order may explain, and what nothing explains."""

import pytest

from emulator.checker import MemoryModel, check
from emulator.checker.path import Recorded, before, check_path
from emulator.checker.record_memory import check_messages, initial_value, search, uses
from emulator.checker.record_owned import Owned, top
from emulator.checker.record_text import NoPathError
from emulator.hardware.cpu import Control
from emulator.hardware.vectors import POSTED_INTR_VECTOR, RESCHEDULE_VECTOR
from emulator.kvm.params import Bug, Kvm, Notify, TaskState
from emulator.order import OPS, RETURNS, SHARED, STEPS, Step, decode, encode

PINS = (0, 1)
NO_SENDERS = (False, False)
CONTROL_WORDS = ("pi_read_control", "pi_test_and_set_on_unless_sn")


def step(op, *args, at=(0, 0), on=0, result=None, extra=(), number=0):
    return Step(on, number, *at, op, args, result, extra)


def stuck(*steps):
    """The step of one object that no order explains, and what the model returns."""
    used = [use for one in steps for use in uses(one)]
    (key,) = {use.key for use in used}
    found = search(used, initial_value(key, PINS, NO_SENDERS))
    return found and (found.use.step, found.possible)


def test_of_two_overlapping_test_and_sets_either_may_be_first_but_one_must_be():
    first = step("pi_test_and_set_on", 0, at=(1, 4), result=False)
    other = step("pi_test_and_set_on", 0, at=(2, 3), on=1, result=True)

    assert stuck(first, other) is None
    assert stuck(first._replace(result=True), other._replace(result=False)) is None
    assert stuck(first, other._replace(result=False)) == (first, (True,))


def test_a_step_that_had_ended_is_seen_by_the_next():
    first = step("pi_test_and_set_on", 0, at=(1, 2), result=False)
    late = step("pi_test_on", 0, at=(3, 4), on=1, result=False)

    assert stuck(first, late) == (late, (True,))
    assert stuck(first, late._replace(result=True)) is None


def test_the_order_that_explains_a_late_result_is_found_by_search():
    """The load can only come first, and only if the store came between it and the exchange."""
    store = step("store_mode", 0, 1, at=(1, 8), result=None)
    load = step("load_mode", 0, at=(2, 3), on=1, result=0)
    exchange = step("cmpxchg_mode", 0, 1, 2, at=(4, 5), on=1, result=1)
    after = step("load_mode", 0, at=(9, 10), on=0, result=2)

    assert stuck(store, load, exchange, after) is None
    assert stuck(store, load, exchange, after._replace(result=1)) == (
        after._replace(result=1),
        (2,),
    )


def test_a_harvest_is_one_step_for_each_word_of_pir():
    """Vector 63 was there before the harvest came to its word, 64 only after: as on hardware."""
    low = step("pi_test_and_set_pir", 0, 63, at=(2, 3), on=1, result=False)
    high = step("pi_test_and_set_pir", 0, 64, at=(4, 5), on=1, result=False)
    harvest = step("pi_harvest", 0, at=(1, 6), result=64, extra=(0, 1, 0, 0))
    again = step("pi_harvest", 0, at=(7, 8), result=63, extra=(1 << 63, 0, 0, 0))
    answer = check_memory(low, high, harvest, again)

    assert answer is None
    assert check_memory(low, high, harvest, again._replace(extra=(0, 0, 0, 0), result=-1))


def check_memory(*steps):
    objects = {}
    for one in steps:
        for use in uses(one):
            objects.setdefault(use.key, []).append(use)
    found = (search(used, initial_value(k, PINS, NO_SENDERS)) for k, used in objects.items())
    return next((one for one in found if one), None)


def test_a_thread_comes_back_only_if_somebody_woke_it_or_the_run_was_over():
    asleep = (
        step("prepare_to_rcuwait", 0, at=(1, 2)),
        step("set_current_state", 0, int(TaskState.INTERRUPTIBLE), at=(3, 4)),
        step("deactivate_task", 0, at=(5, 6), result=True),
    )
    back = step("switch_in", 0, at=(9, 10))
    waker = step("rcuwait_wake_up", 0, at=(7, 8), on=1, result=True, extra=(0, 77))
    roused = back._replace(extra=(7,))

    assert stuck(*asleep, back) == (back, ())
    assert stuck(*asleep, waker, back) is None
    assert stuck(*asleep, roused) is None


def test_only_a_sleepers_cpu_is_told_that_it_may_run():
    waiting = step("prepare_to_rcuwait", 0, at=(1, 2))
    blocked = step("set_current_state", 0, int(TaskState.INTERRUPTIBLE), at=(3, 4))
    waker = step("rcuwait_wake_up", 0, at=(5, 6), on=1, result=True, extra=(0, 77))

    assert stuck(waiting, blocked, waker) == (waker, ())
    assert stuck(waiting, blocked, waker._replace(extra=())) is None


def test_a_message_arrives_after_it_was_sent_once_and_as_what_it_was():
    sent = step("send_ipi", 0, POSTED_INTR_VECTOR, 0, at=(1, 6), on=1, extra=(0, 7))
    arrival = step("arrive", POSTED_INTR_VECTOR, 1, 7, at=(4, 5))
    again = arrival._replace(begin=8, end=9)
    other = arrival._replace(args=(RESCHEDULE_VECTOR, 1, 7))
    early = arrival._replace(begin=-3, end=-2)
    unknown = arrival._replace(args=(POSTED_INTR_VECTOR, 1, 8))

    assert check_messages([sent, arrival]) == {}
    assert list(check_messages([sent, arrival, again])) == [again]
    assert list(check_messages([sent, other])) == [other]
    assert list(check_messages([sent, early])) == [early]
    assert list(check_messages([sent, unknown])) == [unknown]


def test_a_vector_is_taken_only_if_it_is_the_one_that_the_local_apic_presents():
    owned = Owned()
    owned.do(step("arrive", RESCHEDULE_VECTOR, 1, 7))
    owned.do(step("arrive", POSTED_INTR_VECTOR, 1, 8))

    with pytest.raises(NoPathError, match=r"0xf2 is taken, 0xfd is pending"):
        owned.do(step("interrupt", POSTED_INTR_VECTOR))
    owned.do(step("interrupt", RESCHEDULE_VECTOR))
    with pytest.raises(NoPathError, match="interrupts are off"):
        owned.do(step("interrupt", POSTED_INTR_VECTOR))


def test_a_guest_takes_what_was_harvested_and_no_other_vector():
    owned = Owned()
    owned.do(step("set_running_vcpu", 0))
    owned.do(step("pi_harvest", 0, result=0x41, extra=(0, 2, 0, 0)))
    owned.do(step("raise_rvi", 0x41))

    with pytest.raises(NoPathError, match=r"0x42 is delivered, RVI is 0x41"):
        owned.do(step("deliver", 0x42))
    owned.do(step("deliver", 0x41))
    with pytest.raises(NoPathError, match=r"0x41 is delivered, RVI is 0x0"):
        owned.do(step("deliver", 0x41))


def test_every_operation_survives_the_file():
    results = {bool: True, int: -1, Control: Control(on=True, sn=False, nv=0xF2, ndst=3)}
    for op in STEPS:
        result = results.get(RETURNS[op], None if RETURNS[op] is type(None) else (0x6E0, 1 << 40))
        one = step(op, 3, -1, 242, 1, at=(5, 6), on=0x8001, result=result)
        assert list(decode(encode(one))) == [one]
    for op in OPS[len(STEPS) :]:
        one = step(op, 3, 1 << 55, at=(5, 6), extra=(7,))
        assert list(decode(encode(one))) == [one]
    words = step("pi_harvest", 1, at=(1, 2), result=255, extra=(0, 1 << 63, 5, (1 << 64) - 1))
    assert list(decode(encode(words))) == [words]


def test_what_overlapped_a_step_that_was_open_at_the_break_is_left_out():
    early = step("pi_set_on", 0, at=(1, 2))
    straddling = step("pi_set_on", 0, at=(3, 8), on=1)
    between = step("pi_test_on", 0, at=(5, 6), result=True, number=1)
    kept = before({0: [early, between], 1: [straddling]}, 7)

    assert kept == {0: [early], 1: []}
    assert before({0: [early, between], 1: [straddling]}, 9)[1] == [straddling]


@pytest.mark.parametrize(
    ("scenario", "rule", "bugs"),
    [
        ("lost-wakeup", Notify.KVM_V5_8, ()),
        ("base", Notify.KVM_V5_18, (Bug.B04,)),
        ("base", Notify.KVM_V5_16, (Bug.NO_WAKE,)),
        ("device-preempt-sn", Notify.KVM_V5_18, (Bug.ARM_WITHOUT_ON_TEST,)),
        ("preempted-sleeper", Notify.KVM_V5_18, ()),
    ],
)
def test_the_two_models_of_memory_agree_on_the_checkers_counterexamples(scenario, rule, bugs):
    """A step's result in a counterexample is what `record_memory` gives, and no other would be."""
    found = check(scenario, rule=rule, bugs=bugs, memory=MemoryModel.SC, stop_at_first=True)
    history = history_of(found.counterexample)
    # The result of pi_is_pir_empty is that of its words: history_of() compares them.
    results = [one for one in history if isinstance(one.result, bool) and not one.extra]

    assert len(history) > 8
    assert check_memory(*history) is None
    for one in results:
        flipped = [s._replace(result=not s.result) if s is one else s for s in history]
        assert check_memory(*flipped), one


def history_of(counterexample):
    """The steps on memory of a counterexample, one after the other; its vCPU 0 begins loaded."""
    pir: dict[int, int] = {}
    steps = [step("pi_clear_sn", 0, at=(1, 2))]
    if counterexample.scenario.assigned:
        steps.append(step("assign", 0, at=(3, 4)))
    calls = [
        call for s in counterexample.steps for call in ((s.op, s.args, s.result), *s.looks)
    ]  # fmt: skip
    for op, given, returned in calls:
        at = (2 * len(steps) + 1, 2 * len(steps) + 2)
        args, extra = tuple(a for a in given if isinstance(a, int)), ()
        result = Control(*returned) if op in CONTROL_WORDS else returned
        if op not in SHARED or op == "wakeup_list_next":
            continue
        if op == "pi_test_and_set_pir":
            pir[args[0]] = pir.get(args[0], 0) | 1 << args[1]
        if op in ("pi_harvest", "pi_is_pir_empty"):
            bits = pir.get(args[0], 0)
            extra = tuple(bits >> 64 * i & (1 << 64) - 1 for i in range(4))
            assert result == (top(bits) if op == "pi_harvest" else not bits)
            if op == "pi_harvest":
                pir[args[0]] = 0
        steps.append(step(op, *args, at=at, result=result, extra=extra))
    return steps


def test_a_record_that_ends_too_early_is_no_path():
    run = Recorded(
        kvm=Kvm(), pins=(0,), has_pi_sender=(False,), steps={0: [step("thread", 0, at=(1, 2))]},
        whole=True,
    )  # fmt: skip
    whole = check_path(run).divergence

    assert whole is not None
    assert "the record ends and the text goes on" in whole.why
