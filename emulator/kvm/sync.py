"""The receiver's half in software: PIR into VIRR, before the guest runs and before it sleeps.

Pure protocol text.  The processor's own half is `hardware/posted`.
Kernel: vmx_sync_pir_to_irr(), vmx.c; kvm_apic_update_irr(), lapic.c.
"""

from emulator.kvm.cpu import Cpu
from emulator.kvm.params import SYNC_REVERSED


def vmx_sync_pir_to_irr(cpu: Cpu, vcpu: int) -> int:
    """Harvest what was announced; the highest vector then in VIRR, -1 if none.

    The vCPU's own VMCS must be current: RVI is written (B15 was about another's).
    """
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


def kvm_cpu_has_interrupt(cpu: Cpu, vcpu: int) -> bool:
    """Is there a vector that the vCPU could take?  Kernel: kvm_vcpu_has_events(), x86.c.

    Asking clears ON: the answer is only good if the caller acts on it.
    """
    max_irr = vmx_sync_pir_to_irr(cpu, vcpu)
    if max_irr < 0:
        return False
    return cpu.interrupt_allowed(vcpu)
