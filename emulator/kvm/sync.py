"""The receiver's half in software: PIR into VIRR, before the guest runs and before it sleeps.

Pure protocol text.  The processor's own half is `hardware/posted`.
Kernel: vmx_sync_pir_to_irr(), vmx.c; kvm_apic_update_irr(), lapic.c.
"""

from emulator.kvm.cpu import Cpu
from emulator.kvm.params import B11, KVM_REQ_EVENT, SYNC_REVERSED


def vmx_sync_pir_to_irr(cpu: Cpu, vcpu: int) -> int:
    """Harvest what was announced; the highest vector then in VIRR, -1 if none.

    The vCPU's own VMCS must be current: RVI is written (B15 was about another's).
    """
    if cpu.kvm.apicv_inhibit_ns:
        return sync_under_inhibition(cpu, vcpu)
    if cpu.pi_test_on(vcpu):
        # ON before PIR, as the processor does it: a post after the harvest finds ON = 0 and
        # notifies again.  The locked instruction is also the barrier between the two.
        if SYNC_REVERSED in cpu.kvm.bugs:
            cpu.pi_harvest(vcpu)
            cpu.pi_clear_on(vcpu)
        else:
            cpu.pi_clear_on(vcpu)
            cpu.pi_harvest(vcpu)
    max_irr = cpu.find_highest_virr(vcpu)
    cpu.set_rvi(max_irr)
    return max_irr


def sync_under_inhibition(cpu: Cpu, vcpu: int) -> int:
    """The same where APICv comes and goes: PIR is synced whether or not it is active (B11).

    Without APICv nothing reads RVI; what was found is injected, and that takes a request.
    """
    active = cpu.apicv_active(vcpu)
    highest = -1
    if (active or B11 not in cpu.kvm.bugs) and cpu.pi_test_on(vcpu):
        cpu.pi_clear_on(vcpu)
        highest = cpu.pi_harvest(vcpu)
    # Whoever set one of these bits requests EVENT after it: no request is needed here.
    cpu.lapic_merge_irr(vcpu)
    max_irr = cpu.find_highest_virr(vcpu)
    if active:
        cpu.set_rvi(max_irr)
    elif highest >= 0:
        cpu.make_request(vcpu, KVM_REQ_EVENT)
    return max_irr


def kvm_cpu_has_interrupt(cpu: Cpu, vcpu: int) -> bool:
    """Is there a vector that the vCPU could take?  Kernel: kvm_vcpu_has_events(), x86.c.

    Asking clears ON: the answer is only good if the caller acts on it.
    """
    max_irr = vmx_sync_pir_to_irr(cpu, vcpu)
    if max_irr < 0:
        return False
    return cpu.interrupt_allowed(vcpu)
