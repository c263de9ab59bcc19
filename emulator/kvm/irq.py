"""Handlers of host interrupts: what a pCPU does with a vector that no guest consumed.

Pure protocol text, run with interrupts off: from an interrupt window between two steps of whatever
this pCPU was doing, or from the VM exit that an interrupt caused.
Kernel: arch/x86/kernel/irq.c; pi_wakeup_handler(), posted_intr.c; vfio_msihandler(),
irqfd_wakeup(), virt/kvm/eventfd.c; apic_timer_fn(), lapic.c.
"""

from emulator.hardware.vectors import (
    LOCAL_TIMER_VECTOR,
    POSTED_INTR_NESTED_VECTOR,
    POSTED_INTR_VECTOR,
    POSTED_INTR_WAKEUP_VECTOR,
    RESCHEDULE_VECTOR,
)
from emulator.kvm.cpu import Cpu
from emulator.kvm.deliver import vmx_deliver_interrupt
from emulator.kvm.timer import apic_timer_expired
from emulator.kvm.wake import kvm_vcpu_wake_up


def do_irq(cpu: Cpu, vector: int) -> None:
    """Run the handler of `vector`; the vector has been acknowledged, the caller EOIs."""
    if vector in (POSTED_INTR_VECTOR, POSTED_INTR_NESTED_VECTOR, RESCHEDULE_VECTOR):
        # sysvec_kvm_posted_intr_ipi(): EOI and a counter.  A notification that arrives in root
        # mode needs nothing done: cases 2 and 3 of kvm_vcpu_trigger_posted_interrupt().
        # A reschedule interrupt did its work by arriving: it ended guest mode, or the idle loop.
        return
    if vector == POSTED_INTR_WAKEUP_VECTOR:
        pi_wakeup_handler(cpu)
    elif vector == LOCAL_TIMER_VECTOR:
        hrtimer_interrupt(cpu)
    else:
        vfio_msihandler(cpu, vector)


def pi_wakeup_handler(cpu: Cpu) -> None:
    """Wake every vCPU that blocked on this pCPU and has ON set.  Kernel: same name."""
    pcpu = cpu.smp_processor_id()
    cpu.wakeup_list_lock(pcpu)
    vcpu = cpu.wakeup_list_next(pcpu, -1)
    while vcpu >= 0:
        if cpu.pi_test_on(vcpu):
            kvm_vcpu_wake_up(cpu, vcpu)
        vcpu = cpu.wakeup_list_next(pcpu, vcpu)
    cpu.wakeup_list_unlock(pcpu)


def hrtimer_interrupt(cpu: Cpu) -> None:
    """Run apic_timer_fn() for each guest deadline that has passed on this pCPU."""
    vcpu = cpu.expired_sw_timer()
    while vcpu >= 0:
        apic_timer_expired(cpu, vcpu, True)
        vcpu = cpu.expired_sw_timer()


def vfio_msihandler(cpu: Cpu, vector: int) -> None:
    """A device in remapped mode: its interrupt is the host's, whose handler posts.

    vfio_msihandler() -> eventfd_signal() -> irqfd_wakeup() -> kvm_arch_set_irq_inatomic() ->
    vmx_deliver_interrupt(), all in hard-interrupt context: the sender of the lost wake-up.
    """
    vcpu, guest_vector = cpu.irqfd(vector)
    if vcpu >= 0:
        vmx_deliver_interrupt(cpu, vcpu, guest_vector)
