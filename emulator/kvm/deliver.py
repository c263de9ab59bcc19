"""The sender's half: make a vector pending for a vCPU, then notify it, wake it, or know why not.

Pure protocol text: each call on `cpu` is one step that others may see (`hardware/cpu.py`).
Before: `vcpu` (a guest's ICR write), `timer` (an expired deadline) or `irq` (a device's interrupt)
chose the vector.  Next: `hardware/posted` if the target is in guest mode, `vcpu` if it is not,
`block` if it sleeps.

Kernel: vmx_deliver_posted_interrupt(), arch/x86/kvm/vmx/vmx.c (common.h since v6.16).
"""

from emulator.events import ELIDE_ON, ELIDE_SAME_VCPU, NOT_BLOCKED, WAKE
from emulator.hardware.vectors import EXITING_GUEST_MODE, IN_GUEST_MODE, POSTED_INTR_VECTOR
from emulator.kvm.cpu import Cpu
from emulator.kvm.params import (
    ELIDE_EXITING,
    KVM_REQ_EVENT,
    KVM_V3_10,
    KVM_V5_8,
    KVM_V5_17,
    KVM_V5_18,
    MODE_BEFORE_ON,
    NO_GATE,
    NO_WAKE,
    SEND_REVERSED,
)
from emulator.kvm.wake import kvm_vcpu_kick, kvm_vcpu_wake_up


def vmx_deliver_interrupt(cpu: Cpu, vcpu: int, vector: int) -> None:
    """Make `vector` pending for `vcpu`: every software sender's way in.  Kernel: vmx.c, same name.

    Without APICv: VIRR, a request, a full kick.  The kernel sets the bit of VIRR itself; here VIRR
    belongs to the vCPU's pCPU, so it is a bit of a software VIRR beside it, which the vCPU merges
    (`sync.sync_under_inhibition`).  A sender that saw APICv active just before it went posts, and
    the sync takes that up all the same.
    """
    if cpu.kvm.apicv_inhibit_ns:
        active = cpu.apicv_active(vcpu)
        if not active:
            kvm_lapic_set_irr(cpu, vcpu, vector)
            return
    vmx_deliver_posted_interrupt(cpu, vcpu, vector)


def kvm_lapic_set_irr(cpu: Cpu, vcpu: int, vector: int) -> None:
    """The bit, then the request, then the kick: whoever sees the last sees the others."""
    was = cpu.lapic_set_irr(vcpu, vector)
    cpu.make_request(vcpu, KVM_REQ_EVENT)
    woken = kvm_vcpu_kick(cpu, vcpu)
    if was:
        return
    if woken:
        cpu.trace(WAKE, vcpu, vector)
    else:
        cpu.trace(NOT_BLOCKED, vcpu, vector)


def vmx_deliver_posted_interrupt(cpu: Cpu, vcpu: int, vector: int) -> None:
    """Post `vector` to `vcpu`, then notify, elide or wake.  Kernel: vmx.c, same name."""
    if SEND_REVERSED in cpu.kvm.bugs:
        deliver_on_before_pir(cpu, vcpu, vector)
        return

    # PIR before ON.  The receiver goes the other way (hardware/posted, vmx_sync_pir_to_irr):
    # whoever clears ON after our store finds the bit, whoever cleared it before lets us notify.
    if cpu.pi_test_and_set_pir(vcpu, vector):
        return  # whoever set the bit first owns the rest

    if cpu.kvm.rule is KVM_V3_10:
        deliver_v3_10(cpu, vcpu, vector)
        return

    if MODE_BEFORE_ON in cpu.kvm.bugs:
        deliver_mode_before_on(cpu, vcpu, vector)
        return

    # A locked instruction, and so the full barrier between ON and the load of vcpu->mode below;
    # pairs with smp_mb() between mode and ON in vcpu_enter_guest().
    if cpu.pi_test_and_set_on(vcpu) and NO_GATE not in cpu.kvm.bugs:
        cpu.trace(ELIDE_ON, vcpu, vector)
        return  # somebody has already notified

    kvm_vcpu_trigger_posted_interrupt(cpu, vcpu, POSTED_INTR_VECTOR, vector)


def kvm_vcpu_trigger_posted_interrupt(cpu: Cpu, vcpu: int, pi_vec: int, vector: int) -> None:
    """ON has just been set: tell the vCPU, by the rule of the era.  Kernel: vmx.c, same name.

    `vector` is what was posted; it is here for the account only.
    """
    rule = cpu.kvm.rule
    # Commit 379a3c8ee444: "the running vCPU will sync before it enters".  It will if it enters.
    # A thread that is about to sleep is running too, and has no next entry without a wake-up:
    # an interrupt of this pCPU that posts now is lost.  Fixed by fdba608f15e2.
    if rule is KVM_V5_8 and cpu.running_vcpu() == vcpu:
        cpu.trace(ELIDE_SAME_VCPU, vcpu, vector)
        return

    mode = cpu.load_mode(vcpu)
    if mode == EXITING_GUEST_MODE and ELIDE_EXITING in cpu.kvm.bugs:
        mode = IN_GUEST_MODE
    if mode == IN_GUEST_MODE:
        # Commit 9b44423bf4c8.  In guest mode *and* loaded here: we are on the vCPU's own pCPU,
        # and since interrupts are off there from before the store of IN_GUEST_MODE until after
        # OUTSIDE_GUEST_MODE, we are not an interrupt handler but the vCPU's thread itself, in a
        # fastpath exit handler.  Every way on from there syncs PIR: before the next VM entry if
        # the guest is re-entered, before the next run or sleep if it is not.
        if rule is KVM_V5_18 and cpu.running_vcpu() == vcpu:
            cpu.trace(ELIDE_SAME_VCPU, vcpu, vector)
            return
        # The vCPU may leave guest mode before the vector arrives.  Three cases:
        # 1. still in non-root mode: the processor takes the notification and harvests PIR;
        # 2. exited, runnable: the handler of POSTED_INTR_VECTOR does nothing, and need not:
        #    we set ON before we read the mode, so the sync before the next entry sees it;
        # 3. exited, blocked: likewise, the check before sleeping syncs.
        dest = cpu.load_vcpu_cpu(vcpu)
        cpu.send_ipi(dest, pi_vec, vcpu)
        return

    # Not in guest mode: it will sync before it enters.  If it sleeps, somebody must wake it.
    wake_or_kick(cpu, vcpu, vector)


def wake_or_kick(cpu: Cpu, vcpu: int, vector: int) -> None:
    """Wake the target; before 0f65a9d33767 (v5.17) kick it as well.

    The kick only adds an exit: a vCPU that has entered meanwhile has synced after its mode store.
    """
    if NO_WAKE in cpu.kvm.bugs:
        return
    rule = cpu.kvm.rule
    if rule is KVM_V5_17 or rule is KVM_V5_18:
        woken = kvm_vcpu_wake_up(cpu, vcpu)
    else:
        woken = kvm_vcpu_kick(cpu, vcpu)
    if woken:
        cpu.trace(WAKE, vcpu, vector)
    else:
        cpu.trace(NOT_BLOCKED, vcpu, vector)


def deliver_v3_10(cpu: Cpu, vcpu: int, vector: int) -> None:
    """The second half of 2013 (a20ed54d6e47): always request EVENT, always notify or kick.

    The request is the safety net that hid the receiver's races (B03, B04).
    """
    mode = cpu.load_mode(vcpu) if MODE_BEFORE_ON in cpu.kvm.bugs else -1
    was_on = cpu.pi_test_and_set_on(vcpu)
    cpu.make_request(vcpu, KVM_REQ_EVENT)
    if mode < 0:
        mode = cpu.load_mode(vcpu)
    if mode == IN_GUEST_MODE and not was_on:
        dest = cpu.load_vcpu_cpu(vcpu)
        cpu.send_ipi(dest, POSTED_INTR_VECTOR, vcpu)
    else:
        wake_or_kick(cpu, vcpu, vector)


# -- the museum's: two orders that the argument above forbids -------------------------------------


def deliver_on_before_pir(cpu: Cpu, vcpu: int, vector: int) -> None:
    """Bug.SEND_REVERSED: a receiver that clears ON in between harvests an empty PIR."""
    was_on = cpu.pi_test_and_set_on(vcpu)
    if cpu.pi_test_and_set_pir(vcpu, vector):
        return
    if not was_on:
        kvm_vcpu_trigger_posted_interrupt(cpu, vcpu, POSTED_INTR_VECTOR, vector)


def deliver_mode_before_on(cpu: Cpu, vcpu: int, vector: int) -> None:
    """Bug.MODE_BEFORE_ON: the vCPU may enter, having seen ON = 0, after we saw it outside."""
    mode = cpu.load_mode(vcpu)
    if cpu.pi_test_and_set_on(vcpu):
        return
    rule = cpu.kvm.rule
    if rule is KVM_V5_8 and cpu.running_vcpu() == vcpu:
        return
    if mode != IN_GUEST_MODE:
        wake_or_kick(cpu, vcpu, vector)
        return
    if rule is KVM_V5_18 and cpu.running_vcpu() == vcpu:
        return
    dest = cpu.load_vcpu_cpu(vcpu)
    cpu.send_ipi(dest, POSTED_INTR_VECTOR, vcpu)
