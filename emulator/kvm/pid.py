"""What the descriptor tells hardware senders while its vCPU is not running: SN, NV and NDST.

Pure protocol text.  Called from `sched` (put and load) and `block` (the older hooks).  Software
senders look at none of the three; VT-d and IPI virtualization (`hardware/senders`) at nothing
else.  All of it runs with interrupts off.
Kernel: arch/x86/kvm/vmx/posted_intr.c.
"""

from emulator.hardware.vectors import POSTED_INTR_VECTOR, POSTED_INTR_WAKEUP_VECTOR
from emulator.kvm.cpu import Cpu
from emulator.kvm.params import PidScheme


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
    may_wake = blocking and cpu.interrupt_allowed(vcpu)
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
    if cpu.pi_update_control(vcpu, POSTED_INTR_WAKEUP_VECTOR, -1, False):
        # A sender set ON before NV changed, and notified with the old vector or not at all.
        # Waking from the scheduler's hook is not allowed; our own interrupt will do it.
        cpu.send_ipi(pcpu, POSTED_INTR_WAKEUP_VECTOR, vcpu)


def vmx_vcpu_pi_load(cpu: Cpu, vcpu: int) -> None:
    """The vCPU arrives on this pCPU; `vcpu->cpu` still names the last one.  Kernel: same name."""
    pcpu = cpu.smp_processor_id()
    previous = cpu.load_vcpu_cpu(vcpu)
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
        cpu.wakeup_list_del(previous, vcpu)
    cpu.pi_update_control(vcpu, POSTED_INTR_VECTOR, pcpu, False)
    pi_recompute_on(cpu, vcpu)


def pi_recompute_on(cpu: Cpu, vcpu: int) -> None:
    """After SN = 0: a device that posted under SN = 1 left PIR without ON (c112b5f50232, B05).

    No notification: a sync comes before the next entry.
    """
    if not cpu.pi_is_pir_empty(vcpu):
        cpu.pi_set_on(vcpu)


# -- v4.4 to v5.16: hooks around the blocking loop -----------------------------------------------


def pi_load_pre_block(cpu: Cpu, vcpu: int, pcpu: int, previous: int) -> None:
    """vmx_vcpu_pi_load() of v5.4 to v5.16."""
    control = cpu.pi_read_control(vcpu)
    if not control.sn and previous == pcpu:
        return
    if control.nv == POSTED_INTR_WAKEUP_VECTOR or previous == pcpu:
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
    on = cpu.pi_update_control(vcpu, POSTED_INTR_WAKEUP_VECTOR, pcpu, False)
    if on:
        pi_disarm(cpu, vcpu)
    cpu.local_irq_enable()
    return not on


def pi_post_block(cpu: Cpu, vcpu: int) -> None:
    """Undo pi_pre_block().  Kernel: same name, v4.4 to v5.16."""
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
