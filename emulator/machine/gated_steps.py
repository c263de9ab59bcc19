"""The steps of a gated `Cpu` that are not `LiveCpu`'s: its store buffer, its clock, its devices.

Everything else is done as live, on the mapped file.  Time is the schedule's: a guest's deadline is
1, past, or 2, to come, and an armed timer is a word of the mapped file.  Nothing polls, nobody is
told over the wire that a thread can run: the schedule, or the idle loop, sees it in its task state.
Next: `gated` makes every call wait for its turn.
"""

from typing import Final

from emulator.events import Event
from emulator.hardware.vectors import FIRST_DEVICE_VECTOR, MSR_TSC_DEADLINE, Mode
from emulator.kvm.params import Bug, TaskState
from emulator.machine.gate import Schedule
from emulator.machine.live import LiveCpu
from emulator.machine.memory import V_SW_TIMER

BUFFER_DEPTH: Final = 2
PAST: Final = 1  # a deadline


class GatedSteps(LiveCpu):
    """`LiveCpu` in a world that a schedule makes."""

    schedule: Schedule
    buffer: list[tuple[int, str, int]]  # plain stores (vCPU, what, value), the oldest first
    deadline_written: int

    # -- plain stores ------------------------------------------------------------------------------

    def _store(self, vcpu: int, what: str, value: int) -> None:
        assert len(self.buffer) < BUFFER_DEPTH
        self.buffer.append((vcpu, what, value))

    def _buffered(self, vcpu: int, what: str) -> int | None:
        """The CPU's own last store that has not reached memory."""
        for stored in reversed(self.buffer):
            if stored[:2] == (vcpu, what):
                return stored[2]
        return None

    def drain(self) -> tuple[int, str, int]:
        """The oldest store reaches memory."""
        vcpu, what, value = self.buffer.pop(0)
        words = self.words[vcpu]
        word = {"mode": words.mode, "cpu": words.cpu, "state": words.task_state}[what]
        word.store(value)
        return vcpu, what, value

    def store_mode(self, vcpu: int, mode: Mode) -> None:
        if self.schedule.tso:
            self._store(vcpu, "mode", mode)
        else:
            super().store_mode(vcpu, mode)

    def load_mode(self, vcpu: int) -> int:
        own = self._buffered(vcpu, "mode")
        return super().load_mode(vcpu) if own is None else own

    def store_vcpu_cpu(self, vcpu: int, pcpu: int) -> None:
        if self.schedule.tso:
            self._store(vcpu, "cpu", pcpu)
        else:
            super().store_vcpu_cpu(vcpu, pcpu)

    def load_vcpu_cpu(self, vcpu: int) -> int:
        own = self._buffered(vcpu, "cpu")
        return super().load_vcpu_cpu(vcpu) if own is None else own

    def set_current_state(self, vcpu: int, state: TaskState) -> None:
        if self.schedule.tso and Bug.STATE_WITHOUT_FENCE in self.kvm.bugs:
            self._store(vcpu, "state", state)
        else:
            super().set_current_state(vcpu, state)

    # -- this pCPU ---------------------------------------------------------------------------------

    def _step(self) -> None:
        """The end of a step: interrupts come when the schedule says so."""

    def set_running_vcpu(self, vcpu: int) -> None:
        self.running = vcpu  # the VMCS is loaded with the thread

    def current_vmcs(self) -> int:
        return self.current

    def irqfd(self, vector: int) -> tuple[int, int]:
        return vector - FIRST_DEVICE_VECTOR, self.schedule.irq_vector

    def exit_msr(self) -> tuple[int, int]:
        return MSR_TSC_DEADLINE, self.deadline_written

    def skip_emulated_instruction(self) -> None:
        """The guest has no instructions."""

    def tell_runnable(self, pcpu: int, vcpu: int) -> None:
        """Its idle loop looks at the task state."""

    def trace(self, event: Event, vcpu: int, vector: int = 0, arg: int = 0) -> None:
        """The turns are the record."""

    def assign(self, assigned: bool) -> None:
        """The VM is given a device, or loses it: no step of the text."""
        for words in self.words:
            words.has_pi_sender.store(assigned)

    # -- the APIC timer ----------------------------------------------------------------------------

    def set_hv_timer(self, vcpu: int, deadline: int) -> bool:
        self.words[vcpu].hv_deadline.store(1)
        return deadline == PAST

    def cancel_hv_timer(self, vcpu: int) -> None:
        self.words[vcpu].hv_deadline.store(0)

    def hv_timer_in_use(self, vcpu: int) -> bool:
        return self.words[vcpu].hv_deadline.load() != 0

    def start_sw_timer(self, vcpu: int) -> bool:
        deadline: int = self.words[vcpu].tscdeadline.load()
        if deadline > PAST:
            self._sw_timer(vcpu, 1 + self.pcpu)
        return deadline == PAST

    def cancel_sw_timer(self, vcpu: int) -> None:
        self._sw_timer(vcpu, 0)

    def _sw_timer(self, vcpu: int, value: int) -> None:
        self.memory.view.store_u64(self.memory.vcpu(vcpu, V_SW_TIMER), value)

    def armed_here(self) -> int:
        """A vCPU whose hrtimer counts on this pCPU, -1 if there is none."""
        for vcpu in range(len(self.words)):
            at = self.memory.vcpu(vcpu, V_SW_TIMER)
            if self.memory.view.load_u64(at) == 1 + self.pcpu:
                return vcpu
        return -1

    def expired_sw_timer(self) -> int:
        vcpu = self.armed_here()
        if vcpu >= 0:
            self._sw_timer(vcpu, 0)
        return vcpu

    def lvtt_vector(self, vcpu: int) -> int:
        return self.schedule.timer_vector

    # -- halt polling: left out, it only delays blocking -------------------------------------------

    def halt_poll_start(self, vcpu: int) -> bool:
        return False

    def halt_poll_open(self, vcpu: int) -> bool:
        return False

    def halt_done(self, vcpu: int, waited: bool) -> None:
        pass
