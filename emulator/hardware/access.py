"""What becomes of a guest's access to an APIC register: which are virtual, which exit, which fault.

Pure classification, from the controls and the register's place; `hardware/vmx` acts on it.
SDM vol. 3, 29.4 (the APIC-access page), 29.5 (MSRs 800H to 8FFH), table 10-6 (which MSRs exist).
"""

from enum import Enum
from functools import cache
from typing import Final

from emulator.hardware.lapic import ICR_RESERVED
from emulator.hardware.vmcs import Controls

TPR: Final = 0x080
EOI: Final = 0x0B0
ICR_LOW: Final = 0x300
ICR_HIGH: Final = 0x310
SELF_IPI: Final = 0x3F0

FIRST_MSR: Final = 0x800  # of the range that "virtualize x2APIC mode" looks at
LAST_MSR: Final = 0x8FF


class Access(Enum):
    """The outcome of one access."""

    ACCESS_EXIT = "access_exit"  # exit 44, fault-like, qualification = offset
    WRITE_EXIT = "write_exit"  # stored, then exit 56, trap-like, qualification = offset
    VIRTUAL = "virtual"  # read from the virtual-APIC page
    TPR = "virtual:tpr"  # stored, then TPR virtualization
    EOI = "virtual:eoi"  # EOI virtualization
    ICR = "virtual:icr"  # self-IPI virtualization, IPI virtualization or exit 56, by its form
    SELF_IPI = "virtual:self_ipi"  # WRMSR 83F: self-IPI virtualization, class 0: exit 56
    MASK = "virtual:mask"  # 310H: bytes 2:0 cleared, no exit
    FAULT = "#GP"
    PASSTHROUGH = "passthrough"  # the physical APIC's register
    MEMORY = "memory"  # no page is being virtualized: ordinary memory


_LOCAL_VECTORS = (*range(0x320, 0x390, 0x10), 0x3E0)  # LVT entries, initial count, divide

# What "APIC-register virtualization" lets the guest read (29.4.2) and write (29.4.3).
_REGISTER_READS: Final = frozenset(
    (0x020, 0x030, TPR, EOI, 0x0D0, 0x0E0, 0x0F0, *range(0x100, 0x290, 0x10), ICR_LOW, ICR_HIGH)
).union(_LOCAL_VECTORS)
_REGISTER_WRITES: Final = frozenset(
    (0x020, TPR, EOI, 0x0D0, 0x0E0, 0x0F0, 0x280, ICR_LOW, ICR_HIGH, *_LOCAL_VECTORS)
)


def page_read(controls: Controls, offset: int) -> Access:
    """A 32-bit aligned read at `offset` of the APIC-access page.  `controls` as in force."""
    if not controls.virtualize_apic_accesses:
        return Access.MEMORY
    if controls.use_tpr_shadow:
        if offset == TPR:
            return Access.VIRTUAL
        if controls.apic_register_virtualization and offset in _REGISTER_READS:
            return Access.VIRTUAL
    return Access.ACCESS_EXIT


def page_write(controls: Controls, offset: int) -> Access:
    """A 32-bit aligned write at `offset` of the APIC-access page.  `controls` as in force."""
    if not controls.virtualize_apic_accesses:
        return Access.MEMORY
    if not controls.use_tpr_shadow:
        return Access.ACCESS_EXIT
    if offset == TPR:
        return Access.TPR
    if controls.virtual_interrupt_delivery and offset == EOI:
        return Access.EOI
    if offset == ICR_LOW and (controls.virtual_interrupt_delivery or controls.ipi_virtualization):
        return Access.ICR
    if controls.apic_register_virtualization and offset in _REGISTER_WRITES:
        return Access.MASK if offset == ICR_HIGH else Access.WRITE_EXIT
    return Access.ACCESS_EXIT


# Table 10-6: MSRs of the x2APIC by what an access to the physical one does.  82FH (LVT CMCI)
# exists only where LVT entry 6 does, and does not here.
_READ_WRITE: Final = frozenset([0x808, 0x80F, 0x828, 0x830, *range(0x832, 0x839), 0x83E])
_READ_ONLY: Final = frozenset([0x802, 0x803, 0x80A, 0x80D, *range(0x810, 0x828), 0x839])
_WRITE_ONLY: Final = frozenset([0x80B, 0x83F])


def physical_msr(msr: int, *, write: bool, x2apic: bool) -> Access:
    """An access that reaches the physical APIC, whose mode is x2APIC or not."""
    allowed = _READ_WRITE | (_WRITE_ONLY if write else _READ_ONLY)
    return Access.PASSTHROUGH if x2apic and msr in allowed else Access.FAULT


def msr_read(controls: Controls, msr: int, *, x2apic: bool) -> Access:
    """RDMSR 800H to 8FFH that the MSR bitmap does not intercept, SDM 29.5."""
    if controls.virtualize_x2apic_mode and (
        controls.apic_register_virtualization or msr == FIRST_MSR | TPR >> 4
    ):
        return Access.VIRTUAL
    return physical_msr(msr, write=False, x2apic=x2apic)


def msr_write(controls: Controls, msr: int, *, x2apic: bool) -> Access:
    """WRMSR 800H to 8FFH that the MSR bitmap does not intercept, SDM 29.5."""
    if controls.virtualize_x2apic_mode:
        match (msr & 0xFF) << 4:
            case offset if offset == TPR:
                return Access.TPR
            case offset if offset == EOI and controls.virtual_interrupt_delivery:
                return Access.EOI
            case offset if offset == SELF_IPI and controls.virtual_interrupt_delivery:
                return Access.SELF_IPI
            case offset if offset == ICR_LOW and controls.ipi_virtualization:
                return Access.ICR
    return physical_msr(msr, write=True, x2apic=x2apic)


@cache
def msr_write_table(controls: Controls, *, x2apic: bool) -> tuple[Access, ...]:
    """`msr_write` of 800H + i at index i: one look instead of a decision per WRMSR."""
    msrs = range(FIRST_MSR, LAST_MSR + 1)
    return tuple(msr_write(controls, msr, x2apic=x2apic) for msr in msrs)


def is_self_ipi(icr_low: int) -> bool:
    """The ICR form that self-IPI virtualization takes, SDM 29.4.3.2.

    Shorthand self, fixed, edge, idle, reserved bits 0, vector class above 0.  Bits 11 and 14 are
    not looked at.
    """
    looked_at = ICR_RESERVED | 3 << 18 | 1 << 15 | 1 << 12 | 7 << 8
    return icr_low & looked_at == 1 << 18 and icr_low & 0xF0 != 0


def is_virtualizable_ipi(icr_low: int) -> bool:
    """The ICR form that IPI virtualization takes: fixed, edge, physical, no shorthand.

    The vector's class and the target's table entry are `senders.ipi_virtualization`'s to check.
    """
    return icr_low & (ICR_RESERVED | 3 << 18 | 1 << 15 | 1 << 12 | 1 << 11 | 7 << 8) == 0
