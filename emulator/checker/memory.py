"""The simulated machine's memory: where each value lies in the tuple that stands for it.

One flat tuple of small integers (and of store buffers, which are tuples) is all that the actors
share; `world` interns these tuples and the search sees their numbers.  `model_cpu` reads and
writes them; nothing here decides anything.
"""

from dataclasses import dataclass
from typing import Final

from emulator.checker.scenario import Scenario
from emulator.hardware.vectors import (
    POSTED_INTR_NESTED_VECTOR,
    POSTED_INTR_VECTOR,
    POSTED_INTR_WAKEUP_VECTOR,
    RESCHEDULE_VECTOR,
    Mode,
)
from emulator.kvm.params import MpState, TaskState

# Per vCPU.  PIR and VIRR are bit masks over Scenario.vectors; RVI is 0 or 1 + an index into them.
(PIR, VIRR, RVI, ON, SN, NV, NDST) = range(7)  # the descriptor and the virtual APIC
(MODE, CPU, REQUESTS, MP) = range(7, 11)  # struct kvm_vcpu
(STATE, WAITING, ON_CPU, PREEMPTING, PRE_PCPU) = range(11, 16)  # the thread; ON_CPU -1: off
(GUEST_IF, DEADLINE, HV_TIMER, SW_TIMER, TIMER_PENDING) = range(16, 21)  # SW_TIMER: 1 + pCPU
OWED = 21  # ghost: posted and not yet delivered, a bit mask as PIR
(LEFT_REMOTE, LEFT_IRQ, LEFT_FASTPATH, LEFT_DEVICE, LEFT_TIMER) = range(22, 27)
VCPU_SLOTS: Final = 27

# Per pCPU that can host a vCPU.
(RUNNING, CURRENT, IRQS_OFF, IN_IRQ, NONROOT, PREEMPT_COUNT) = range(6)
(PENDING, MEANT, LIST, LOCK, BUFFER, EXIT_VECTOR, EXIT_MSR) = range(6, 13)
PCPU_SLOTS: Final = 13

# For the whole machine, at the tuple's start.
(LEFT_PREEMPT, LEFT_MIGRATE, LEFT_PLUG, ASSIGNED, RAISED, WASTED, WOKEN) = range(7)
MACHINE_SLOTS: Final = 7

PENDING_BIT: Final = {
    POSTED_INTR_NESTED_VECTOR: 1,
    POSTED_INTR_WAKEUP_VECTOR: 2,
    POSTED_INTR_VECTOR: 4,
    RESCHEDULE_VECTOR: 8,
}
PENDING_VECTOR: Final = {bit: vector for vector, bit in PENDING_BIT.items()}

Memory = tuple[int | tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each block starts.  pCPUs that host nobody share one block that never changes."""

    vcpus: tuple[int, ...]
    pcpus: tuple[int, ...]  # by pCPU; senders' pCPUs included
    hosts: int
    size: int


def layout_of(scenario: Scenario) -> Layout:
    """One block for each vCPU, one for each host pCPU, one for all the senders' pCPUs."""
    senders = len(scenario.pins)
    vcpus = tuple(MACHINE_SLOTS + VCPU_SLOTS * v for v in range(len(scenario.pins)))
    first = MACHINE_SLOTS + VCPU_SLOTS * len(scenario.pins)
    hosts = tuple(first + PCPU_SLOTS * p for p in range(scenario.hosts))
    elsewhere = first + PCPU_SLOTS * scenario.hosts
    return Layout(vcpus, hosts + (elsewhere,) * senders, scenario.hosts, elsewhere + PCPU_SLOTS)


def initial_memory(scenario: Scenario, layout: Layout) -> Memory:
    """Each vCPU's thread is loaded on its pCPU, about to call vcpu_run(); nothing is posted."""
    m: list[int | tuple[tuple[int, int], ...]] = [0] * layout.size
    bounds = scenario.bounds
    m[LEFT_PREEMPT], m[LEFT_MIGRATE] = bounds.preempt, bounds.migrate
    m[LEFT_PLUG], m[ASSIGNED] = bounds.plug, int(scenario.assigned)
    for base in dict.fromkeys(layout.pcpus):
        m[base + RUNNING] = m[base + CURRENT] = -1
        m[base + BUFFER] = ()
    for vcpu, base in enumerate(layout.vcpus):
        home = scenario.pins[vcpu]
        host = layout.pcpus[home]
        loaded = m[host + CURRENT] == -1
        m[base + SN] = int(not loaded)  # the reset value; loading clears it
        m[base + NV] = POSTED_INTR_VECTOR
        m[base + NDST] = m[base + CPU] = home
        m[base + MODE] = Mode.OUTSIDE_GUEST_MODE.value
        m[base + STATE] = TaskState.RUNNING.value
        m[base + MP] = MpState.RUNNABLE.value
        m[base + PRE_PCPU] = -1
        m[base + GUEST_IF] = 1
        m[base + ON_CPU] = home if loaded else -1
        if loaded:
            m[host + CURRENT] = m[host + RUNNING] = vcpu
        m[base + LEFT_REMOTE], m[base + LEFT_IRQ] = bounds.remote, bounds.irq
        m[base + LEFT_FASTPATH], m[base + LEFT_DEVICE] = bounds.fastpath, bounds.device
        m[base + LEFT_TIMER] = bounds.timer
    return tuple(m)
