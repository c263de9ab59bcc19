"""`LiveCpu`: the real world's `Cpu`.  Atomic instructions, messages, the clock.

Nothing here decides what the protocol should do: each method is the one step its name says, done
on the mapped file or on this pCPU's own state, and then a look at the interrupt window, so that a
host interrupt arrives between any two steps while interrupts are on, and only then.
"""

import os
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from typing import Final

import msgpack
from atomicshm import RELEASE

from emulator.config.model import Cell
from emulator.events import NO_VCPU, Event
from emulator.guest.program import Guest
from emulator.hardware.senders import PidPointerTable, ipi_virtualization
from emulator.hardware.vectors import RESCHEDULE_VECTOR, Mode
from emulator.hardware.vmcs import Activity
from emulator.kvm.params import MpState, Request, TaskState
from emulator.kvm.sched import preempt_schedule
from emulator.machine.fabric import Fabric
from emulator.machine.housekeeping import timer_vectors
from emulator.machine.linker import PLAIN, Text
from emulator.machine.memory import P_LIST, P_LIST_LOCK, V_SAVE, V_SAVE_BYTES, Memory, smp_mb
from emulator.machine.recorder import Recorder
from emulator.machine.scheduler import Scheduler
from emulator.machine.stats import Stat
from emulator.machine.timers import Timers
from emulator.machine.words import NOWHERE

# Plain integers: looking a member up through its class costs more than the step.
HOST_IRQ: Final = int(Event.HOST_IRQ)
RUNNING: Final = int(TaskState.RUNNING)
INTERRUPTIBLE: Final = int(TaskState.INTERRUPTIBLE)
SLEEPING: Final = int(TaskState.SLEEPING)


class LiveCpu(Timers):
    """One pCPU, as protocol text sees it (`kvm/cpu.py`), and the text that it executes."""

    __slots__ = (
        "_irq_target", "_pid_table", "at_safe_point", "make_guest", "preempt_count", "scheduler",
        "text",
    )  # fmt: skip

    def __init__(
        self,
        memory: Memory,
        fabric: Fabric,
        cell: Cell,
        pcpu: int,
        recorder: Recorder,
        arrived: int,
        make_guest: Callable[["LiveCpu", int], Guest],
        thread: Callable[["LiveCpu", int], None],
    ) -> None:
        super().__init__(memory, fabric, cell, pcpu, recorder, arrived)
        self.kvm = cell.kvm
        self.text: Text = PLAIN
        self.preempt_count = 0
        self.at_safe_point = True
        self.make_guest = partial(make_guest, self)
        self.scheduler = Scheduler(self, thread)
        self._poll_window = {}
        self._halts = {}
        self._timer_vectors = timer_vectors(cell)
        self._pid_table = PidPointerTable.of_vcpus(len(cell.vcpus))

    def send_virtual_ipi(self) -> None:
        assert self.guest is not None
        self.guest.pc += 1
        self.cause = self.guest.cause
        vector, target = self.lp.ipi
        sent = ipi_virtualization(self, vector, target, self._pid_table)
        assert sent, "a guest sends a legal vector to a vCPU of the table"

    # -- struct kvm_vcpu ---------------------------------------------------------------------------

    def store_mode(self, vcpu: int, mode: Mode) -> None:
        # A plain store, which may wait in the store buffer: the default order would be an exchange,
        # and the fence that follows it in vcpu_enter_guest() would prove nothing.
        self.words[vcpu].mode_store(mode, RELEASE)
        if self.irqs_on:
            self._step()

    def load_mode(self, vcpu: int) -> int:
        mode = self.words[vcpu].mode_load()
        if self.irqs_on:
            self._step()
        return mode

    def cmpxchg_mode(self, vcpu: int, old: Mode, new: Mode) -> int:
        found = self.words[vcpu].mode.cas(old, new)
        if self.irqs_on:
            self._step()
        return found

    def store_vcpu_cpu(self, vcpu: int, pcpu: int) -> None:
        self.words[vcpu].cpu.store(pcpu)
        if self.irqs_on:
            self._step()

    def load_vcpu_cpu(self, vcpu: int) -> int:
        pcpu = self.words[vcpu].cpu.load()
        if self.irqs_on:
            self._step()
        return pcpu

    def make_request(self, vcpu: int, request: Request) -> None:
        self.words[vcpu].requests.fetch_or(request)
        if self.irqs_on:
            self._step()

    def request_pending(self, vcpu: int) -> bool:
        pending = self.words[vcpu].requests.load()
        if self.irqs_on:
            self._step()
        return pending != 0

    def check_request(self, vcpu: int, request: Request) -> bool:
        was = self.words[vcpu].requests.fetch_and(~request & 0xFFFF_FFFF) & request
        if self.irqs_on:
            self._step()
        return was != 0

    def load_has_pi_sender(self, vcpu: int) -> bool:
        has = self.words[vcpu].has_pi_sender.load()
        if self.irqs_on:
            self._step()
        return has != 0

    def mp_state(self, vcpu: int) -> int:
        return self.words[vcpu].mp_state.load()

    def set_mp_state(self, vcpu: int, state: MpState) -> None:
        self.words[vcpu].mp_state.store(state)

    def running_vcpu(self) -> int:
        return self.running

    def set_running_vcpu(self, vcpu: int) -> None:
        """Loading a vCPU makes its VMCS current; nothing makes it less so (vmptrld)."""
        if vcpu < 0 and self.running >= 0:
            self.words[self.running].hv_deadline.store(self.hv_deadline)
            self.hv_deadline = 0
            # The next flush() is for the vCPU that runs then: leave this one's state behind now.
            assert self.page is not None
            self.page.write_back()
            self._publish_harvests(self.harvests)
        self.running = vcpu
        if vcpu >= 0:
            self.current = vcpu
            self.hv_deadline = self.words[vcpu].hv_deadline.load()
            self.set_alarm()
            self.loaded = self.vmcs[vcpu]
            self.page = self.words[vcpu].page
            self.guest = self.guests[vcpu]
            self.harvests = self.words[vcpu].harvests.load()
            self._publish_harvests = self.words[vcpu].harvests.store

    # -- interrupts and preemption of this pCPU ----------------------------------------------------

    def smp_processor_id(self) -> int:
        return self.pcpu

    def local_irq_disable(self) -> None:
        self.irqs_on = False

    def local_irq_enable(self) -> None:
        self.irqs_on = True
        self._straight_back = False
        self._step()

    def preempt_disable(self) -> None:
        self.preempt_count += 1

    def preempt_enable(self) -> None:
        self.preempt_count -= 1

    def smp_mb(self) -> None:
        smp_mb()
        if self.irqs_on:
            self._step()

    def host_work_pending(self) -> bool:
        return self.stopping or self.resched

    def need_resched(self) -> bool:
        self.at_safe_point = self.resched
        return self.resched

    def signal_pending(self) -> bool:
        return self.stopping

    def exit_interrupt_vector(self) -> int:
        vector = self.lp.exit_interruption_info & 0xFF
        self.accepted(vector)
        return vector

    def irqfd(self, vector: int) -> tuple[int, int]:
        load, _ = self.cause
        if not load:
            return -1, 0
        return self._irq_target, self.cell.loads[load - 1].vector

    def handle_irq(self, vector: int) -> None:
        """A host interrupt between two steps.  Its posts have a cause of their own."""
        outer = self.cause
        begin = monotonic_ns()
        self._store_busy(1)
        self.accepted(vector)
        self.text.do_irq(self, vector)
        self._store_busy(0)
        self.note((begin, monotonic_ns(), 0, HOST_IRQ, vector, self.pcpu, NO_VCPU, 0))
        self.cause = outer

    def accepted(self, vector: int) -> None:
        meta = self.pending.get(vector)
        self._irq_target = meta[0] if meta else -1
        super().accepted(vector)

    # -- tasks -------------------------------------------------------------------------------------

    def prepare_to_rcuwait(self, vcpu: int) -> None:
        self.words[vcpu].waiter.store(1)
        if self.irqs_on:
            self._step()

    def finish_rcuwait(self, vcpu: int) -> None:
        words = self.words[vcpu]
        words.task_state.store(RUNNING)
        words.waiter.store(0)
        if self.irqs_on:
            self._step()

    def vcpu_is_blocking(self, vcpu: int) -> bool:
        return self.words[vcpu].waiter.load() != 0

    def set_current_state(self, vcpu: int, state: TaskState) -> None:
        self.words[vcpu].task_state.exchange(state)
        if self.irqs_on:
            self._step()

    def rcuwait_wake_up(self, vcpu: int) -> bool:
        """try_to_wake_up(): a thread still on its pCPU only changes state; a sleeping one is
        queued where it last ran, and that pCPU is told.
        """
        smp_mb()
        words = self.words[vcpu]
        if not words.waiter.load():
            if self.irqs_on:
                self._step()
            return False
        state = words.task_state
        if state.cas(INTERRUPTIBLE, RUNNING) == INTERRUPTIBLE:
            if self.irqs_on:
                self._step()
            return True
        woken = state.load() == SLEEPING
        if woken:
            pcpu = self.scheduler.choose(vcpu)
            words.task_cpu.store(pcpu)
            woken = state.cas(SLEEPING, RUNNING) == SLEEPING
        if woken:
            self.stats[Stat.HALT_WAKEUP] += 1
            if pcpu != self.pcpu:
                self.tell_runnable(pcpu, vcpu)
        if self.irqs_on:
            self._step()
        return woken

    def deactivate_task(self, vcpu: int) -> bool:
        # A sleeper's stack holds nothing that the head of the run loop would not find again.
        self.at_safe_point = True
        gone = self.words[vcpu].task_state.cas(INTERRUPTIBLE, SLEEPING) == INTERRUPTIBLE
        if self.irqs_on:
            self._step()
        return gone

    def context_switch(self, vcpu: int) -> None:
        self.scheduler.leave(self.words[vcpu].preempted.load() != 0)

    def set_preempted(self, vcpu: int, preempted: bool) -> None:
        self.words[vcpu].preempted.store(preempted)

    # -- the wake-up lists -------------------------------------------------------------------------

    def wakeup_list_lock(self, pcpu: int) -> None:
        lock = self.memory.u32(self.memory.pcpu(pcpu, P_LIST_LOCK))
        while lock.cas(0, 1):
            os.sched_yield()

    def wakeup_list_unlock(self, pcpu: int) -> None:
        self.memory.u32(self.memory.pcpu(pcpu, P_LIST_LOCK)).store(0)
        if self.irqs_on:
            self._step()

    def wakeup_list_add(self, pcpu: int, vcpu: int) -> None:
        self.wakeup_list_lock(pcpu)
        word = self.memory.u64(self.memory.pcpu(pcpu, P_LIST) + 8 * (vcpu >> 6))
        word.fetch_or(1 << (vcpu & 63))
        self.wakeup_list_unlock(pcpu)

    def wakeup_list_del(self, pcpu: int, vcpu: int) -> None:
        self.wakeup_list_lock(pcpu)
        word = self.memory.u64(self.memory.pcpu(pcpu, P_LIST) + 8 * (vcpu >> 6))
        word.fetch_and(~(1 << (vcpu & 63)) & 0xFFFF_FFFF_FFFF_FFFF)
        self.wakeup_list_unlock(pcpu)

    def wakeup_list_next(self, pcpu: int, after: int) -> int:
        base = self.memory.pcpu(pcpu, P_LIST)
        listed = int.from_bytes(self.memory.buffer[base : base + 32], "little")
        listed = listed >> (after + 1) << (after + 1)
        return (listed & -listed).bit_length() - 1

    def pre_pcpu(self, vcpu: int) -> int:
        pcpu = self.words[vcpu].pre_pcpu.load()
        return -1 if pcpu == NOWHERE else pcpu

    def set_pre_pcpu(self, vcpu: int, pcpu: int) -> None:
        self.words[vcpu].pre_pcpu.store(NOWHERE if pcpu < 0 else pcpu)

    # -- tracing -----------------------------------------------------------------------------------

    def trace(self, event: Event, vcpu: int, vector: int = 0, arg: int = 0) -> None:
        self.note((monotonic_ns(), arg, 0, event, vector, self.pcpu, vcpu, self.cause[0]))

    def tell_runnable(self, pcpu: int, vcpu: int) -> None:
        """ttwu_queue(): the other pCPU's idle loop must look at its run queue."""
        self.post_ipi(pcpu, RESCHEDULE_VECTOR, vcpu)

    # -- the scheduler -----------------------------------------------------------------------------

    def window(self) -> None:
        """Interrupts are on between two steps; the last of their handlers may end a slice."""
        super().window()
        if (
            self.resched
            and self.irqs_on
            and self.running >= 0
            and not self.preempt_count
            and not self.stopping
        ):
            self.at_safe_point = False  # in mid-function: this stack must be gone back to
            self.preempt()

    def preempt(self) -> None:
        """The slice of this pCPU's thread is over."""
        preempt_schedule(self, self.running)

    def set_slice(self, end: int) -> None:
        """The current thread's time runs until `end`, ns; 0: for ever."""
        self.slice_end = end
        self.resched = False
        self.set_alarm()

    def take_over(self, vcpu: int, *, fresh: bool) -> None:
        """Get a vCPU ready to be loaded here: the first time, or after it was elsewhere."""
        if vcpu not in self.guests:
            self.add_vcpu(vcpu, self.make_guest(vcpu))
        if not fresh:
            base = self.memory.vcpu(vcpu, V_SAVE)
            size = self.memory.view.load_u32(base)
            saved = bytes(self.memory.buffer[base + 4 : base + 4 + size])
            guest, vmcs, self._poll_window[vcpu] = msgpack.unpackb(saved)
            self.guests[vcpu].restore(guest)
            loaded = self.vmcs[vcpu]
            loaded.rvi, loaded.svi, loaded.entry_interruption_info, flag, shadow, activity = vmcs
            state = loaded.guest
            state.interrupt_flag, state.interruptibility = flag, shadow
            state.activity = Activity(activity)
            self.words[vcpu].page.read_back()
            if self.inhibits:
                self.refresh_apicv_exec_ctrl(vcpu, self.apicv_active(vcpu))
                self.words[vcpu].requests.fetch_or(Request.EVENT)  # its window stayed behind

    def hand_over(self, vcpu: int) -> None:
        """Leave a vCPU where another pCPU can take it over."""
        self.last_exits.pop(vcpu, None)  # where it enters next is another pCPU's record
        self.flush()
        self.words[vcpu].page.write_back()
        vmcs = self.vmcs[vcpu]
        state = vmcs.guest
        saved = msgpack.packb(
            (
                self.guests[vcpu].save(),
                (vmcs.rvi, vmcs.svi, vmcs.entry_interruption_info, state.interrupt_flag,
                 state.interruptibility, int(state.activity)),
                self._poll_window.get(vcpu, 0),
            )
        )  # fmt: skip
        assert len(saved) <= V_SAVE_BYTES - 4
        base = self.memory.vcpu(vcpu, V_SAVE)
        self.memory.view.store_u32(base, len(saved))
        self.memory.buffer[base + 4 : base + 4 + len(saved)] = saved
