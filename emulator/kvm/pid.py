"""What the descriptor tells hardware senders while its vCPU is not running: SN, NV and NDST.

Pure protocol text.  Called from `sched` (put and load) and `block` (the older hooks).  Software
senders look at none of the three; VT-d and IPI virtualization (`hardware/senders`) at nothing
else.  All of it runs with interrupts off.
Kernel: arch/x86/kvm/vmx/posted_intr.c.
"""

from emulator.hardware.vectors import POSTED_INTR_VECTOR, POSTED_INTR_WAKEUP_VECTOR
from emulator.kvm.cpu import Cpu
from emulator.kvm.params import (
    ARM_WITHOUT_ON_TEST,
    B05,
    B06,
    B08,
    B09,
    B10,
    B12,
    B16,
    KVM_REQ_UNBLOCK,
    LIST_WRONG_CPU,
    REPAIR_WAKE_AT_LOAD,
    STALE_NDST,
    PidScheme,
)
from emulator.kvm.wake import kvm_vcpu_kick, kvm_vcpu_wake_up


def vmx_needs_pi_wakeup(cpu: Cpu, vcpu: int) -> bool:
    """Can a hardware sender write this descriptor at all?  Kernel: same name."""
    if cpu.kvm.pid_scheme is PidScheme.NONE:
        return False
    return cpu.load_has_pi_sender(vcpu)


def vmx_vcpu_pi_put(cpu: Cpu, vcpu: int, preempted: bool) -> None:
    """The vCPU leaves its pCPU.  Kernel: same name."""
    if not vmx_needs_pi_wakeup(cpu, vcpu):
        return
    scheme = cpu.kvm.pid_scheme
    if scheme is PidScheme.PRE_BLOCK:
        if preempted:
            cpu.pi_set_sn(vcpu)  # 28b835d60fcc
        return
    blocking = cpu.vcpu_is_blocking(vcpu)
    # A vCPU that could not take the interrupt is not woken for it (1831fa44df74).
    may_wake = blocking and (B16 in cpu.kvm.bugs or cpu.interrupt_allowed(vcpu))
    if scheme is PidScheme.SN_ON_PUT:  # 6737557442e5
        if may_wake and not preempted:
            pi_enable_wakeup_handler(cpu, vcpu)
        else:
            cpu.pi_set_sn(vcpu)
        return
    if may_wake:
        pi_enable_wakeup_handler(cpu, vcpu)
    elif preempted:
        cpu.pi_set_sn(vcpu)


def pi_enable_wakeup_handler(cpu: Cpu, vcpu: int) -> None:
    """Ask hardware senders for POSTED_INTR_WAKEUP_VECTOR on this pCPU.  Kernel: same name."""
    pcpu = cpu.smp_processor_id()
    cpu.wakeup_list_add(pcpu, vcpu)
    # On the list before NV says so: the handler of a wake-up that comes at once must find it.
    on = pi_arm(cpu, vcpu, -1)
    if on and ARM_WITHOUT_ON_TEST not in cpu.kvm.bugs:
        # A sender set ON before NV changed, and notified with the old vector or not at all.
        # Waking from the scheduler's hook is not allowed; our own interrupt will do it.
        cpu.send_ipi(pcpu, POSTED_INTR_WAKEUP_VECTOR, vcpu)


def pi_arm(cpu: Cpu, vcpu: int, ndst: int) -> bool:
    """NV := POSTED_INTR_WAKEUP_VECTOR, SN := 0; ON as it was left."""
    if B12 in cpu.kvm.bugs:
        return pi_arm_reading_twice(cpu, vcpu, ndst)
    return cpu.pi_update_control(vcpu, POSTED_INTR_WAKEUP_VECTOR, ndst, False)


def vmx_vcpu_pi_load(cpu: Cpu, vcpu: int) -> None:
    """The vCPU arrives on this pCPU; `vcpu->cpu` still names the last one.  Kernel: same name."""
    pcpu = cpu.smp_processor_id()
    previous = cpu.load_vcpu_cpu(vcpu)
    if B10 in cpu.kvm.bugs and not vmx_needs_pi_wakeup(cpu, vcpu):
        return
    if cpu.kvm.pid_scheme is PidScheme.PRE_BLOCK:
        pi_load_pre_block(cpu, vcpu, pcpu, previous)
        return
    control = cpu.pi_read_control(vcpu)
    if control.nv != POSTED_INTR_WAKEUP_VECTOR and previous == pcpu:
        if control.sn:
            cpu.pi_clear_sn(vcpu)
            pi_recompute_on(cpu, vcpu)
        return
    if control.nv == POSTED_INTR_WAKEUP_VECTOR:
        listed = pcpu if LIST_WRONG_CPU in cpu.kvm.bugs else previous
        cpu.wakeup_list_del(listed, vcpu)
    ndst = -1 if STALE_NDST in cpu.kvm.bugs else pcpu
    cpu.pi_update_control(vcpu, POSTED_INTR_VECTOR, ndst, False)
    pi_recompute_on(cpu, vcpu)


def pi_recompute_on(cpu: Cpu, vcpu: int) -> None:
    """After SN = 0: a device that posted under SN = 1 left PIR without ON (c112b5f50232, B05).

    No notification: a sync comes before the next entry.  But not before the next sleep, if the
    thread was preempted in kvm_vcpu_block() after its last check: a sender that stands between PIR
    and ON will find ON = 1 and stop, and nobody wakes the vCPU.  The checker says so of every rule;
    it has not been seen on a kernel.  The repair: who sets ON here also wakes.
    """
    if B05 in cpu.kvm.bugs:
        return
    if not cpu.pi_is_pir_empty(vcpu):
        cpu.pi_set_on(vcpu)
        if REPAIR_WAKE_AT_LOAD in cpu.kvm.bugs:
            kvm_vcpu_wake_up(cpu, vcpu)


def vmx_pi_start_assignment(cpu: Cpu, vcpu: int) -> None:
    """A device has been assigned: a vCPU that sleeps already has not armed the wake-up vector.

    Kernel: same name (a2486020a82e): KVM_REQ_UNBLOCK to every vCPU, so that they put again.
    """
    if B09 in cpu.kvm.bugs:
        return
    cpu.make_request(vcpu, KVM_REQ_UNBLOCK)
    kvm_vcpu_kick(cpu, vcpu)


# -- v4.4 to v5.16: hooks around the blocking loop -----------------------------------------------


def pi_load_pre_block(cpu: Cpu, vcpu: int, pcpu: int, previous: int) -> None:
    """vmx_vcpu_pi_load() of v5.4 to v5.16."""
    control = cpu.pi_read_control(vcpu)
    if not control.sn and previous == pcpu:
        return
    armed = control.nv == POSTED_INTR_WAKEUP_VECTOR and B06 not in cpu.kvm.bugs
    if armed or previous == pcpu:
        # NDST belongs to pi_pre_block() while NV is the wake-up vector (B06).
        cpu.pi_clear_sn(vcpu)
    else:
        cpu.pi_update_control(vcpu, control.nv, pcpu, False)
    pi_recompute_on(cpu, vcpu)


def pi_pre_block(cpu: Cpu, vcpu: int) -> bool:
    """Arm the wake-up vector before blocking; false if work came and blocking is off.

    Kernel: pi_pre_block(), v4.4 (bf9f6ac8d749) to v5.16.
    """
    if not vmx_needs_pi_wakeup(cpu, vcpu):
        return True
    cpu.local_irq_disable()
    pcpu = cpu.smp_processor_id()
    cpu.set_pre_pcpu(vcpu, pcpu)
    cpu.wakeup_list_add(pcpu, vcpu)
    on = pi_arm(cpu, vcpu, pcpu)
    if on:
        pi_disarm(cpu, vcpu)
    cpu.local_irq_enable()
    return not on


def pi_post_block(cpu: Cpu, vcpu: int) -> None:
    """Undo pi_pre_block().  Kernel: same name, v4.4 to v5.16."""
    if B08 in cpu.kvm.bugs and not vmx_needs_pi_wakeup(cpu, vcpu):
        return
    if cpu.pre_pcpu(vcpu) < 0:
        return
    cpu.local_irq_disable()
    pi_disarm(cpu, vcpu)
    cpu.local_irq_enable()


def pi_disarm(cpu: Cpu, vcpu: int) -> None:
    """__pi_post_block(): NV and NDST first, then off the list of the pCPU it was put on."""
    pcpu = cpu.smp_processor_id()
    cpu.pi_update_control(vcpu, POSTED_INTR_VECTOR, pcpu, False)
    listed = cpu.pre_pcpu(vcpu)
    cpu.wakeup_list_del(listed, vcpu)
    cpu.set_pre_pcpu(vcpu, -1)


def pi_arm_reading_twice(cpu: Cpu, vcpu: int, ndst: int) -> bool:
    """Bug.B12: the update loop takes ON from one read of the word and compares with another.

    The exchange that writes ON back to 0 is two steps here, the update and the clear.
    """
    first = cpu.pi_read_control(vcpu)
    on = cpu.pi_update_control(vcpu, POSTED_INTR_WAKEUP_VECTOR, ndst, False)
    if first.on:
        return on
    cpu.pi_clear_on(vcpu)
    return False
