"""What no protocol text decides: the guest's next event, where a thread runs, when a vector comes.

Pure functions of a memory.  Each gives the outcomes that are possible now; `world` makes a move of
each.  An outcome is *voluntary* if nothing obliges it to come.  A sender may retire before its
bound, a guest decide to compute for ever: the runs in which less is posted have an end, too.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from emulator.checker import memory as slot
from emulator.checker.memory import PENDING_BIT, PENDING_VECTOR, RETIRED, Layout, Touched
from emulator.checker.scenario import Scenario
from emulator.hardware.cpu import NOTIFICATION
from emulator.hardware.vectors import (
    FIRST_DEVICE_VECTOR,
    LOCAL_TIMER_VECTOR,
    POSTED_INTR_VECTOR,
    ExitReason,
)
from emulator.kvm.params import TaskState

IN_GUEST: Final = 1  # in NONROOT
COMPUTING: Final = 2  # in NONROOT: the guest will leave only if it is made to

_SLEEPING = TaskState.SLEEPING.value

Changes = tuple[tuple[int, int], ...]  # (slot, new value)

# What a VM exit leaves in the VMCS besides its reason, where the text or a replay can ask for it:
# ("vector", of an external interrupt), ("deadline", written), ("guest_if", at a HLT).
Vmcs = tuple[tuple[str, int], ...]


class Choice(NamedTuple):
    """One outcome of a step that has several."""

    op: str
    args: tuple[Any, ...]
    result: Any
    voluntary: bool
    changes: Changes
    advances: bool = True  # False: the program stays at the step
    vmcs: Vmcs = ()


class Interrupt(NamedTuple):
    """A vector that a pCPU can be given now."""

    vector: int
    changes: Changes
    voluntary: bool


def left(m: Touched, where: int) -> int:
    """How many more posts the sender with this LEFT slot can make."""
    count = int(m[where])
    return 0 if count & RETIRED else count


def guest_events(scenario: Scenario, layout: Layout, m: Touched, vcpu: int) -> list[Choice]:
    """What can happen while `vcpu` is in non-root mode.

    A vector in PENDING has been sent and not yet been taken.  Until it arrives the guest goes on,
    and even a recognised virtual interrupt waits while the guest has interrupts masked; so the
    guest may do something else first.  With `scenario.priority` it may not: the hardware's order
    (SDM vol. 3, 29.2.2), with nothing in flight.
    """
    v = layout.vcpus[vcpu]
    pcpu = m[v + slot.ON_CPU]
    p = layout.pcpus[pcpu]
    out = (p + slot.NONROOT, 0)
    found: list[Choice] = []
    if m[v + slot.RVI] and m[v + slot.GUEST_IF]:
        vector = scenario.vectors[m[v + slot.RVI] - 1]
        found.append(Choice("deliver", (vcpu, vector), None, False, (), advances=False))
    if bits := m[p + slot.PENDING]:
        vector = PENDING_VECTOR[1 << (bits.bit_length() - 1)]
        taken = (p + slot.PENDING, bits & ~PENDING_BIT[vector])
        if vector == POSTED_INTR_VECTOR:
            found.append(_event(vcpu, NOTIFICATION, (taken,)))
        else:
            changes = (taken, out, (p + slot.EXIT_VECTOR, vector))
            saved = (("vector", vector),)
            found.append(_event(vcpu, ExitReason.EXTERNAL_INTERRUPT, changes, vmcs=saved))
    if found and scenario.priority:
        return found[:1]
    for i in host_interrupts(scenario, layout, m, pcpu):
        leaving: Changes = (*i.changes, out, (p + slot.EXIT_VECTOR, i.vector))
        reason, saved = ExitReason.EXTERNAL_INTERRUPT, (("vector", i.vector),)
        found.append(_event(vcpu, reason, leaving, voluntary=i.voluntary, vmcs=saved))
    if m[v + slot.HV_TIMER]:
        found.append(_event(vcpu, ExitReason.PREEMPTION_TIMER, (out,)))
    if m[p + slot.NONROOT] == IN_GUEST:
        found += _instructions(scenario, m, vcpu, v, p)
    return found


def _instructions(scenario: Scenario, m: Touched, vcpu: int, v: int, p: int) -> list[Choice]:
    """What the guest can do of its own accord."""
    out = (p + slot.NONROOT, 0)
    found = [
        _event(vcpu, ExitReason.HLT, (out,), voluntary=True, vmcs=(("guest_if", 1),)),
        _event(vcpu, ExitReason.VMCALL, (out,), voluntary=True),
    ]
    if scenario.early_ends:
        for_ever = ((p + slot.NONROOT, COMPUTING),)
        found.append(Choice("compute", (vcpu,), None, True, for_ever, advances=False))
    # A deadline that the guest had set before; with one set since, it is that one's exit.
    if (n := left(m, v + slot.LEFT_FASTPATH)) and not m[v + slot.HV_TIMER]:
        changes = (out, (v + slot.LEFT_FASTPATH, n - 1), (v + slot.HV_TIMER, 1))
        found.append(_event(vcpu, ExitReason.PREEMPTION_TIMER, changes, voluntary=True))
    if n := left(m, v + slot.LEFT_TIMER):
        for deadline in (1, 2):
            write = (p + slot.EXIT_MSR, deadline)
            changes = (out, (v + slot.LEFT_TIMER, n - 1), write)
            saved = (("deadline", deadline),)
            found.append(_event(vcpu, ExitReason.MSR_WRITE, changes, voluntary=True, vmcs=saved))
    if scenario.guest_masks:
        masked, saved = (out, (v + slot.GUEST_IF, 0)), (("guest_if", 0),)
        found.append(_event(vcpu, ExitReason.HLT, masked, voluntary=True, vmcs=saved))
    return found


def _event(
    vcpu: int, result: int, changes: Changes, *, voluntary: bool = False, vmcs: Vmcs = ()
) -> Choice:
    return Choice("non_root_event", (vcpu,), int(result), voluntary, changes, vmcs=vmcs)


def switches(layout: Layout, m: Touched, vcpu: int) -> list[Choice]:
    """Where the scheduler can run a thread that has left its pCPU."""
    v = layout.vcpus[vcpu]
    pcpu = m[v + slot.ON_CPU]
    if pcpu >= 0:  # a store buffer has kept it from leaving
        if m[layout.pcpus[pcpu] + slot.FIRST]:
            return []
        off = switched_off(layout, vcpu, pcpu)
        return [Choice("context_switch", (vcpu,), -1, False, off, advances=False)]
    if m[v + slot.STATE] == _SLEEPING:
        return []
    found = []
    last = m[v + slot.CPU]
    for target, p in enumerate(layout.pcpus[: layout.hosts]):
        if target != last and not m[slot.LEFT_MIGRATE]:
            continue
        if m[p + slot.CURRENT] >= 0 or m[p + slot.IN_IRQ]:
            continue
        on: Changes = ((p + slot.CURRENT, vcpu), (p + slot.IRQS_OFF, 1), (v + slot.ON_CPU, target))
        if target != last:
            on = (*on, (slot.LEFT_MIGRATE, m[slot.LEFT_MIGRATE] - 1))
        found.append(Choice("context_switch", (vcpu,), target, target != last, on))
    return found


def switched_off(layout: Layout, vcpu: int, pcpu: int) -> Changes:
    """The idle task has the pCPU, interrupts on."""
    v, p = layout.vcpus[vcpu], layout.pcpus[pcpu]
    return ((p + slot.CURRENT, -1), (p + slot.IRQS_OFF, 0), (v + slot.ON_CPU, -1))


def host_interrupts(
    scenario: Scenario, layout: Layout, m: Touched, pcpu: int
) -> Iterator[Interrupt]:
    """The interrupts of the host's own that `pcpu` can get: a device's, an hrtimer's."""
    for vcpu, v in enumerate(layout.vcpus):
        if scenario.pins[vcpu] == pcpu and (n := left(m, v + slot.LEFT_IRQ)):
            yield Interrupt(FIRST_DEVICE_VECTOR + vcpu, ((v + slot.LEFT_IRQ, n - 1),), True)
    if scenario.bounds.timer and any(m[v + slot.SW_TIMER] == 1 + pcpu for v in layout.vcpus):
        yield Interrupt(LOCAL_TIMER_VECTOR, (), False)


def root_interrupts(
    scenario: Scenario, layout: Layout, m: Touched, pcpu: int
) -> Iterator[Interrupt]:
    """Each vector that `pcpu` can take in root mode: none while interrupts are off."""
    p = layout.pcpus[pcpu]
    if m[p + slot.IRQS_OFF] or m[p + slot.IN_IRQ] or m[p + slot.NONROOT]:
        return
    yield from host_interrupts(scenario, layout, m, pcpu)
    if bits := m[p + slot.PENDING]:
        for vector, bit in PENDING_BIT.items():
            if bits & bit:
                yield Interrupt(vector, ((p + slot.PENDING, bits & ~bit),), False)


def preemptible(layout: Layout, m: Touched, vcpu: int) -> bool:
    """The thread runs in root mode, interrupts and preemption on, and the budget allows it."""
    v = layout.vcpus[vcpu]
    pcpu = m[v + slot.ON_CPU]
    if pcpu < 0 or m[v + slot.PREEMPTING] or not m[slot.LEFT_PREEMPT]:
        return False
    p = layout.pcpus[pcpu]
    closed = (slot.IN_IRQ, slot.IRQS_OFF, slot.NONROOT, slot.PREEMPT_COUNT)
    return not any(m[p + s] for s in closed)
