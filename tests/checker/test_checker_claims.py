"""Each claim, broken on purpose: the checker names that claim and no other."""

from dataclasses import replace

import pytest

from emulator.checker import (
    Bounds,
    Claim,
    Judgement,
    MemoryModel,
    Scenario,
    Sometimes,
    check,
)
from emulator.checker.claims import SAFETY
from emulator.checker.cost import cost
from emulator.checker.model_cpu import ModelCpu
from emulator.checker.world import World
from emulator.events import Event
from emulator.hardware.vectors import Mode
from emulator.kvm.params import Bug, Notify, PidScheme, ReentryOrder, TaskState

PLAIN = Scenario(name="test", question="", bounds=Bounds(remote=1, fastpath=1))
DEVICE = replace(
    PLAIN, bounds=Bounds(device=1, preempt=1), pid_scheme=PidScheme.SN_ON_PUT, assigned=True
)
IN_THE_END = frozenset({Claim.DELIVERY_STAYS_POSSIBLE, Claim.EVERY_POST_IS_DELIVERED_AT_LAST})


def claiming(scenario, *claims):
    return replace(scenario, claims=frozenset(claims))


def test_the_unbroken_text_holds():
    assert check(PLAIN).judgement is Judgement.HOLDS
    assert check(DEVICE).judgement is Judgement.HOLDS


def test_eliding_whenever_running_breaks_s1():
    verdict = check("lost-wakeup")

    assert verdict.claim is Claim.EVERY_POST_IS_DELIVERED
    assert verdict.losing > 0
    assert verdict.text.startswith("S1 every post is delivered: lost wake-up: vCPU 0 sleeps, PIR[")


def test_a_lost_wakeup_breaks_s2():
    asked = claiming(replace(PLAIN, bounds=Bounds(irq=1)), Claim.DELIVERY_STAYS_POSSIBLE)

    assert check(asked, rule=Notify.KVM_V5_8).claim is Claim.DELIVERY_STAYS_POSSIBLE
    assert check(asked).judgement is Judgement.HOLDS


def test_a_lost_interrupt_is_not_beyond_recovery():
    asked = replace(claiming(PLAIN, Claim.DELIVERY_STAYS_POSSIBLE), early_ends=False).under(
        bugs=frozenset({Bug.NO_ENTRY_FENCE}), memory=MemoryModel.TSO
    )

    assert check(asked).judgement is Judgement.HOLDS  # the guest may exit of its own accord


def test_a_pir_bit_left_behind_breaks_s3(monkeypatch):
    def harvest_and_leave(self, vcpu):
        bits = self.m[self._v[vcpu]]
        highest = ModelCpu.find_highest_virr.__get__(self)
        self.m[self._v[vcpu] + 1] |= bits
        return highest(vcpu)

    monkeypatch.setattr(ModelCpu, "pi_harvest", harvest_and_leave)

    assert check(PLAIN).claim is Claim.NO_INTERRUPT_FROM_NOWHERE


def test_ndst_rewritten_for_a_sleeper_breaks_s4():
    asked = claiming(
        replace(
            DEVICE, pid_scheme=PidScheme.PRE_BLOCK, bounds=Bounds(device=1, preempt=1, migrate=1)
        ),
        Claim.LIST_AGREES_WITH_NV,
    )

    assert check(asked, bugs=[Bug.B06]).claim is Claim.LIST_AGREES_WITH_NV
    assert check(asked).judgement is Judgement.HOLDS


def test_sn_never_cleared_breaks_s5(monkeypatch):
    monkeypatch.setattr(ModelCpu, "pi_clear_sn", lambda *_: None)

    assert check(DEVICE).claim is Claim.SN_IS_CLEAR_IN_THE_GUEST


def test_a_guest_that_prefers_its_own_exits_starves_and_breaks_l1():
    asked = replace(PLAIN, claims=IN_THE_END)

    assert check(asked).claim is Claim.EVERY_POST_IS_DELIVERED_AT_LAST
    assert check(replace(asked, priority=True)).judgement is Judgement.HOLDS


def test_a_state_with_no_way_out_breaks_l1_without_a_cycle():
    asked = replace(
        PLAIN,
        bounds=Bounds(irq=1),
        claims=frozenset({Claim.EVERY_POST_IS_DELIVERED_AT_LAST}),
        priority=True,
        rule=Notify.KVM_V5_8,
    )
    verdict = check(asked)

    assert verdict.claim is Claim.EVERY_POST_IS_DELIVERED_AT_LAST
    assert verdict.text.endswith("at rest, and a post is owed")


def test_waking_a_guest_that_masks_interrupts_breaks_i8():
    asked = replace(
        DEVICE,
        bounds=Bounds(device=1),
        guest_masks=True,
        claims=SAFETY | {Claim.NO_NEEDLESS_WAKE},
    )

    assert check(asked, bugs=[Bug.B16]).claim is Claim.NO_NEEDLESS_WAKE
    assert check(asked).judgement is not Judgement.BROKEN


def test_leaving_sn_clear_at_put_breaks_i10():
    asked = claiming(
        replace(DEVICE, bounds=Bounds(device=1), guest_masks=True), Claim.NOTIFIED_WHERE_LOADED
    )

    assert (
        check(replace(asked, pid_scheme=PidScheme.PREEMPT_SN)).claim is Claim.NOTIFIED_WHERE_LOADED
    )
    assert check(asked).judgement is not Judgement.BROKEN


def test_ignoring_the_gate_breaks_i13():
    assert check("gate", bugs=[Bug.NO_GATE]).claim is Claim.GATE
    assert check("gate").judgement is Judgement.HOLDS


def test_eliding_in_an_interrupt_handler_breaks_i15():
    verdict = check("elision", rule=Notify.KVM_V5_8)

    assert verdict.claim is Claim.ELISION_IS_SOUND
    assert "an interrupt handler elides for vCPU 0 on pCPU 0" in verdict.text


def test_entering_without_a_sync_after_eliding_breaks_i15():
    asked = claiming(PLAIN, Claim.ELISION_IS_SOUND)
    verdict = check(replace(asked, reentry_order=ReentryOrder.NONE))

    assert verdict.text.endswith("vCPU 0 enters the guest and has not synced since it elided")
    assert check(asked).judgement is Judgement.HOLDS


def test_sleeping_without_a_sync_after_eliding_breaks_i15():
    world = World(claiming(PLAIN, Claim.ELISION_IS_SOUND))
    cpu = world.cpu
    cpu.m, cpu.me, cpu.c = world.layout.unpack(world.initial()), 0, 0
    cpu.local_irq_disable()
    cpu.store_mode(0, Mode.IN_GUEST_MODE)
    cpu.trace(Event.ELIDE_SAME_VCPU, 0)
    assert cpu.fault is None

    cpu.set_current_state(0, TaskState.INTERRUPTIBLE)
    cpu.deactivate_task(0)
    assert cpu.fault[0] is Claim.ELISION_IS_SOUND


def test_a_timer_fired_for_a_vcpu_not_loaded_here_breaks_w1(monkeypatch):
    monkeypatch.setattr(ModelCpu, "running_vcpu", lambda _: -1)
    verdict = check(PLAIN)

    assert verdict.claim is Claim.NO_WARNING
    assert "WARN_ON at emulator/kvm/timer.py:" in verdict.text


def test_eliding_saves_every_notification_of_the_fastpath():
    timers = replace(PLAIN, bounds=Bounds(fastpath=2))

    assert cost(timers.under(rule=Notify.KVM_V5_17)).raised == (2, 2)
    assert cost(timers.under(rule=Notify.KVM_V5_18)).raised == (0, 0)


def test_eliding_saves_nothing_for_remote_senders():
    remote = replace(PLAIN, bounds=Bounds(remote=2))
    before, after = (cost(remote.under(rule=rule)) for rule in (Notify.KVM_V5_17, Notify.KVM_V5_18))

    assert before == after
    assert after.raised == (0, 2)


def test_a_question_that_was_never_put_is_vacuous():
    unassigned = replace(DEVICE, assigned=False)  # the device cannot post
    verdict = check(unassigned)

    assert verdict.judgement is Judgement.VACUOUS
    assert Sometimes.DEVICE_DONE in verdict.never


@pytest.mark.parametrize("bug", [Bug.B11, Bug.B20])
def test_a_switch_that_only_shows_without_apicv_is_not_said_to_be_harmless(bug):
    verdict = check(PLAIN, bugs=[bug])

    assert verdict.judgement is Judgement.VACUOUS
    assert verdict.never == (Sometimes.INHIBITED,)


def test_senders_may_post_fewer_than_the_bound():
    asked = replace(PLAIN, bounds=Bounds(remote=2, irq=1), rule=Notify.KVM_V5_8)
    found = check(asked).counterexample

    assert found is not None
    assert not any(step.op == "call" for step in found.steps)  # the remote sender stayed out


@pytest.mark.parametrize("rule", Notify)
def test_the_verdict_carries_its_bounds_and_limits(rule):
    told = check("remote", rule=rule).to_json()

    assert told["schema"] == "pirlab-check/1"
    assert (told["scenario"], told["rule"], told["memory"]) == ("remote", rule.value, "sc")
    assert told["bounds"] == "R<=1"
    assert "nor of a kernel" in told["limits"]
