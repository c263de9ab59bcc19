"""A pCPU that watches invariant I3 while it runs: no guest computes over unseen work.

Used where a museum switch or the entry order of 2013 is on: there a loss may last only until the
next exit, too short for the launcher's watchdog.  At each PAUSE of its guest the pCPU asks: ON set,
no vector on its way or pending here, and no pCPU between its PIR bit and its decision?  Then nobody
will tell this vCPU, and that goes on record as LOST.  Not for hardware senders: they say nothing of
where they are.
"""

from time import monotonic_ns
from typing import Any

from emulator.config.model import Cell, Via
from emulator.events import Event
from emulator.hardware.vectors import POSTED_INTR_VECTOR
from emulator.kvm.params import EntryOrder
from emulator.machine.live import LiveCpu
from emulator.machine.memory import P_POSTING

LOST = int(Event.LOST)


def wants_audit(cell: Cell) -> bool:
    """Is there anything to watch for, and can it be told?

    Not where vCPUs share a pCPU either: a sender may be preempted between PIR and its decision, and
    the pCPU's word then says nothing of it.
    """
    kvm = cell.kvm
    if not kvm.bugs and kvm.entry_order is not EntryOrder.V2013:
        return False
    homes = [vcpu.pcpu for vcpu in cell.vcpus]
    shared = len(set(homes)) < len(homes) or any(vcpu.floats for vcpu in cell.vcpus)
    return not shared and not any(load.via is Via.VT_D for load in cell.loads)


class AuditedCpu(LiveCpu):
    """LiveCpu, and where it stands in a post, on the mapped file."""

    __slots__ = ("_posting", "_reported", "_store_posting")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._posting = [
            self.memory.u32(self.memory.pcpu(pcpu, P_POSTING)).load
            for pcpu in range(self.cell.pcpus)
        ]
        self._store_posting = self.memory.u32(self.memory.pcpu(self.pcpu, P_POSTING)).store
        self._reported = -1  # the harvest count at which the last loss was put on record

    def pi_test_and_set_pir(self, vcpu: int, vector: int) -> bool:
        self._store_posting(vcpu + 1)
        was = super().pi_test_and_set_pir(vcpu, vector)
        if was:
            self._store_posting(0)
        return was

    def trace(self, event: Event, vcpu: int, vector: int = 0, arg: int = 0) -> None:
        """Elided, woken, not blocked: the decision is made."""
        super().trace(event, vcpu, vector, arg)
        self._store_posting(0)

    def send_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        super().send_ipi(pcpu, vector, vcpu)
        if vector == POSTED_INTR_VECTOR:
            self._store_posting(0)

    def handle_irq(self, vector: int) -> None:
        outer = self._posting[self.pcpu]()
        super().handle_irq(vector)
        self._store_posting(outer)

    def pause(self) -> None:
        self._audit()
        super().pause()

    def _audit(self) -> None:
        vcpu = self.current
        desc = self.words[vcpu].desc
        if not desc.control() & 1 or self._reported == self.harvests:
            return
        if any(load() == vcpu + 1 for load in self._posting):
            return
        # Whoever had set ON by then has decided, and has rung the doorbell if it notified.
        if self._rung() != self.arrived or self.lapic.irr >> POSTED_INTR_VECTOR & 1:
            return
        self._reported = self.harvests
        pir, now = desc.pir(), monotonic_ns()
        for v in (v for v in range(256) if pir >> v & 1):
            self.note((now, 0, 1, LOST, v, self.pcpu, vcpu, 0))
