"""Waking and kicking a vCPU: what a sender may do to a thread that is not in guest mode.

Pure protocol text.  Called by `deliver`, `timer`, `irq`; what the woken thread does next is in
`block` (it checks again) and `sched` (it is loaded again).
Kernel: kvm_vcpu_wake_up(), kvm_vcpu_kick(), virt/kvm/kvm_main.c.
"""

from emulator.events import KICK
from emulator.hardware.vectors import EXITING_GUEST_MODE, IN_GUEST_MODE, RESCHEDULE_VECTOR
from emulator.kvm.cpu import Cpu


def kvm_vcpu_wake_up(cpu: Cpu, vcpu: int) -> bool:
    """True if the vCPU was blocked and this call woke it.

    The condition (PIR, ON, a request) is stored before the waiter is read here; the blocker
    stores its state before it reads the condition (kvm_vcpu_block).  One of the two sees it.
    """
    return cpu.rcuwait_wake_up(vcpu)


def kvm_vcpu_kick(cpu: Cpu, vcpu: int) -> bool:
    """Wake the vCPU or force it out of guest mode; true if it was woken."""
    if kvm_vcpu_wake_up(cpu, vcpu):
        return True
    if cpu.running_vcpu() == vcpu:
        # Our own vCPU: we run on its pCPU, so nobody enters meanwhile.  A plain store will do
        # (aefdc2ed445e), and an interrupt to ourselves would be a waste.
        if cpu.load_mode(vcpu) == IN_GUEST_MODE:
            cpu.store_mode(vcpu, EXITING_GUEST_MODE)
        return False
    # The one transition that another CPU may make.  It fails harmlessly if the vCPU has left
    # guest mode by itself: it reads its requests before it enters again.
    if cpu.cmpxchg_mode(vcpu, IN_GUEST_MODE, EXITING_GUEST_MODE) == IN_GUEST_MODE:
        dest = cpu.load_vcpu_cpu(vcpu)
        if dest != cpu.smp_processor_id():
            cpu.send_ipi(dest, RESCHEDULE_VECTOR, vcpu)
            cpu.trace(KICK, vcpu)
    return False
