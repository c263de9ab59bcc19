"""The guest's TSC-deadline timer: who notices that it has expired, and how the interrupt is posted.

Pure protocol text.  While the guest runs, the VMX preemption timer counts and its exit posts to
the running vCPU itself: the path that commit 9b44423bf4c8 helps.  While the vCPU sleeps, or where
there is no preemption timer, an hrtimer counts: its handler does not post but leaves a note and
wakes or kicks the thread.  An exitless timer's handler runs on a housekeeping pCPU and does post,
if the vCPU is in guest mode.
Kernel: arch/x86/kvm/lapic.c.
"""

from emulator.hardware.vectors import IN_GUEST_MODE
from emulator.kvm.cpu import Cpu
from emulator.kvm.deliver import vmx_deliver_interrupt
from emulator.kvm.params import KVM_REQ_UNBLOCK, TIMER_PREEMPTION, Kvm
from emulator.kvm.wake import kvm_vcpu_kick


def kvm_set_lapic_tscdeadline_msr(cpu: Cpu, vcpu: int, deadline: int) -> None:
    """WRMSR IA32_TSC_DEADLINE.  Kernel: same name, then restart_apic_timer()."""
    cpu.cancel_sw_timer(vcpu)
    cpu.set_tscdeadline(vcpu, deadline)
    if deadline == 0:
        cpu.cancel_hv_timer(vcpu)
        return
    if kvm_can_use_hv_timer(cpu.kvm):
        start_hv_timer(cpu, vcpu)
    else:
        start_sw_timer(cpu, vcpu)


def kvm_can_use_hv_timer(kvm: Kvm) -> bool:
    """Kernel: same name.  Not where the hrtimer's handler may post by itself."""
    return kvm.timer is TIMER_PREEMPTION and not kvm_can_post_timer_interrupt(kvm)


def kvm_can_post_timer_interrupt(kvm: Kvm) -> bool:
    """Kernel: same name (0c5f81dad46c, 1714a4eb6fb0)."""
    return kvm.exitless_timer


def start_sw_timer(cpu: Cpu, vcpu: int) -> None:
    """Arm the hrtimer; a deadline already past expires at once.  Kernel: start_sw_tscdeadline()."""
    if cpu.start_sw_timer(vcpu):
        apic_timer_expired(cpu, vcpu, False)


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
    if kvm_use_posted_timer_interrupt(cpu, vcpu):
        kvm_apic_inject_pending_timer_irqs(cpu, vcpu)
        return
    cpu.timer_pending_inc(vcpu)
    cpu.make_request(vcpu, KVM_REQ_UNBLOCK)
    kvm_vcpu_kick(cpu, vcpu)


def kvm_use_posted_timer_interrupt(cpu: Cpu, vcpu: int) -> bool:
    """May the hrtimer's handler post?  Kernel: same name.

    Never true of a vCPU that is loaded where the handler runs: interrupts are off there while it is
    IN_GUEST_MODE.  So this post is never elided, and the vCPU takes it without an exit.
    """
    if not kvm_can_post_timer_interrupt(cpu.kvm):
        return False
    mode = cpu.load_mode(vcpu)
    return mode == IN_GUEST_MODE


def kvm_apic_inject_pending_timer_irqs(cpu: Cpu, vcpu: int) -> None:
    """kvm_apic_local_deliver(APIC_LVTT), and the deadline is spent.  Kernel: same name."""
    vector = cpu.lvtt_vector(vcpu)
    cpu.set_tscdeadline(vcpu, 0)
    vmx_deliver_interrupt(cpu, vcpu, vector)


def kvm_inject_pending_timer_irqs(cpu: Cpu, vcpu: int) -> None:
    """The run loop picks up what the hrtimer left.  Kernel: same name."""
    cpu.timer_pending_clear(vcpu)
    kvm_apic_inject_pending_timer_irqs(cpu, vcpu)


def kvm_lapic_switch_to_sw_timer(cpu: Cpu, vcpu: int) -> None:
    """Before blocking: the preemption timer counts only in non-root mode.  Kernel: same name."""
    cpu.cancel_hv_timer(vcpu)
    start_sw_timer(cpu, vcpu)


def kvm_lapic_switch_to_hv_timer(cpu: Cpu, vcpu: int) -> None:
    """After blocking.  Kernel: same name, restart_apic_timer()."""
    if cpu.timer_pending(vcpu):
        return
    if cpu.tscdeadline(vcpu) == 0:
        return
    cpu.cancel_sw_timer(vcpu)
    start_hv_timer(cpu, vcpu)
