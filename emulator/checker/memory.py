"""The simulated machine's memory: what there is, and where each value lies in a state's integer.

Every value that actors share is a small integer in a slot of its own.  A global state is one
Python integer: the slots' bits, then the programs' positions (`world`).  `Layout` packs and
unpacks; `Touched` is an unpacked memory that remembers which slots a step has read or written,
which is what lets `world` work out a step once for all states that agree on those slots.
"""

from collections.abc import Iterable
from typing import Any, Final, SupportsIndex

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
OWED = 21  # ghost: posts not yet delivered, two bits a vector
(LEFT_REMOTE, LEFT_IRQ, LEFT_FASTPATH, LEFT_DEVICE, LEFT_TIMER) = range(22, 27)
(CALL_REMOTE, CALL_DEVICE) = range(27, 29)  # its sender is in a call; 2: which found ON set
ELIDED = 29  # ghost, if I15 is claimed: its thread has elided a notification and not yet synced
VCPU_SLOTS: Final = 30

# Per pCPU that can host a vCPU.  FIRST and SECOND are the store buffer, the oldest store first.
(RUNNING, CURRENT, IRQS_OFF, IN_IRQ, NONROOT, PREEMPT_COUNT) = range(6)
(PENDING, LIST, LOCK, FIRST, SECOND, EXIT_VECTOR, EXIT_MSR) = range(6, 13)
PCPU_SLOTS: Final = 13

# For the whole machine, at the start.
(LEFT_PREEMPT, LEFT_MIGRATE, LEFT_PLUG, ASSIGNED, RAISED, WASTED, WOKEN) = range(7)
MACHINE_SLOTS: Final = 7

LEFT_BITS: Final = 4
RETIRED: Final = 8  # in a LEFT slot, beside the count: will not post again, though it could have
BUFFERED: Final = (MODE, CPU, STATE)  # what a plain store can write

PENDING_BIT: Final = {
    POSTED_INTR_NESTED_VECTOR: 1,
    POSTED_INTR_WAKEUP_VECTOR: 2,
    POSTED_INTR_VECTOR: 4,
    RESCHEDULE_VECTOR: 8,
}
PENDING_VECTOR: Final = {bit: vector for vector, bit in PENDING_BIT.items()}


class Touched(list[int]):
    """Slots, with a record of those that were read or written since `touched` was cleared."""

    def __init__(self, values: Iterable[int]) -> None:
        super().__init__(values)
        self.touched: set[int] = set()

    def __getitem__(self, where: Any) -> Any:
        self.touched.add(where)
        return super().__getitem__(where)

    def __setitem__(self, where: Any, value: Any) -> None:
        self.touched.add(where)
        super().__setitem__(where, value)

    def peek(self, where: SupportsIndex) -> int:
        """Read without a record: for what decides nothing about the step."""
        return super().__getitem__(where)


class Layout:
    """Which slots a scenario has, and their place in a state.

    `vcpus` and `pcpus` give the first slot of each block; the pCPUs that only send share one
    block, which nobody changes.
    """

    def __init__(self, scenario: Scenario) -> None:
        bounds = scenario.bounds
        assert all(getattr(bounds, name) < RETIRED for name in bounds.__slots__), "bound too wide"
        count, hosts = len(scenario.pins), scenario.hosts
        self.hosts = hosts
        self.vcpus = tuple(MACHINE_SLOTS + VCPU_SLOTS * v for v in range(count))
        first = MACHINE_SLOTS + VCPU_SLOTS * count
        elsewhere = first + PCPU_SLOTS * hosts
        blocks = tuple(first + PCPU_SLOTS * p for p in range(hosts))
        self.pcpus = blocks + (elsewhere,) * count
        vectors = len(scenario.vectors)
        who = count.bit_length()  # -1 .. count - 1
        where = (hosts + 1).bit_length()  # -1 .. hosts
        vcpu = [vectors, vectors, vectors.bit_length(), 1, 1, 2, where, 2, where, 3, 2]
        vcpu += [2, 1, where, 1, where, 1, 2, 1, where, 1, 2 * vectors, *([LEFT_BITS] * 5), 2, 1, 1]
        store = (count * len(BUFFERED) * 4).bit_length()
        pcpu = [who, who, 1, 1, 2, 2, 4, count, 1, store, store, 8, 4]
        widths = [LEFT_BITS, LEFT_BITS, LEFT_BITS, 1, 5, 5, 5]
        widths += vcpu * count + pcpu * (hosts + 1)
        self.size = len(widths)
        self._bias = [0] * self.size
        for v in self.vcpus:
            self._bias[v + NV] = POSTED_INTR_NESTED_VECTOR
            self._bias[v + ON_CPU] = self._bias[v + PRE_PCPU] = self._bias[v + NDST] = -1
        for p in self.pcpus:
            self._bias[p + RUNNING] = self._bias[p + CURRENT] = -1
        self.shifts: list[int] = []
        self._limits = [(1 << width) - 1 for width in widths]
        self.bits = 0
        for width in widths:
            self.shifts.append(self.bits)
            self.bits += width
        self._fields = tuple(zip(self.shifts, self._limits, self._bias, strict=True))
        self.masks = [m << s for m, s in zip(self._limits, self.shifts, strict=True)]

    def mask_of(self, *fields: int) -> int:
        """The bits of these slots of every vCPU."""
        return sum(self.masks[v + field] for v in self.vcpus for field in fields)

    def unpack(self, state: int) -> Touched:
        """The slots of a state."""
        return Touched([(state >> s & limit) + bias for s, limit, bias in self._fields])

    def pack(self, slots: Touched) -> int:
        """The slots' part of a state."""
        state = 0
        for i, shift in enumerate(self.shifts):
            value = slots.peek(i) - self._bias[i]
            assert 0 <= value <= self._limits[i], f"slot {i} cannot hold {slots.peek(i)}"
            state |= value << shift
        return state

    def location(self, store: int) -> tuple[int, int]:
        """(slot, value) of a store buffer's entry, which is not 0."""
        vcpu, rest = divmod(store - 1, len(BUFFERED) * 4)
        return self.vcpus[vcpu] + BUFFERED[rest // 4], rest % 4

    def store(self, where: int, value: int) -> int:
        """The store buffer's entry for (slot, value)."""
        vcpu, field = divmod(where - MACHINE_SLOTS, VCPU_SLOTS)
        return 1 + (vcpu * len(BUFFERED) + BUFFERED.index(field)) * 4 + value


def initial_memory(scenario: Scenario, layout: Layout) -> Touched:
    """The first vCPU of each pCPU is loaded there, about to call vcpu_run(); nothing is posted."""
    m = Touched([0] * layout.size)
    bounds = scenario.bounds
    m[LEFT_PREEMPT], m[LEFT_MIGRATE] = bounds.preempt, bounds.migrate
    m[LEFT_PLUG], m[ASSIGNED] = bounds.plug, int(scenario.assigned)
    for base in layout.pcpus:
        m[base + RUNNING] = m[base + CURRENT] = -1
    for vcpu, base in enumerate(layout.vcpus):
        home = scenario.pins[vcpu]
        host = layout.pcpus[home]
        m[base + SN] = 1  # the reset value; loading clears it
        m[base + NV] = POSTED_INTR_VECTOR
        m[base + NDST] = m[base + CPU] = home
        m[base + MODE] = Mode.OUTSIDE_GUEST_MODE.value
        m[base + STATE] = TaskState.RUNNING.value
        m[base + MP] = MpState.RUNNABLE.value
        m[base + PRE_PCPU] = m[base + ON_CPU] = -1
        m[base + GUEST_IF] = 1
        if m[host + CURRENT] < 0:
            m[host + CURRENT] = m[host + RUNNING] = vcpu
            m[base + ON_CPU], m[base + SN] = home, 0
        else:
            m[base + PREEMPTING] = 1  # queued: it was preempted before it did anything
        m[base + LEFT_REMOTE], m[base + LEFT_IRQ] = bounds.remote, bounds.irq
        m[base + LEFT_FASTPATH], m[base + LEFT_DEVICE] = bounds.fastpath, bounds.device
        m[base + LEFT_TIMER] = bounds.timer
    return m
