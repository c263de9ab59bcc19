"""`ModelCpu`: the third implementation of `Cpu`.  This is the host kernel's half.

See `model_hardware`, which has the rest and says how it works.
"""

from typing import NoReturn

from emulator.checker import memory as slot
from emulator.checker.claims import Claim, Sometimes
from emulator.checker.model_hardware import ModelHardware
from emulator.hardware.cpu import Control
from emulator.hardware.vectors import FIRST_DEVICE_VECTOR, MSR_TSC_DEADLINE, Mode
from emulator.kvm.params import MpState, Request, TaskState

_RUNNING = TaskState.RUNNING.value
_INTERRUPTIBLE = TaskState.INTERRUPTIBLE.value
_SLEEPING = TaskState.SLEEPING.value


class ModelCpu(ModelHardware):
    """What the kernel's primitives do to the simulated memory."""

    # -- the PI descriptor, as software uses it --------------------------------------------------

    def pi_test_on(self, vcpu: int) -> bool:
        if self.tso and self.me == vcpu and self.m[self._p[self.c] + slot.FIRST]:
            self.seen.add(Sometimes.BUFFERED)
        return bool(self.m[self._v[vcpu] + slot.ON])

    def pi_is_pir_empty(self, vcpu: int) -> bool:
        return not self.m[self._v[vcpu] + slot.PIR]

    def pi_read_control(self, vcpu: int) -> Control:
        return self._control(vcpu)

    def pi_set_on(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.ON] = 1

    def pi_set_sn(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.SN] = 1

    def pi_clear_sn(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.SN] = 0

    def pi_update_control(self, vcpu: int, nv: int, ndst: int, sn: bool) -> bool:
        m, v = self.m, self._v[vcpu]
        m[v + slot.NV], m[v + slot.SN] = nv, int(sn)
        if ndst >= 0:
            m[v + slot.NDST] = ndst
        return bool(m[v + slot.ON])

    # -- the virtual APIC, from the host ---------------------------------------------------------

    def find_highest_virr(self, vcpu: int) -> int:
        if self.minds_elision:  # the last of vmx_sync_pir_to_irr()
            self.m[self._v[vcpu] + slot.ELIDED] = 0
        return int(self._vector[self.m[self._v[vcpu] + slot.VIRR].bit_length()])

    def set_rvi(self, vector: int) -> None:
        self.m[self._v[self.current_vmcs()] + slot.RVI] = self._vector.index(vector)

    # -- struct kvm_vcpu ------------------------------------------------------------------------

    def store_mode(self, vcpu: int, mode: Mode) -> None:
        self._store(self._v[vcpu] + slot.MODE, mode.value)

    def load_mode(self, vcpu: int) -> int:
        return self._load(self._v[vcpu] + slot.MODE)

    def cmpxchg_mode(self, vcpu: int, old: Mode, new: Mode) -> int:
        assert self.kickers, "load_mode() of the own mode was taken for private"
        mode = self._v[vcpu] + slot.MODE
        found = int(self.m[mode])
        if found == old:
            self.m[mode] = new.value
        return found

    def store_vcpu_cpu(self, vcpu: int, pcpu: int) -> None:
        self._store(self._v[vcpu] + slot.CPU, pcpu)

    def load_vcpu_cpu(self, vcpu: int) -> int:
        return self._load(self._v[vcpu] + slot.CPU)

    def make_request(self, vcpu: int, request: Request) -> None:
        assert self.requesters, "vcpu->requests was taken for private"
        self.m[self._v[vcpu] + slot.REQUESTS] |= request.value

    def request_pending(self, vcpu: int) -> bool:
        return bool(self.m[self._v[vcpu] + slot.REQUESTS])

    def check_request(self, vcpu: int, request: Request) -> bool:
        found = bool(self.m[self._v[vcpu] + slot.REQUESTS] & request)
        self.m[self._v[vcpu] + slot.REQUESTS] &= ~request.value
        return found

    def load_has_pi_sender(self, vcpu: int) -> bool:
        return bool(self.m[slot.ASSIGNED])

    def mp_state(self, vcpu: int) -> int:
        return int(self.m[self._v[vcpu] + slot.MP])

    def set_mp_state(self, vcpu: int, state: MpState) -> None:
        self.m[self._v[vcpu] + slot.MP] = state.value

    def running_vcpu(self) -> int:
        return int(self.m[self._p[self.c] + slot.RUNNING])

    def set_running_vcpu(self, vcpu: int) -> None:
        self.m[self._p[self.c] + slot.RUNNING] = vcpu

    def interrupt_allowed(self, vcpu: int) -> bool:
        return bool(self.m[self._v[vcpu] + slot.GUEST_IF])

    def exit_msr(self) -> tuple[int, int]:
        return MSR_TSC_DEADLINE, int(self.m[self._p[self.c] + slot.EXIT_MSR])

    def skip_emulated_instruction(self) -> None:
        self.m[self._p[self.c] + slot.EXIT_MSR] = 0  # nobody asks any more

    # -- APICv is never inhibited here: no scenario sets `kvm.apicv_inhibit_ns` -------------------

    def apicv_inhibited(self) -> bool:
        return False

    def store_apicv_inhibited(self, inhibited: bool) -> None:
        assert not inhibited, "no scenario inhibits APICv"

    def apicv_active(self, vcpu: int) -> bool:
        return True

    def store_apicv_active(self, vcpu: int, active: bool) -> None:
        assert active, "no scenario inhibits APICv"

    def lapic_set_irr(self, vcpu: int, vector: int) -> NoReturn:
        raise AssertionError("no scenario inhibits APICv")

    def lapic_merge_irr(self, vcpu: int) -> None:
        pass  # nobody has set anything

    def refresh_apicv_exec_ctrl(self, vcpu: int, active: bool) -> NoReturn:
        raise AssertionError("no scenario inhibits APICv")

    def find_highest_visr(self, vcpu: int) -> NoReturn:
        raise AssertionError("the model has no in-service register")

    def clear_visr(self, vcpu: int, vector: int) -> NoReturn:
        raise AssertionError("the model has no in-service register")

    def set_svi(self, vector: int) -> NoReturn:
        raise AssertionError("the model has no in-service register")

    def inject_irq(self, vcpu: int, vector: int) -> NoReturn:
        raise AssertionError("no scenario inhibits APICv")

    def interrupt_injected(self, vcpu: int) -> bool:
        return False

    def enable_irq_window(self, vcpu: int) -> NoReturn:
        raise AssertionError("no scenario inhibits APICv")

    def disable_irq_window(self, vcpu: int) -> NoReturn:
        raise AssertionError("no scenario inhibits APICv")

    # -- interrupts and preemption --------------------------------------------------------------

    def smp_processor_id(self) -> int:
        return self.c

    def local_irq_disable(self) -> None:
        self.m[self._p[self.c] + slot.IRQS_OFF] = 1

    def local_irq_enable(self) -> None:
        self.m[self._p[self.c] + slot.IRQS_OFF] = 0

    def preempt_disable(self) -> None:
        self.m[self._p[self.c] + slot.PREEMPT_COUNT] += 1

    def preempt_enable(self) -> None:
        self.m[self._p[self.c] + slot.PREEMPT_COUNT] -= 1

    def smp_mb(self) -> None:
        pass  # locked: `blocked` has waited until the store buffer was empty

    def host_work_pending(self) -> bool:
        return False

    def need_resched(self) -> bool:
        return False  # preemption comes between two steps, of its own accord: choices.preemptible

    def signal_pending(self) -> bool:
        return False

    def exit_interrupt_vector(self) -> int:
        p = self._p[self.c] + slot.EXIT_VECTOR
        vector = int(self.m[p])
        self.m[p] = 0
        return vector

    def irqfd(self, vector: int) -> tuple[int, int]:
        return vector - FIRST_DEVICE_VECTOR, self.scenario.irq_vector

    # -- tasks ----------------------------------------------------------------------------------

    def prepare_to_rcuwait(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.WAITING] = 1

    def finish_rcuwait(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.WAITING] = 0
        self.m[self._v[vcpu] + slot.STATE] = _RUNNING

    def vcpu_is_blocking(self, vcpu: int) -> bool:
        return bool(self.m[self._v[vcpu] + slot.WAITING])

    def set_current_state(self, vcpu: int, state: TaskState) -> None:
        if self._plain_state:  # the museum's __set_current_state(): the barrier taken away
            self._store(self._v[vcpu] + slot.STATE, state.value)
        else:
            self.m[self._v[vcpu] + slot.STATE] = state.value

    def rcuwait_wake_up(self, vcpu: int) -> bool:
        m, v = self.m, self._v[vcpu]
        if m[v + slot.STATE] == _RUNNING:
            return False
        assert m[v + slot.WAITING], "asleep, and nobody registered"
        m[v + slot.STATE] = _RUNNING
        self.seen.add(Sometimes.WOKEN)
        if self._counting:
            m[slot.WOKEN] += 1
        if not m[v + slot.GUEST_IF]:
            self.broken(Claim.NO_NEEDLESS_WAKE, f"vCPU {vcpu} woken for what it cannot take")
        return True

    def deactivate_task(self, vcpu: int) -> bool:
        state = self._v[vcpu] + slot.STATE
        if self.m[state] != _INTERRUPTIBLE:
            return False
        self.m[state] = _SLEEPING
        self.seen.add(Sometimes.SLEPT)
        self.has_synced(vcpu, "sleeps")
        return True

    def context_switch(self, vcpu: int) -> NoReturn:
        raise AssertionError("see choices.switches")

    def switched_in(self, vcpu: int, pcpu: int) -> None:
        """context_switch() returns on `pcpu`."""
        if pcpu != self.m[self._v[vcpu] + slot.CPU]:
            self.seen.add(Sometimes.MIGRATED)
        self.c = pcpu

    def set_preempted(self, vcpu: int, preempted: bool) -> None:
        pass  # the text hands it on as an argument; nobody else reads it

    # -- the list of blocked vCPUs --------------------------------------------------------------

    def wakeup_list_add(self, pcpu: int, vcpu: int) -> None:
        where = self._p[pcpu] + slot.LIST
        if self.m[where] & 1 << vcpu:
            self.broken(
                Claim.LIST_AGREES_WITH_NV, f"vCPU {vcpu} added twice to the list of pCPU {pcpu}"
            )
        self.m[where] |= 1 << vcpu

    def wakeup_list_del(self, pcpu: int, vcpu: int) -> None:
        where = self._p[pcpu] + slot.LIST
        if not self.m[where] & 1 << vcpu:
            self.broken(Claim.LIST_AGREES_WITH_NV, f"vCPU {vcpu} is not on the list of pCPU {pcpu}")
        self.m[where] &= ~(1 << vcpu)

    def wakeup_list_lock(self, pcpu: int) -> None:
        self.m[self._p[pcpu] + slot.LOCK] = 1
        self.seen.add(Sometimes.ARMED)

    def wakeup_list_next(self, pcpu: int, after: int) -> int:
        rest = self.m[self._p[pcpu] + slot.LIST] >> (after + 1)
        return after + (rest & -rest).bit_length() if rest else -1

    def wakeup_list_unlock(self, pcpu: int) -> None:
        self.m[self._p[pcpu] + slot.LOCK] = 0

    def pre_pcpu(self, vcpu: int) -> int:
        return int(self.m[self._v[vcpu] + slot.PRE_PCPU])

    def set_pre_pcpu(self, vcpu: int, pcpu: int) -> None:
        self.m[self._v[vcpu] + slot.PRE_PCPU] = pcpu

    # -- the APIC timer: a deadline is 1 (past) or 2 (to come) ------------------------------------

    def set_hv_timer(self, vcpu: int, deadline: int) -> bool:
        self.m[self._v[vcpu] + slot.HV_TIMER] = 1
        return deadline == 1

    def cancel_hv_timer(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.HV_TIMER] = 0

    def hv_timer_in_use(self, vcpu: int) -> bool:
        return bool(self.m[self._v[vcpu] + slot.HV_TIMER])

    def start_sw_timer(self, vcpu: int) -> bool:
        deadline = self.m[self._v[vcpu] + slot.DEADLINE]
        if deadline > 1:
            self.m[self._v[vcpu] + slot.SW_TIMER] = 1 + self.c
        return bool(deadline == 1)

    def cancel_sw_timer(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.SW_TIMER] = 0

    def tscdeadline(self, vcpu: int) -> int:
        return int(self.m[self._v[vcpu] + slot.DEADLINE])

    def set_tscdeadline(self, vcpu: int, deadline: int) -> None:
        self.m[self._v[vcpu] + slot.DEADLINE] = deadline

    def lvtt_vector(self, vcpu: int) -> int:
        return self.scenario.timer_vector

    def timer_pending_inc(self, vcpu: int) -> None:
        assert self.timers, "lapic_timer.pending was taken for private"
        self.m[self._v[vcpu] + slot.TIMER_PENDING] = 1

    def timer_pending(self, vcpu: int) -> bool:
        return bool(self.m[self._v[vcpu] + slot.TIMER_PENDING])

    def timer_pending_clear(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.TIMER_PENDING] = 0

    def expired_sw_timer(self) -> int:
        for vcpu, v in enumerate(self._v):
            if self.m[v + slot.SW_TIMER] == 1 + self.c:
                self.m[v + slot.SW_TIMER] = 0
                return vcpu
        return -1

    # -- halt polling: left out, it only delays blocking ------------------------------------------

    def halt_poll_start(self, vcpu: int) -> bool:
        return False

    def halt_poll_open(self, vcpu: int) -> bool:
        return False

    def halt_done(self, vcpu: int, waited: bool) -> None:
        pass
