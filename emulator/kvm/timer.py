"""The guest's TSC-deadline timer: who notices that it has expired, and how the interrupt is posted.

Pure protocol text.  While the guest runs, the VMX preemption timer counts and its exit posts to
the running vCPU itself: the path that commit 9b44423bf4c8 helps.  While the vCPU sleeps an hrtimer
counts, and its handler does not post but leaves a note and wakes the thread.
Kernel: arch/x86/kvm/lapic.c.
"""

from emulator.kvm.cpu import Cpu
from emulator.kvm.deliver import vmx_deliver_posted_interrupt
from emulator.kvm.params import KVM_REQ_UNBLOCK
from emulator.kvm.wake import kvm_vcpu_kick


def kvm_set_lapic_tscdeadline_msr(cpu: Cpu, vcpu: int, deadline: int) -> None:
    """WRMSR IA32_TSC_DEADLINE.  Kernel: same name, then start_hv_timer()."""
    cpu.cancel_sw_timer(vcpu)
    cpu.set_tscdeadline(vcpu, deadline)
    if deadline == 0:
        cpu.cancel_hv_timer(vcpu)
        return
    start_hv_timer(cpu, vcpu)


def start_hv_timer(cpu: Cpu, vcpu: int) -> None:
    """Arm the preemption timer; a deadline already past expires at once.  Kernel: same name."""
    deadline = cpu.tscdeadline(vcpu)
    if cpu.set_hv_timer(vcpu, deadline):
        apic_timer_expired(cpu, vcpu, False)
        cpu.cancel_hv_timer(vcpu)


def kvm_lapic_expired_hv_timer(cpu: Cpu, vcpu: int) -> None:
    """The preemption timer fired in the guest.  Kernel: same name."""
    if cpu.hv_timer_in_use(vcpu):
        apic_timer_expired(cpu, vcpu, False)
        cpu.cancel_hv_timer(vcpu)


def apic_timer_expired(cpu: Cpu, vcpu: int, from_timer_fn: bool) -> None:
    """Post from the vCPU's own thread, leave a note from the hrtimer's handler.  Kernel: same."""
    if cpu.timer_pending(vcpu):
        return
    if not from_timer_fn:
        # WARN_ON(kvm_get_running_vcpu() != vcpu): the elision below rests on it.
        assert cpu.running_vcpu() == vcpu
        kvm_apic_inject_pending_timer_irqs(cpu, vcpu)
        return
    cpu.timer_pending_inc(vcpu)
    cpu.make_request(vcpu, KVM_REQ_UNBLOCK)
    kvm_vcpu_kick(cpu, vcpu)


def kvm_apic_inject_pending_timer_irqs(cpu: Cpu, vcpu: int) -> None:
    """kvm_apic_local_deliver(APIC_LVTT), and the deadline is spent.  Kernel: same name."""
    vector = cpu.lvtt_vector(vcpu)
    cpu.set_tscdeadline(vcpu, 0)
    vmx_deliver_posted_interrupt(cpu, vcpu, vector)


def kvm_inject_pending_timer_irqs(cpu: Cpu, vcpu: int) -> None:
    """The run loop picks up what the hrtimer left.  Kernel: same name."""
    cpu.timer_pending_clear(vcpu)
    kvm_apic_inject_pending_timer_irqs(cpu, vcpu)


def kvm_lapic_switch_to_sw_timer(cpu: Cpu, vcpu: int) -> None:
    """Before blocking: the preemption timer counts only in non-root mode.  Kernel: same name."""
    cpu.cancel_hv_timer(vcpu)
    cpu.start_sw_timer(vcpu)


def kvm_lapic_switch_to_hv_timer(cpu: Cpu, vcpu: int) -> None:
    """After blocking.  Kernel: same name, restart_apic_timer()."""
    if cpu.timer_pending(vcpu):
        return
    if cpu.tscdeadline(vcpu) == 0:
        return
    cpu.cancel_sw_timer(vcpu)
    start_hv_timer(cpu, vcpu)
