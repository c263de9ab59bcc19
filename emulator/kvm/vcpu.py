"""The run loop: enter the guest, handle what brought it out, block when it halts.

Pure protocol text.  The order of the steps in vcpu_enter_guest() is the receiver's half of every
argument in `deliver`.
Kernel: arch/x86/kvm/x86.c; the exit handlers, arch/x86/kvm/vmx/vmx.c.
"""

from emulator.hardware.posted import run_guest
from emulator.hardware.vectors import (
    EXIT_REASON_EXTERNAL_INTERRUPT,
    EXIT_REASON_HLT,
    EXIT_REASON_INTERRUPT_WINDOW,
    EXIT_REASON_MSR_WRITE,
    EXIT_REASON_PREEMPTION_TIMER,
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    MSR_TSC_DEADLINE,
    MSR_X2APIC_EOI,
    MSR_X2APIC_ICR,
    MSR_X2APIC_SELF_IPI,
    OUTSIDE_GUEST_MODE,
)
from emulator.kvm.apicv import handle_interrupt_window, kvm_lapic_set_eoi, kvm_service_requests
from emulator.kvm.block import kvm_vcpu_halt
from emulator.kvm.cpu import Cpu
from emulator.kvm.deliver import vmx_deliver_interrupt
from emulator.kvm.irq import do_irq
from emulator.kvm.params import (
    B03,
    B04,
    ENTRY_ORDER_2013,
    EXIT_FASTPATH_EXIT_HANDLED,
    EXIT_FASTPATH_NONE,
    EXIT_FASTPATH_REENTER_GUEST,
    FASTPATH_ICR_NONE,
    FASTPATH_ICR_REENTER,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE,
    KVM_REQ_EVENT,
    KVM_REQ_UNBLOCK,
    LATE_OUTSIDE,
    NO_ENTRY_FENCE,
    SYNC_FIRST,
    SYNC_LAST,
    Fastpath,
    PidScheme,
)
from emulator.kvm.pid import pi_post_block, pi_pre_block
from emulator.kvm.sched import preempt_schedule
from emulator.kvm.sync import kvm_cpu_has_interrupt, vmx_sync_pir_to_irr
from emulator.kvm.timer import (
    kvm_inject_pending_timer_irqs,
    kvm_lapic_expired_hv_timer,
    kvm_lapic_switch_to_hv_timer,
    kvm_lapic_switch_to_sw_timer,
    kvm_set_lapic_tscdeadline_msr,
)


def vcpu_run(cpu: Cpu, vcpu: int) -> None:
    """Run the vCPU until a signal ends KVM_RUN.  Kernel: vcpu_run()."""
    while True:
        if cpu.mp_state(vcpu) == KVM_MP_STATE_RUNNABLE:
            vcpu_enter_guest(cpu, vcpu)
        else:
            vcpu_block(cpu, vcpu)
        if cpu.request_pending(vcpu):
            cpu.check_request(vcpu, KVM_REQ_UNBLOCK)
        if cpu.timer_pending(vcpu):
            kvm_inject_pending_timer_irqs(cpu, vcpu)
        if cpu.signal_pending():
            return
        if cpu.need_resched():  # xfer_to_guest_mode_handle_work()
            preempt_schedule(cpu, vcpu)


def vcpu_enter_guest(cpu: Cpu, vcpu: int) -> None:
    """One pass: requests, the guarded entry, the guest and its fastpaths, the exit handlers."""
    if cpu.request_pending(vcpu):
        if cpu.kvm.apicv_inhibit_ns:
            kvm_service_requests(cpu, vcpu)
        else:
            cpu.check_request(vcpu, KVM_REQ_EVENT)
    cpu.preempt_disable()
    if cpu.kvm.entry_order is ENTRY_ORDER_2013:
        prepare_entry_2013(cpu, vcpu)
    else:
        prepare_entry(cpu, vcpu)
    if kvm_vcpu_exit_request(cpu, vcpu):
        cpu.store_mode(vcpu, OUTSIDE_GUEST_MODE)
        cpu.local_irq_enable()
        cpu.preempt_enable()
        return
    reason = enter_until_slow_exit(cpu, vcpu)
    # Interrupts are still off: no handler on this pCPU can ever see IN_GUEST_MODE.  The elision
    # in kvm_vcpu_trigger_posted_interrupt() rests on it.
    if LATE_OUTSIDE in cpu.kvm.bugs:
        cpu.local_irq_enable()
    cpu.store_mode(vcpu, OUTSIDE_GUEST_MODE)
    if reason == EXIT_REASON_EXTERNAL_INTERRUPT:
        # vmx_handle_exit_irqoff(): the host's handler runs here, mode OUTSIDE, vCPU running.
        vector = cpu.exit_interrupt_vector()
        do_irq(cpu, vector)
        cpu.lapic_eoi()
    cpu.local_irq_enable()
    cpu.preempt_enable()
    vmx_handle_exit(cpu, vcpu, reason)


def prepare_entry(cpu: Cpu, vcpu: int) -> None:
    """The order since b95234c84004 (v4.11)."""
    # Interrupts off before the mode says "in guest": a sender that reads IN_GUEST_MODE sends a
    # vector, and it must not be eaten by a host handler between here and the entry (B03).
    bugs = cpu.kvm.bugs
    if B03 not in bugs:
        cpu.local_irq_disable()
    if B04 in bugs:
        vmx_sync_pir_to_irr(cpu, vcpu)
    # Mode before ON; pairs with ON before mode in vmx_deliver_posted_interrupt().  Without the
    # fence both sides may read the old value: the sender sees OUTSIDE_GUEST_MODE and only wakes,
    # we see ON = 0 and enter, and a guest that spins never hears of it.
    cpu.store_mode(vcpu, IN_GUEST_MODE)
    if NO_ENTRY_FENCE not in bugs:
        cpu.smp_mb()
    # After the mode store (B04): from here on whoever posts sends a vector.
    if B04 not in bugs:
        vmx_sync_pir_to_irr(cpu, vcpu)
    if B03 in bugs:
        cpu.local_irq_disable()


def prepare_entry_2013(cpu: Cpu, vcpu: int) -> None:
    """The order of a20ed54d6e47 (v3.10) to v4.10: both holes were hidden by KVM_REQ_EVENT."""
    vmx_sync_pir_to_irr(cpu, vcpu)
    cpu.store_mode(vcpu, IN_GUEST_MODE)
    cpu.smp_mb()
    cpu.local_irq_disable()


def kvm_vcpu_exit_request(cpu: Cpu, vcpu: int) -> bool:
    """Is there a reason not to enter after all?  Kernel: same name."""
    if cpu.load_mode(vcpu) == EXITING_GUEST_MODE:
        return True
    if cpu.request_pending(vcpu):
        return True
    return cpu.host_work_pending()


def enter_until_slow_exit(cpu: Cpu, vcpu: int) -> int:
    """The entry loop: back into the guest after a fastpath exit; the reason of the first other.

    -1 if the exit has been handled here altogether.
    """
    while True:
        reason = run_guest(cpu, vcpu)
        fastpath = vmx_exit_handlers_fastpath(cpu, vcpu, reason)
        if fastpath == EXIT_FASTPATH_NONE:
            return reason
        if fastpath == EXIT_FASTPATH_EXIT_HANDLED:
            return -1
        # Back into the guest, mode untouched: whatever the handler posted to this very vCPU was
        # not notified (9b44423bf4c8), so the sync is what delivers it.
        order = cpu.kvm.reentry_order
        if order is SYNC_FIRST:
            vmx_sync_pir_to_irr(cpu, vcpu)
        if kvm_vcpu_exit_request(cpu, vcpu):
            return -1
        if order is SYNC_LAST:  # before de7cd3f6761f (B02)
            vmx_sync_pir_to_irr(cpu, vcpu)


def vmx_exit_handlers_fastpath(cpu: Cpu, vcpu: int, reason: int) -> Fastpath:
    """Exits handled with interrupts off and the mode still IN_GUEST_MODE.  Kernel: same name."""
    if reason == EXIT_REASON_MSR_WRITE:
        return handle_fastpath_set_msr_irqoff(cpu, vcpu)
    if reason == EXIT_REASON_PREEMPTION_TIMER and cpu.kvm.fastpath_preemption_timer:
        kvm_lapic_expired_hv_timer(cpu, vcpu)
        return EXIT_FASTPATH_REENTER_GUEST
    if reason == EXIT_REASON_HLT and cpu.kvm.fastpath_hlt:
        return handle_fastpath_hlt(cpu, vcpu)
    return EXIT_FASTPATH_NONE


def handle_fastpath_set_msr_irqoff(cpu: Cpu, vcpu: int) -> Fastpath:
    """WRMSR of the ICR or of the TSC deadline.  Kernel: same name, x86.c (1e9e2622a149)."""
    msr, value = cpu.exit_msr()
    if msr == MSR_X2APIC_ICR and cpu.kvm.fastpath_icr is not FASTPATH_ICR_NONE:
        kvm_x2apic_icr_write(cpu, value)
        cpu.skip_emulated_instruction()
        if cpu.kvm.fastpath_icr is FASTPATH_ICR_REENTER:
            return EXIT_FASTPATH_REENTER_GUEST
        return EXIT_FASTPATH_EXIT_HANDLED
    if msr == MSR_TSC_DEADLINE and cpu.kvm.fastpath_tscdeadline:
        kvm_set_lapic_tscdeadline_msr(cpu, vcpu, value)
        cpu.skip_emulated_instruction()
        return EXIT_FASTPATH_REENTER_GUEST
    return EXIT_FASTPATH_NONE


def handle_fastpath_hlt(cpu: Cpu, vcpu: int) -> Fastpath:
    """HLT with a wake event pending already: straight back in.  Kernel: same name (1876dd69dfe8).

    Both sides of it sync: this look before it decides, the re-entry after.
    """
    kvm_emulate_halt(cpu, vcpu)
    if not kvm_cpu_has_interrupt(cpu, vcpu):
        return EXIT_FASTPATH_EXIT_HANDLED
    cpu.set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE)
    return EXIT_FASTPATH_REENTER_GUEST


def kvm_x2apic_icr_write(cpu: Cpu, icr: int) -> None:
    """Fixed, physical, one target: post to it.  Kernel: same name, lapic.c.

    The APIC id is the vCPU's number in this model.
    """
    vmx_deliver_interrupt(cpu, icr >> 32, icr & 0xFF)


def vmx_handle_exit(cpu: Cpu, vcpu: int, reason: int) -> None:
    """The slow handlers, interrupts on.  Kernel: same name, vmx.c."""
    if reason == EXIT_REASON_HLT:
        kvm_emulate_halt(cpu, vcpu)
    elif reason == EXIT_REASON_MSR_WRITE:
        kvm_emulate_wrmsr(cpu, vcpu)
    elif reason == EXIT_REASON_PREEMPTION_TIMER:
        kvm_lapic_expired_hv_timer(cpu, vcpu)
    elif reason == EXIT_REASON_INTERRUPT_WINDOW:
        handle_interrupt_window(cpu, vcpu)


def kvm_emulate_wrmsr(cpu: Cpu, vcpu: int) -> None:
    """As the fastpath does it, but out of guest mode and with interrupts on.  Kernel: same name."""
    msr, value = cpu.exit_msr()
    if msr == MSR_X2APIC_ICR:
        kvm_x2apic_icr_write(cpu, value)
    elif msr == MSR_X2APIC_EOI:  # this and the next are intercepted while APICv is not active
        kvm_lapic_set_eoi(cpu, vcpu)
    elif msr == MSR_X2APIC_SELF_IPI:
        vmx_deliver_interrupt(cpu, vcpu, value)
    else:
        kvm_set_lapic_tscdeadline_msr(cpu, vcpu, value)
    cpu.skip_emulated_instruction()


def kvm_emulate_halt(cpu: Cpu, vcpu: int) -> None:
    """Kernel: same name, x86.c."""
    cpu.skip_emulated_instruction()
    cpu.set_mp_state(vcpu, KVM_MP_STATE_HALTED)


def vcpu_block(cpu: Cpu, vcpu: int) -> None:
    """The halted half of the run loop.  Kernel: vcpu_block(), x86.c."""
    if not kvm_cpu_has_interrupt(cpu, vcpu):
        hv_timer = cpu.hv_timer_in_use(vcpu)
        if hv_timer:
            kvm_lapic_switch_to_sw_timer(cpu, vcpu)
        unhalted = block_under_scheme(cpu, vcpu)
        if hv_timer:
            kvm_lapic_switch_to_hv_timer(cpu, vcpu)
        if not unhalted:
            return
    cpu.set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE)


def block_under_scheme(cpu: Cpu, vcpu: int) -> bool:
    """kvm_vcpu_halt(), between the hooks of v4.4 to v5.16 if those are in force."""
    if cpu.kvm.pid_scheme is not PidScheme.PRE_BLOCK:
        return kvm_vcpu_halt(cpu, vcpu)
    if not pi_pre_block(cpu, vcpu):
        return False
    unhalted = kvm_vcpu_halt(cpu, vcpu)
    pi_post_block(cpu, vcpu)
    return unhalted
