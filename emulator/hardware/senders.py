"""The senders that are hardware: an IOMMU with posted remapping entries, and IPI virtualization.

Pure protocol text: each call on `cpu` is one step (see `hardware/cpu.py`).  Both set PIR first and
decide about ON afterwards, in one step with their look at SN, NV and NDST; unlike software (KVM:
`kvm/deliver`) they do not stop at a PIR bit that was set already.
Before: a device's interrupt message, or a guest's ICR write.  Next: the notification vector NV
travels to the local APIC that NDST names; `hardware/posted` if that one's guest is in.
VT-d specification 5.2.3 "Interrupt-posting hardware operation"; SDM vol. 3, "IPI virtualization"
(30.1.6 in the edition that has it).
"""

from dataclasses import dataclass

from emulator.events import Event
from emulator.hardware.cpu import Cpu
from emulator.hardware.pi_desc import DESCRIPTOR_BYTES
from emulator.hardware.vectors import FIRST_LEGAL_VECTOR

NO_DESCRIPTOR = -1


def vtd_post(cpu: Cpu, vcpu: int, vector: int, urgent: bool) -> None:
    """An interrupt message met an entry in posted format.  `urgent` is its URG bit."""
    cpu.pi_test_and_set_pir(vcpu, vector)
    notify_unless_suppressed(cpu, vcpu, vector, urgent)


def ipi_virtualization(cpu: Cpu, vector: int, target: int, table: "PidPointerTable") -> bool:
    """A guest's ICR write of the form that `access.is_virtualizable_ipi` accepts.

    `target` is a virtual APIC ID.  False: nothing has been posted, and the caller must take the
    APIC-write VM exit (56) with qualification 300H.
    """
    vcpu = table.vcpu_of(target)
    if vector < FIRST_LEGAL_VECTOR or vcpu == NO_DESCRIPTOR:
        return False
    cpu.pi_test_and_set_pir(vcpu, vector)
    notify_unless_suppressed(cpu, vcpu, vector, urgent=False)
    return True


def notify_unless_suppressed(cpu: Cpu, vcpu: int, vector: int, urgent: bool) -> None:
    """Second half of a hardware post: ON, and NV to NDST if nobody has and nothing forbids it."""
    before = cpu.pi_test_and_set_on_unless_sn(vcpu, urgent)
    if before.on:
        cpu.trace(Event.ELIDE_ON, vcpu, vector)
        return
    if before.sn and not urgent:
        # ON stays 0, and nobody is told: whoever clears SN must look at PIR afterwards (race-08).
        cpu.trace(Event.ELIDE_SN, vcpu, vector)
        return
    # NV and NDST as they were in the step that set ON: software may change them right after.
    cpu.send_ipi(before.ndst, before.nv, vcpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class PidPointerTable:
    """The table that the PID-pointer table address points to: virtual APIC ID -> descriptor.

    `entries` are the 8-byte entries as they lie in memory.  Descriptors are `DESCRIPTOR_BYTES`
    apart from physical address `base` on, in the order of their vCPUs.
    """

    entries: tuple[int, ...]
    last: int  # last PID-pointer index, a VMCS field
    base: int = 0x1000
    physical_address_width: int = 46

    def vcpu_of(self, target: int) -> int:
        """The vCPU whose descriptor `target` has, NO_DESCRIPTOR if the entry is not valid."""
        if target > self.last:
            return NO_DESCRIPTOR
        entry = self.entries[target]
        if entry & 0x3F != 1 or entry >> self.physical_address_width:
            return NO_DESCRIPTOR
        return (entry - 1 - self.base) // DESCRIPTOR_BYTES

    @classmethod
    def of_vcpus(cls, vcpus: int, base: int = 0x1000) -> "PidPointerTable":
        """The table that gives virtual APIC ID n the descriptor of vCPU n."""
        entries = tuple(base + n * DESCRIPTOR_BYTES | 1 for n in range(vcpus))
        return cls(entries=entries, last=vcpus - 1, base=base)
