"""What an exploration must have come across before its "holds" says anything."""

from typing import Final

from emulator.checker.claims import Sometimes
from emulator.checker.scenario import MemoryModel, Scenario
from emulator.kvm.params import Bug, Notify, PidScheme, Timer

WITHOUT_APICV: Final = frozenset({Bug.B11, Bug.B20})  # switches in text that is not reached here


def must_happen(scenario: Scenario) -> frozenset[Sometimes]:
    """The steps that a scenario's question is about, by its actors, rule and memory model."""
    b = scenario.bounds
    wanted = {Sometimes.SLEPT}
    senders = {
        Sometimes.REMOTE_DONE: b.remote,
        Sometimes.IRQ_DONE: b.irq,
        Sometimes.DEVICE_DONE: b.device,
        Sometimes.PREEMPT_DONE: b.preempt,
        Sometimes.PLUG_DONE: b.plug,
        Sometimes.MIGRATED: b.migrate,
    }
    wanted |= {sometimes for sometimes, bound in senders.items() if bound}
    wanted |= _of_notification(scenario)
    if scenario.memory is MemoryModel.TSO:
        wanted.add(Sometimes.BUFFERED)
    if scenario.bugs & WITHOUT_APICV:
        wanted.add(Sometimes.INHIBITED)
    if b.device and scenario.pid_scheme is not PidScheme.NONE:
        wanted |= {Sometimes.ARMED, Sometimes.WOKEN}
        if b.preempt and not scenario.urgent:
            wanted.add(Sometimes.SN_SET)
    return frozenset(wanted)


def _posts_in_guest_mode(scenario: Scenario) -> bool:
    """A fastpath handler of this scenario's axes posts."""
    b = scenario.bounds
    counted = b.fastpath or (b.timer and scenario.timer is Timer.PREEMPTION)
    expires = bool(counted) and scenario.fastpath_preemption_timer
    return expires or (bool(b.timer) and scenario.fastpath_tscdeadline)


def _of_notification(scenario: Scenario) -> set[Sometimes]:
    b, rule = scenario.bounds, scenario.rule
    wanted: set[Sometimes] = set()
    if b.remote or b.device:
        wanted |= {Sometimes.TOOK, Sometimes.WASTED}
        others = bool(b.irq) + bool(b.fastpath) + bool(b.remote and b.device)
        # The rule of 2013 does not stop at ON; with one vector PIR stops it before.
        if others and not scenario.one_vector and rule is not Notify.KVM_V3_10:
            wanted.add(Sometimes.ON_SET)
    if b.remote or (b.irq and rule is not Notify.KVM_V5_8):
        wanted.add(Sometimes.WOKEN)
    if max(b.remote, b.irq, b.device) > 1:
        wanted.add(Sometimes.PIR_SET)
    if rule is Notify.KVM_V5_8 and (b.irq or b.fastpath):
        wanted.add(Sometimes.ELIDED)
    if rule is Notify.KVM_V5_18 and _posts_in_guest_mode(scenario):
        wanted.add(Sometimes.ELIDED)
    return wanted
