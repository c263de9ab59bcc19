"""What surrounds the text on a gated pCPU: arriving vectors, the guest, the machine's shape.

Messages come over ZeroMQ as live and wait here, on the wire, until a turn says that the local APIC
presents them.  In free running, behind the schedule, interrupts are taken as they come and the
guest computes on: it leaves non-root operation only if something makes it.
Before: `gated_steps`.  Next: `gated` makes every call wait for its turn.
"""

import os
from time import monotonic_ns
from typing import Any, Final

from emulator.config.model import Cell, Run, Vcpu
from emulator.config.model import Fabric as Transport
from emulator.hardware.cpu import NOTIFICATION
from emulator.hardware.vectors import (
    POSTED_INTR_NESTED_VECTOR,
    POSTED_INTR_VECTOR,
    POSTED_INTR_WAKEUP_VECTOR,
    RESCHEDULE_VECTOR,
    ExitReason,
)
from emulator.hardware.vmcs import INFO_EXTERNAL_INTERRUPT, INFO_VALID
from emulator.machine.fabric import Fabric
from emulator.machine.gate import DivergedError, Gate, Schedule, Turn
from emulator.machine.gated_steps import GatedSteps
from emulator.machine.live import LiveCpu
from emulator.machine.memory import Memory
from emulator.machine.recorder import Record, Recorder

BY_WIRE: Final = (
    *(POSTED_INTR_NESTED_VECTOR, POSTED_INTR_WAKEUP_VECTOR, POSTED_INTR_VECTOR),
    RESCHEDULE_VECTOR,
)
ARRIVE_NS: Final = 2_000_000_000  # for a message whose doorbell has rung


def cell_of(schedule: Schedule) -> Cell:
    """The schedule's machine as a live run would describe it.  Nothing loads it but its turns."""
    vcpus = (
        Vcpu(index=v, vm="vm", number=v, pcpu=pcpu, guest="spin")
        for v, pcpu in enumerate(schedule.pins)
    )
    return Cell(
        name="replay",
        question="",
        pcpus=schedule.hosts + len(schedule.pins),
        fabric=Transport.IPC,
        vcpus=tuple(vcpus),
        devices=(),
        loads=(),
        kvm=schedule.kvm,
        run=Run(warmup_ns=0, duration_ns=1, repeat=1, seed=0, watchdog_ns=0, drain_ns=0),
        expect=(),
    )


def no_guest(_cpu: LiveCpu, _vcpu: int) -> Any:
    raise AssertionError("a gated guest is its schedule")


def no_thread(_cpu: LiveCpu, _vcpu: int) -> None:
    raise AssertionError("a gated thread is run by its turns")


def no_record(_record: Record) -> None:
    """The turns are the record."""


class GatedWorld(GatedSteps):
    """A pCPU's local APIC, its wire and its guest."""

    def __init__(
        self, memory: Memory, net: Fabric, schedule: Schedule, pcpu: int, gate: Gate
    ) -> None:
        recorder = Recorder(memory, pcpu)
        cell = cell_of(schedule)
        super().__init__(memory, net, cell, pcpu, recorder, 0, no_guest, no_thread)
        self.note = no_record
        self.schedule = schedule
        self.gate = gate
        self.buffer = []
        self.deadline_written = 0
        self.on_the_wire: set[int] = set()  # vectors that have arrived here and not been taken
        for vcpu in range(len(schedule.pins)):
            self.add_vcpu(vcpu, None)
            self.vmcs[vcpu].guest.interrupt_flag = True

    def diverge(self, text: str, *, done: bool = False) -> None:
        """Live and model part here."""
        raise DivergedError(self.gate.number, text, done=done)

    # -- the wire and the local APIC ---------------------------------------------------------------

    def listen(self) -> None:
        """Take every message off the socket whose doorbell has rung."""
        deadline = monotonic_ns() + ARRIVE_NS
        while self._rung() != self.arrived:
            message = self.fabric.receive()
            if message is not None:
                self.arrived += 1
                self.on_the_wire.add(message[1])
            elif monotonic_ns() > deadline:
                self.diverge(f"a message to pcpu {self.pcpu} is missing")
            else:
                os.sched_yield()

    def accept_sent(self, vector: int) -> None:
        """Accept what another CPU has sent: it must have come as a message."""
        self.listen()
        if vector not in self.on_the_wire:
            self.diverge(f"pcpu {self.pcpu} has no message with vector {vector:#x}")
        self.on_the_wire.discard(vector)
        self.accept(vector)

    def accept(self, vector: int) -> None:
        """The local APIC presents `vector`, the CPU acknowledges it."""
        self.lapic.accept(vector)
        taken = self.lapic.acknowledge()
        assert taken == vector

    def accept_next(self) -> int:
        """In free running: accept the highest that has come, -1 if nothing has."""
        self.listen()
        if not self.on_the_wire:
            return -1
        vector = max(self.on_the_wire)
        self.on_the_wire.discard(vector)
        self.accept(vector)
        return vector

    # -- the guest ---------------------------------------------------------------------------------

    def guest_event(self, vcpu: int, turn: Turn) -> int:
        """What the schedule has the guest do."""
        vector, deadline, flag = turn.forced
        reason: int = turn.result
        if reason == NOTIFICATION:
            self.accept_sent(POSTED_INTR_VECTOR)
            return NOTIFICATION
        if reason == ExitReason.EXTERNAL_INTERRUPT:
            if vector in BY_WIRE:
                self.accept_sent(vector)
            else:
                self.accept(vector)
        self.deadline_written = deadline
        self.loaded.guest.interrupt_flag = flag
        return self._leave_guest(vcpu, reason, vector)

    def _leave_guest(self, vcpu: int, reason: int, vector: int) -> int:
        info = 0
        if reason == ExitReason.EXTERNAL_INTERRUPT:
            info = INFO_VALID | INFO_EXTERNAL_INTERRUPT | vector
        elif reason == ExitReason.PREEMPTION_TIMER:
            self.words[vcpu].hv_deadline.store(1)  # a deadline that the guest had set before
        return self.lp.vm_exit(reason, interruption_info=info)

    def guest_freely(self, vcpu: int) -> int:
        """The guest computes until the processor has something for it."""
        vapic = self.lp.vapic
        while True:
            self.gate.check_stop()
            vector = self.accept_next()
            if vector == POSTED_INTR_VECTOR:
                return NOTIFICATION
            if vector >= 0:
                return self._leave_guest(vcpu, ExitReason.EXTERNAL_INTERRUPT, vector)
            if vapic.recognised and self.loaded.guest.interrupt_flag:
                self.deliver()
            elif self.hv_timer_in_use(vcpu):
                return self._leave_guest(vcpu, ExitReason.PREEMPTION_TIMER, 0)
            else:
                os.sched_yield()

    def deliver(self) -> None:
        """The guest takes the virtual interrupt that RVI names, and ends it."""
        vapic = self.lp.vapic
        vapic.deliver()
        vapic.eoi_virtualization()
        assert self.page is not None
        self.page.write_back()
