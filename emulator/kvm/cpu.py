"""`Cpu`, the host kernel's half of the seam.  See `hardware/cpu.py` for the rules and the kinds.

Everything below is a primitive of the kernel that KVM stands on (atomics, rcuwait, the scheduler,
the local interrupt flag, timers) or a field of `struct kvm_vcpu` that another CPU may read.
"""

from typing import Protocol

from emulator.hardware import cpu as hardware
from emulator.hardware.cpu import Control, Kind, kind
from emulator.hardware.vectors import Mode
from emulator.kvm.params import Kvm, MpState, Request, TaskState


class Cpu(hardware.Cpu, Protocol):
    """One physical CPU as KVM's code sees it."""

    @property
    def kvm(self) -> Kvm:
        """The axes of this host's hypervisor: constants, not steps."""

    # -- the PI descriptor, as software uses it --------------------------------------------------

    @kind(Kind.LOAD)
    def pi_test_on(self, vcpu: int) -> bool: ...

    @kind(Kind.LOAD)
    def pi_is_pir_empty(self, vcpu: int) -> bool: ...

    @kind(Kind.LOAD)
    def pi_read_control(self, vcpu: int) -> Control: ...

    @kind(Kind.LOCKED)
    def pi_set_on(self, vcpu: int) -> None: ...

    @kind(Kind.LOCKED)
    def pi_set_sn(self, vcpu: int) -> None: ...

    @kind(Kind.LOCKED)
    def pi_clear_sn(self, vcpu: int) -> None: ...

    @kind(Kind.LOCKED)
    def pi_update_control(self, vcpu: int, nv: int, ndst: int, sn: bool) -> bool:
        """The compare-exchange loop on NV, NDST and SN, ON kept; the value of ON it wrote.

        `ndst` < 0 keeps NDST.  One step: what another CPU sees is the one exchange that won.
        """

    # -- struct kvm_vcpu -------------------------------------------------------------------------

    @kind(Kind.STORE)
    def store_mode(self, vcpu: int, mode: Mode) -> None: ...

    @kind(Kind.LOAD)
    def load_mode(self, vcpu: int) -> int: ...

    @kind(Kind.LOCKED)
    def cmpxchg_mode(self, vcpu: int, old: Mode, new: Mode) -> int:
        """The mode it found."""

    @kind(Kind.STORE)
    def store_vcpu_cpu(self, vcpu: int, pcpu: int) -> None: ...

    @kind(Kind.LOAD)
    def load_vcpu_cpu(self, vcpu: int) -> int: ...

    @kind(Kind.LOCKED)
    def make_request(self, vcpu: int, request: Request) -> None: ...

    @kind(Kind.LOAD)
    def request_pending(self, vcpu: int) -> bool: ...

    @kind(Kind.LOCKED)
    def check_request(self, vcpu: int, request: Request) -> bool:
        """kvm_check_request(): test and clear."""

    @kind(Kind.LOAD)
    def load_has_pi_sender(self, vcpu: int) -> bool:
        """VT-d with an assigned device, or IPI virtualization, can write this descriptor."""

    @kind(Kind.LOOK)
    def mp_state(self, vcpu: int) -> int: ...

    @kind(Kind.LOOK)
    def set_mp_state(self, vcpu: int, state: MpState) -> None: ...

    @kind(Kind.LOOK)
    def running_vcpu(self) -> int:
        """kvm_get_running_vcpu(): the vCPU loaded on this pCPU, -1 if none."""

    @kind(Kind.LOOK)
    def set_running_vcpu(self, vcpu: int) -> None: ...

    # -- the virtual APIC, from the host ---------------------------------------------------------

    @kind(Kind.LOOK)
    def find_highest_virr(self, vcpu: int) -> int:
        """The highest vector in VIRR, -1 if none."""

    @kind(Kind.LOOK)
    def set_rvi(self, vector: int) -> None:
        """RVI of the current VMCS; -1 stores 0."""

    @kind(Kind.LOOK)
    def interrupt_allowed(self, vcpu: int) -> bool:
        """!vmx_interrupt_blocked(): guest IF = 1 and no STI or MOV SS shadow."""

    @kind(Kind.LOOK)
    def exit_msr(self) -> tuple[int, int]:
        """(MSR, value) of a WRMSR exit."""

    @kind(Kind.LOOK)
    def skip_emulated_instruction(self) -> None: ...

    # -- APICv that comes and goes: only where `kvm.apicv_inhibit_ns` is set ----------------------

    @kind(Kind.LOAD)
    def apicv_inhibited(self) -> bool:
        """kvm->arch.apicv_inhibit_reasons != 0."""

    @kind(Kind.STORE)
    def store_apicv_inhibited(self, inhibited: bool) -> None: ...

    @kind(Kind.LOAD)
    def apicv_active(self, vcpu: int) -> bool:
        """vcpu->arch.apic->apicv_active."""

    @kind(Kind.STORE)
    def store_apicv_active(self, vcpu: int, active: bool) -> None: ...

    @kind(Kind.LOCKED)
    def lapic_set_irr(self, vcpu: int, vector: int) -> bool:
        """LOCK BTS of the software VIRR; the old bit.  Recorded as a POST."""

    @kind(Kind.LOCKED)
    def lapic_merge_irr(self, vcpu: int) -> None:
        """Exchange the software VIRR with 0, OR it into VIRR.  The owner's; recorded as SYNC."""

    @kind(Kind.LOOK)
    def refresh_apicv_exec_ctrl(self, vcpu: int, active: bool) -> None:
        """The VMCS' controls and MSR bitmap, with APICv or without; closes the window."""

    @kind(Kind.LOOK)
    def find_highest_visr(self, vcpu: int) -> int:
        """The highest vector in VISR, -1 if none."""

    @kind(Kind.LOOK)
    def clear_visr(self, vcpu: int, vector: int) -> None:
        """VISR[vector] := 0.  Recorded as EOI."""

    @kind(Kind.LOOK)
    def set_svi(self, vector: int) -> None:
        """vmx_hwapic_isr_update(): SVI of the current VMCS; -1 stores 0."""

    @kind(Kind.LOOK)
    def inject_irq(self, vcpu: int, vector: int) -> None:
        """VIRR to VISR, and into the VM-entry interruption information."""

    @kind(Kind.LOOK)
    def interrupt_injected(self, vcpu: int) -> bool:
        """vcpu->arch.interrupt.injected: the next entry will inject a vector."""

    @kind(Kind.LOOK)
    def enable_irq_window(self, vcpu: int) -> None:
        """Interrupt-window exiting := 1 in the VMCS."""

    @kind(Kind.LOOK)
    def disable_irq_window(self, vcpu: int) -> None: ...

    # -- interrupts and preemption of this pCPU --------------------------------------------------

    @kind(Kind.LOOK)
    def smp_processor_id(self) -> int: ...

    @kind(Kind.LOCAL)
    def local_irq_disable(self) -> None: ...

    @kind(Kind.LOCAL)
    def local_irq_enable(self) -> None: ...

    @kind(Kind.LOOK)
    def preempt_disable(self) -> None: ...

    @kind(Kind.LOOK)
    def preempt_enable(self) -> None: ...

    @kind(Kind.LOCKED)
    def smp_mb(self) -> None: ...

    @kind(Kind.LOOK)
    def host_work_pending(self) -> bool:
        """A signal or a reschedule is pending for this thread (xfer_to_guest_mode_work)."""

    @kind(Kind.LOOK)
    def need_resched(self) -> bool:
        """The thread's slice is over and another waits.  Asked at the head of the run loop."""

    @kind(Kind.LOOK)
    def signal_pending(self) -> bool: ...

    @kind(Kind.LOOK)
    def exit_interrupt_vector(self) -> int:
        """The vector that an external-interrupt exit acknowledged."""

    @kind(Kind.LOOK)
    def irqfd(self, vector: int) -> tuple[int, int]:
        """(vCPU, guest vector) that this host vector's device is routed to; vCPU -1: none."""

    # -- tasks -----------------------------------------------------------------------------------

    @kind(Kind.LOCKED)
    def prepare_to_rcuwait(self, vcpu: int) -> None: ...

    @kind(Kind.LOCKED)
    def finish_rcuwait(self, vcpu: int) -> None:
        """Unregister, state := RUNNING."""

    @kind(Kind.LOOK)
    def vcpu_is_blocking(self, vcpu: int) -> bool:
        """kvm_vcpu_is_blocking(): a task is registered in vcpu->wait."""

    @kind(Kind.LOCKED)
    def set_current_state(self, vcpu: int, state: TaskState) -> None: ...

    @kind(Kind.LOCKED)
    def rcuwait_wake_up(self, vcpu: int) -> bool:
        """Full barrier, then try_to_wake_up(): true if a waiter was there and not yet runnable."""

    @kind(Kind.LOCKED)
    def deactivate_task(self, vcpu: int) -> bool:
        """INTERRUPTIBLE -> SLEEPING; false if a waker came first (the thread stays runnable)."""

    @kind(Kind.LOCAL)
    def context_switch(self, vcpu: int) -> None:
        """Off this pCPU; returns when the scheduler runs the thread again, maybe elsewhere."""

    @kind(Kind.LOOK)
    def set_preempted(self, vcpu: int, preempted: bool) -> None: ...

    # -- the per-pCPU list of blocked vCPUs ------------------------------------------------------

    @kind(Kind.LOCKED)
    def wakeup_list_add(self, pcpu: int, vcpu: int) -> None:
        """Under the list's raw spinlock."""

    @kind(Kind.LOCKED)
    def wakeup_list_del(self, pcpu: int, vcpu: int) -> None:
        """Under the list's raw spinlock."""

    @kind(Kind.LOCKED)
    def wakeup_list_lock(self, pcpu: int) -> None: ...

    @kind(Kind.LOOK)
    def wakeup_list_next(self, pcpu: int, after: int) -> int:
        """The next vCPU on the list, -1 at its end.  The lock is held."""

    @kind(Kind.LOCKED)
    def wakeup_list_unlock(self, pcpu: int) -> None: ...

    @kind(Kind.LOOK)
    def pre_pcpu(self, vcpu: int) -> int:
        """vcpu->pre_pcpu (v4.4 - v5.16): whose list pi_pre_block() put it on, -1 if none."""

    @kind(Kind.LOOK)
    def set_pre_pcpu(self, vcpu: int, pcpu: int) -> None: ...

    # -- the APIC timer --------------------------------------------------------------------------

    @kind(Kind.LOOK)
    def set_hv_timer(self, vcpu: int, deadline: int) -> bool:
        """Arm the VMX preemption timer for a TSC deadline; true if that has passed already."""

    @kind(Kind.LOOK)
    def cancel_hv_timer(self, vcpu: int) -> None: ...

    @kind(Kind.LOOK)
    def hv_timer_in_use(self, vcpu: int) -> bool: ...

    @kind(Kind.LOOK)
    def start_sw_timer(self, vcpu: int) -> bool:
        """Arm an hrtimer for the guest's deadline; true if that has passed already.

        It counts on this pCPU, or, for an exitless timer, on the housekeeping pCPU
        (get_nohz_timer_target()).
        """

    @kind(Kind.LOOK)
    def cancel_sw_timer(self, vcpu: int) -> None: ...

    @kind(Kind.LOOK)
    def tscdeadline(self, vcpu: int) -> int:
        """The guest's TSC deadline, 0 if disarmed."""

    @kind(Kind.LOOK)
    def set_tscdeadline(self, vcpu: int, deadline: int) -> None: ...

    @kind(Kind.LOOK)
    def lvtt_vector(self, vcpu: int) -> int: ...

    @kind(Kind.LOCKED)
    def timer_pending_inc(self, vcpu: int) -> None:
        """lapic_timer.pending: expirations that the run loop has yet to inject."""

    @kind(Kind.LOAD)
    def timer_pending(self, vcpu: int) -> bool: ...

    @kind(Kind.LOCKED)
    def timer_pending_clear(self, vcpu: int) -> None: ...

    @kind(Kind.LOOK)
    def expired_sw_timer(self) -> int:
        """The next vCPU whose hrtimer has expired on this pCPU (taken off the queue), or -1."""

    # -- halt polling: the window is the world's, the decisions are kvm/block.py's ----------------

    @kind(Kind.LOOK)
    def halt_poll_start(self, vcpu: int) -> bool:
        """Open this vCPU's polling window; false if it has none."""

    @kind(Kind.LOOK)
    def halt_poll_open(self, vcpu: int) -> bool:
        """The window is open and this pCPU has nothing else to run; relaxes the CPU."""

    @kind(Kind.LOOK)
    def halt_done(self, vcpu: int, waited: bool) -> None:
        """Statistics; the window grows or shrinks (`block.next_halt_poll_ns`)."""
