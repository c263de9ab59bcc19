"""Posted-interrupt processing: what a processor does with a notification in non-root mode.

Pure protocol text: each call on `cpu` is one step (see `hardware/cpu.py`).
Before: `machine/fabric` brought the vector, the local APIC presented it.
Next: `hardware/apicv` delivers the highest virtual interrupt to the guest.
SDM vol. 3, 29.6 "Posted-interrupt processing".
"""

from emulator.hardware.cpu import NOTIFICATION, Cpu


def run_guest(cpu: Cpu, vcpu: int) -> int:
    """VM entry, the guest, VM exit.  The exit reason (SDM vol. 3 appendix C)."""
    cpu.vm_entry(vcpu)
    while True:
        event = cpu.non_root_event(vcpu)
        if event != NOTIFICATION:
            return event
        process_posted_interrupts(cpu)


def process_posted_interrupts(cpu: Cpu) -> None:
    """Steps 3 to 7 of 29.6; 1 and 2 (acknowledge, compare with NV) have brought us here.

    It uses the descriptor of the *current VMCS*, whoever the notification was meant for.
    """
    vcpu = cpu.current_vmcs()
    # 3. ON before PIR: a sender that sets its PIR bit after our harvest finds ON = 0 and
    # notifies again.  The other order strands a vector (golden case race-04).
    cpu.pi_clear_on(vcpu)
    # 4. The EOI comes after the ON-clear and before the harvest: one more notification can
    # now become pending, and will be taken after step 7.
    cpu.lapic_eoi()
    # 5. PIR into VIRR, indivisible per 64-bit word.
    highest = cpu.pi_harvest(vcpu)
    # 6. The top bit of PIR, not of the merged VIRR: a VIRR bit without RVI stays dormant.
    cpu.raise_rvi(highest)
    # 7.
    cpu.evaluate_pending_virtual_interrupts()
