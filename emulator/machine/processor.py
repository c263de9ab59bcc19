"""One physical CPU's hardware, live: its local APIC fed from the fabric, its clock, its guest.

What protocol text sees of all this is `live.LiveCpu`, built on top.  Here are the parts that no
text decides: taking messages off the socket, running guest instructions, idling.

Vectors are folded into the local APIC at once: a LAPIC coalesces, a queue would show what
hardware cannot.
"""

import os
from array import array
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

from emulator.config.model import Cell
from emulator.events import NO_VCPU, Event, Met
from emulator.guest.program import Guest
from emulator.hardware.cpu import NOTIFICATION
from emulator.hardware.instructions import IPI
from emulator.hardware.lapic import LocalApic
from emulator.hardware.vectors import (
    LOCAL_TIMER_VECTOR,
    POSTED_INTR_NESTED_VECTOR,
    POSTED_INTR_VECTOR,
    POSTED_INTR_WAKEUP_VECTOR,
    RESCHEDULE_VECTOR,
    ExitReason,
)
from emulator.hardware.vmcs import Vmcs
from emulator.hardware.vmx import LogicalProcessor
from emulator.kvm.params import TaskState
from emulator.machine.controls import intercepted_msrs, kvm_controls
from emulator.machine.fabric import CMD_STOP, Fabric, Message
from emulator.machine.housekeeping import RemoteTimers
from emulator.machine.memory import (
    P_ARRIVED,
    P_BUSY,
    P_RUNG,
    P_STATS,
    STATS_MAX,
    Memory,
    SharedApicPage,
)
from emulator.machine.recorder import PENDING_MAX, Recorder
from emulator.machine.stats import Stat
from emulator.machine.words import all_words

IRQ_STATS: Final = {
    POSTED_INTR_VECTOR: Stat.IRQ_PIN,
    POSTED_INTR_NESTED_VECTOR: Stat.IRQ_NPI,
    POSTED_INTR_WAKEUP_VECTOR: Stat.IRQ_PIW,
    RESCHEDULE_VECTOR: Stat.IRQ_RES,
    LOCAL_TIMER_VECTOR: Stat.IRQ_LOC,
}

# Plain integers: looking a member up through its class costs CPython 3.11 a tenth of a microsecond.
NOTIFY: Final = int(Event.NOTIFY)
ARRIVE: Final = int(Event.ARRIVE)
ARRIVE_MERGED: Final = int(Event.ARRIVE_MERGED)
ACCEPT: Final = int(Event.ACCEPT)
DELIVER: Final = int(Event.DELIVER)
EOI: Final = int(Event.EOI)
SELF_IPI: Final = int(Event.SELF_IPI)
EXIT: Final = int(Event.EXIT)
LOOKS: Final = int(Stat.LOOKS)

IDLE_MAX_S: Final = 0.5  # an idle pCPU looks up this often whatever happens
FLIGHT_LOOKS: Final = 2000  # then go on without it: 2 ms or more, its sender has lost its core
PREEMPTION_TIMER: Final = int(ExitReason.PREEMPTION_TIMER)

Meta = tuple[int, int, int, int]
"""What came with a pending vector: (vCPU meant, message id, load, due ns)."""


class Processor:
    """The hardware half of a pCPU process.  Implements `guest.Platform` and `vmx.Idt`."""

    __slots__ = (
        "_controls", "_entry_ts", "_ids", "_publish_harvests", "_rung",
        "_store_arrived", "_store_busy", "_straight_back", "alarm", "arrived", "cause", "cell",
        "current", "fabric", "fastpath_reenter", "guest", "guests", "harvests", "housekeeping",
        "hv_deadline", "inhibits", "irqs_on", "lapic", "last_exits", "loaded", "lp", "memory",
        "note", "page", "pcpu", "pending", "published", "recorder", "remote_timers", "resched",
        "running", "slice_end", "stats", "stopping", "sw_timers", "syncs_off", "syncs_on", "vmcs",
        "words",
    )  # fmt: skip

    def __init__(
        self,
        memory: Memory,
        fabric: Fabric,
        cell: Cell,
        pcpu: int,
        recorder: Recorder,
        arrived: int,
    ) -> None:
        """`arrived`: how many messages the process had taken before it became a CPU."""
        self.cell = cell
        self.memory = memory
        self.fabric = fabric
        self.pcpu = pcpu
        self.recorder = recorder
        self.note = recorder.append
        self.words = all_words(memory)
        self.lapic = LocalApic(pcpu)
        self.lp = LogicalProcessor(self.lapic, self)
        self.vmcs: dict[int, Vmcs] = {}
        self.loaded: Vmcs  # the current one, its page, its guest
        self.page: SharedApicPage | None = None
        self.guests: dict[int, Guest] = {}
        self.guest: Guest | None = None
        self.current = -1  # the vCPU whose VMCS is current
        self.running = -1  # per-pCPU kvm_running_vcpu
        self.irqs_on, self.stopping = True, False
        self.hv_deadline = 0  # VMX preemption timer, ns; 0 = off
        self.slice_end = 0  # when the current thread's slice is over, ns; 0 = never
        self.alarm = 0  # the earliest timer that must interrupt the guest, 0 = none
        self.resched = False  # TIF_NEED_RESCHED
        self.sw_timers: dict[int, int] = {}  # hrtimers of this pCPU: vCPU -> deadline ns
        self._controls = kvm_controls(cell.kvm)
        self.inhibits = cell.kvm.apicv_inhibit_ns != 0
        self.remote_timers = RemoteTimers(memory)
        self.housekeeping = cell.housekeeping == pcpu  # exitless timers count here
        self.pending: dict[int, Meta] = {}
        self.cause = (0, 0)  # what the post under way is for: (load, due ns)
        self._rung = memory.u64(memory.pcpu(pcpu, P_RUNG)).load
        self._store_arrived = memory.u64(memory.pcpu(pcpu, P_ARRIVED)).store
        self._store_busy = memory.u64(memory.pcpu(pcpu, P_BUSY)).store
        self.arrived = arrived
        self._ids = pcpu << 40
        self._publish_harvests: Callable[[int], None]
        self.harvests = self.syncs_on = self.syncs_off = self.fastpath_reenter = 0
        self._entry_ts = 0
        self.last_exits: dict[int, tuple[int, int]] = {}  # vCPU -> (when, why), not yet recorded
        self._straight_back = False
        base = memory.pcpu(pcpu, P_STATS)
        self.published = memory.buffer[base : base + 8 * STATS_MAX].cast("Q")
        self.stats = array("Q", bytes(8 * STATS_MAX))

    # -- the fabric -> the local APIC --------------------------------------------------------------

    def flush(self) -> None:
        """Publish what was kept back while there was something better to do."""
        if not self.recorder.pending:
            return
        self.recorder.flush()
        stats = self.stats
        stats[Stat.SYNCS_ON] = self.syncs_on
        stats[Stat.SYNCS_OFF] = self.syncs_off
        stats[Stat.FASTPATH_REENTER] = self.fastpath_reenter
        if self.page is not None:
            self.page.write_back()
            self._publish_harvests(self.harvests)
        self.published[:] = stats

    def look(self) -> bool:
        """Take what has arrived off the socket; false if nothing had."""
        self.stats[LOOKS] += 1
        message = self.fabric.receive()
        if message is None:
            return False
        while message is not None:
            self._take(message)
            # Stop when the doorbell says that this was all: an empty look costs more.
            if self._rung() == self.arrived:
                return True
            message = self.fabric.receive()
        return True

    def await_flight(self) -> bool:
        """A vector is on its way here and could be taken: wait for it; true once it has come.

        The doorbell is the wire, the message says what came over it.  A vector takes 1 us on
        silicon and 40 here, in which this CPU would do forty times too much; so it does nothing,
        and the vector arrives at the very step at which the doorbell rang.  The I/O threads that
        carry it get the core meanwhile.
        """
        for _ in range(FLIGHT_LOOKS):
            if self.look():
                return True
            os.sched_yield()
        return False

    def _take(self, message: Message) -> None:
        self.arrived += 1
        self._store_arrived(self.arrived)
        vector = message[1]
        if vector < 0:
            self.command(message)
            return
        _, _, _, vcpu, ref, begin, load, due = message
        merged = not self.lapic.accept(vector)
        if not merged:
            self.pending[vector] = (vcpu, ref, load, due)
        kind = ARRIVE_MERGED if merged else ARRIVE
        self.note((monotonic_ns(), begin, ref, kind, vector, self.pcpu, vcpu, load))

    def command(self, message: Message) -> None:
        """A command of the launcher that came while the pCPU runs."""
        if message[1] == CMD_STOP:
            self.stopping = True
            self.lapic.accept(RESCHEDULE_VECTOR)  # a signal reaches a guest by an interrupt
            self.pending[RESCHEDULE_VECTOR] = (NO_VCPU, 0, 0, 0)

    def post_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        """The ICR write: ring the doorbell, send the message.  Recorded with begin and end."""
        self._ids += 1
        ref = self._ids
        load, due = self.cause
        begin = monotonic_ns()
        self.fabric.send(pcpu, (1, vector, self.pcpu, vcpu, ref, begin, load, due))
        self.note((begin, monotonic_ns(), ref, NOTIFY, vector, self.pcpu, vcpu, load))

    # -- interrupts in root mode -------------------------------------------------------------------

    def window(self) -> None:
        """Interrupts are on, between two steps: take what the local APIC presents."""
        if self._rung() != self.arrived:
            self.await_flight()
        if self.sw_timers or self.slice_end:
            self._fire_timers()
        while self.irqs_on and self.lapic.irr and self.lapic.pending():
            self.irqs_on = False
            vector = self.lapic.acknowledge()
            self.handle_irq(vector)
            self.lapic.eoi()
            self.irqs_on = True

    def _fire_timers(self) -> None:
        """The host's own timers, if one is due: an interrupt of this pCPU."""
        now = monotonic_ns()
        if self.slice_end and now >= self.slice_end:
            self.slice_end = 0
            self.resched = True
            self.lapic.accept(LOCAL_TIMER_VECTOR)
        elif any(deadline <= now for deadline in self.sw_timers.values()):
            self.lapic.accept(LOCAL_TIMER_VECTOR)
        self.set_alarm()

    def set_alarm(self) -> None:
        """When a timer of this pCPU next interrupts the guest."""
        if not self.sw_timers and not self.slice_end:
            self.alarm = self.hv_deadline
            return
        ends = [*self.sw_timers.values(), self.slice_end, self.hv_deadline]
        self.alarm = min((end for end in ends if end), default=0)

    def handle_irq(self, vector: int) -> None:
        """Run the host's handler; `live` supplies it."""
        raise NotImplementedError

    def accepted(self, vector: int) -> None:
        """Root mode took `vector`: count it, and say what it met."""
        self.stats[IRQ_STATS.get(vector, Stat.IRQ_DEVICE)] += 1
        meta = self.pending.pop(vector, None)
        if meta is None:
            return
        vcpu, ref, load, due = meta
        self.cause = (load, due)
        if vector == POSTED_INTR_VECTOR:
            now = monotonic_ns()
            self.note((now, self._met(vcpu), ref, ACCEPT, vector, self.pcpu, vcpu, load))

    def _met(self, vcpu: int) -> Met:
        if self.running not in (-1, vcpu):
            return Met.OTHER_VCPU
        words = self.words[vcpu]
        if words.waiter.load() and words.task_state.load() != TaskState.RUNNING:
            return Met.ROOT_BLOCKED
        if self.running == vcpu or words.cpu.load() == self.pcpu:
            return Met.ROOT_RUNNABLE
        return Met.OTHER_VCPU

    def idle(self) -> None:
        """Nothing to run: wait for a message or an hrtimer, and take the interrupts."""
        self.flush()
        timeout = IDLE_MAX_S
        if self.sw_timers:
            first = min(self.sw_timers.values())
            timeout = min(timeout, max(0.0, (first - monotonic_ns()) * 1e-9))
        if self.housekeeping:
            left = self.remote_timers.wait_s(monotonic_ns())
            if not left:
                self.lapic.accept(LOCAL_TIMER_VECTOR)
            timeout = min(timeout, left)
        if not self.look() and timeout:
            self.fabric.wait(timeout)
        self.window()

    # -- non-root operation ------------------------------------------------------------------------

    def vm_entry(self, vcpu: int) -> None:
        if self._straight_back:
            self.fastpath_reenter += 1
        self._entry_ts = monotonic_ns()
        self.lp.vm_entry(self.loaded)

    def non_root_event(self, vcpu: int) -> int:
        """The guest, an instruction at a time, up to a notification or an exit."""
        lp = self.lp
        assert self.guest is not None
        outcome = lp.boundary()
        rung = self._rung
        guest = self.guest
        while outcome is None:
            if rung() != self.arrived and self.await_flight():
                pass
            elif self.alarm and monotonic_ns() >= self.alarm:
                if self.hv_deadline == self.alarm:
                    outcome = lp.vm_exit(PREEMPTION_TIMER)
                    break
                self._fire_timers()
            elif lp.guest.activity:
                self._halted_in_guest()
            else:
                execute, target = guest.code[guest.pc]
                outcome = execute(target)
                if outcome is not None:
                    if outcome > 0:
                        break
                    assert outcome == IPI, "a guest program raised #GP"
                    self.send_virtual_ipi()
            outcome = lp.boundary()
        if outcome == NOTIFICATION:
            self._accepted_in_guest()
            return NOTIFICATION
        self._exited(outcome)
        return outcome

    def send_virtual_ipi(self) -> None:
        """Post the IPI that the guest's ICR write asks for, without an exit; `live` does it."""
        raise NotImplementedError

    def _exited(self, reason: int) -> None:
        """Account for this vCPU's exit before this one, whose end the entry was."""
        vcpu = self.current
        last = self.last_exits.get(vcpu)
        if last is not None:
            self.note((last[0], self._entry_ts, last[1], EXIT, 0, self.pcpu, vcpu, 0))
        if len(self.recorder.pending) > PENDING_MAX:
            self.flush()
        self.last_exits[vcpu] = (monotonic_ns(), reason)
        self._straight_back = True
        self.stats[reason] += 1

    def _accepted_in_guest(self) -> None:
        meta = self.pending.pop(POSTED_INTR_VECTOR, None)
        if meta is None:
            return
        vcpu, ref, load, _ = meta
        met = Met.IN_GUEST if vcpu == self.current else Met.OTHER_VCPU
        now = monotonic_ns()
        self.note((now, met, ref, ACCEPT, POSTED_INTR_VECTOR, self.pcpu, vcpu, load))

    def _halted_in_guest(self) -> None:
        """HLT without an exit: the processor waits where it is."""
        self.flush()
        timeout = IDLE_MAX_S
        if self.alarm:
            timeout = max(0.0, (self.alarm - monotonic_ns()) * 1e-9)
        if not self.look() and timeout:
            self.fabric.wait(timeout)

    # -- guest.Platform and vmx.Idt ----------------------------------------------------------------

    def rdtsc(self) -> int:
        return monotonic_ns()

    def pause(self) -> None:
        # A spinner must let its own I/O thread have the core: the p99 of a hop on two cores
        # falls from milliseconds to 50 us, and its median too.
        self.flush()
        os.sched_yield()

    def on_self_ipi(self, vector: int, load: int, due: int) -> None:
        assert self.page is not None
        if self.inhibits and not self.lp.controls.virtual_interrupt_delivery:
            return  # the write exits, and is a post
        was = self.page.virr >> vector & 1
        self.note((monotonic_ns(), due, was, SELF_IPI, vector, self.pcpu, self.current, load))

    def on_eoi(self, vector: int) -> None:
        if self.inhibits and not self.lp.controls.virtual_interrupt_delivery:
            return  # the write exits: recorded by `clear_visr`
        self.note((monotonic_ns(), 0, 0, EOI, vector, self.pcpu, self.current, 0))

    def interrupt(self, vector: int) -> None:
        self.note((monotonic_ns(), 0, 0, DELIVER, vector, self.pcpu, self.current, 0))
        assert self.guest is not None
        self.guest.interrupt(vector)

    def add_vcpu(self, vcpu: int, guest: Any) -> None:
        """Give this pCPU a vCPU to run."""
        vmcs = Vmcs(self._controls, self.words[vcpu].page)
        vmcs.nv = POSTED_INTR_VECTOR
        vmcs.msr_write_intercepts = intercepted_msrs(self.cell.kvm)
        vmcs.guest.interrupt_flag = False
        self.vmcs[vcpu] = vmcs
        self.guests[vcpu] = guest
