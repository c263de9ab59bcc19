"""The physical local APIC of one pCPU: what is pending, in service, and presented to the core.

A LAPIC coalesces: one IRR and one ISR bit per vector, so at most two of a vector are outstanding.
A world with a queue in front of it must fold the queue in here on receipt, or it would show
sequences that hardware cannot.
Before: `machine/fabric` or a timer brought a vector.  Next: `hardware/vmx` in non-root operation,
the host's IDT in root operation.  Destinations and ICR forms: `hardware/destinations`; timers:
`hardware/timer`.  SDM vol. 3, 10.8 (interrupts), 10.5 (registers), 10.12 (x2APIC).
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

from emulator.hardware.vectors import BIT, FIRST_LEGAL_VECTOR

SEND_ILLEGAL_VECTOR: Final = 1 << 5  # error status register, SDM 10.5.3
RECEIVE_ILLEGAL_VECTOR: Final = 1 << 6

ICR_DELIVERY_STATUS: Final = 1 << 12
ICR_RESERVED: Final = 0xFFF0_0000 | 3 << 16 | 1 << 13  # of the low half, SDM figure 10-28

APIC_BASE_EXTD: Final = 1 << 10  # IA32_APIC_BASE, SDM 10.12.1
APIC_BASE_EN: Final = 1 << 11


class ApicMode(Enum):
    """EN and EXTD of IA32_APIC_BASE.  The fourth combination, EXTD alone, cannot be reached."""

    DISABLED = "disabled"
    XAPIC = "xapic"
    X2APIC = "x2apic"


_MODE_OF_BITS: Final = {
    0: ApicMode.DISABLED,
    APIC_BASE_EN: ApicMode.XAPIC,
    APIC_BASE_EN | APIC_BASE_EXTD: ApicMode.X2APIC,
}
_FORBIDDEN: Final = frozenset(
    {(ApicMode.DISABLED, ApicMode.X2APIC), (ApicMode.X2APIC, ApicMode.XAPIC)}
)


def mode_after_base_write(mode: ApicMode, value: int) -> ApicMode | None:
    """The mode after WRMSR IA32_APIC_BASE with `value`; None: #GP.  SDM 10.12.5, figure 10-27.

    Into x2APIC mode only from xAPIC mode, out of it only by disabling; EXTD without EN never.
    """
    after = _MODE_OF_BITS.get(value & (APIC_BASE_EN | APIC_BASE_EXTD))
    return None if after is None or (mode, after) in _FORBIDDEN else after


class LocalApic:
    """IRR, ISR, TPR and the rules between them.

    `irr` and `isr` are 256-bit numbers, bit v for vector v.  `error` collects bits of the error
    status register.  `apic_id` is the physical ID; `ldr` and `dfr` take part in logical
    destinations (xAPIC; in x2APIC mode LDR follows from the ID).  `send` is called with the ICR's
    64 bits after each write that is not refused: the interrupt messages' way out.
    """

    __slots__ = (
        "apic_id",
        "dfr",
        "error",
        "icr",
        "irr",
        "isr",
        "ldr",
        "mode",
        "registers",
        "send",
        "tpr",
    )

    def __init__(
        self,
        apic_id: int = 0,
        mode: ApicMode = ApicMode.X2APIC,
        send: Callable[[int], None] | None = None,
    ) -> None:
        self.apic_id = apic_id
        self.mode = mode
        self.irr = 0
        self.isr = 0
        self.tpr = 0
        self.error = 0
        self.icr = 0
        self.ldr = 0
        self.dfr = 0xFFFF_FFFF  # flat, SDM 10.6.2.2
        self.registers: dict[int, int] = {}  # the rest, by offset: stored and read back
        self.send = send

    def accept(self, vector: int) -> bool:
        """Accept a fixed, edge-triggered interrupt, SDM 10.8.3.

        False if it merged into a pending one, or if the vector is illegal (0..15): then only
        the error status register shows it.
        """
        if vector < FIRST_LEGAL_VECTOR:
            self.error |= RECEIVE_ILLEGAL_VECTOR
            return False
        bit = BIT[vector]
        if self.irr & bit:
            return False
        self.irr |= bit
        return True

    def ppr(self) -> int:
        """The processor-priority register, SDM 10.8.3.1.

        At equal classes the manual leaves the low nibble to the model; here it is TPR's.
        """
        in_service = self.isr.bit_length() - 1
        if in_service > 0 and in_service & 0xF0 > self.tpr & 0xF0:
            return in_service & 0xF0
        return self.tpr & 0xFF

    def pending(self) -> int:
        """The vector presented to the core: the top of IRR if its class exceeds PPR's, or 0."""
        top = self.irr.bit_length() - 1
        if top < FIRST_LEGAL_VECTOR:
            return 0
        priority = top >> 4
        if priority > self.tpr >> 4 and priority > (self.isr.bit_length() - 1) >> 4:
            return top
        return 0

    def acknowledge(self) -> int:
        """INTA: the presented vector moves from IRR to ISR.  Only after `pending()` said so."""
        vector = self.irr.bit_length() - 1
        bit = BIT[vector]
        self.irr ^= bit
        self.isr |= bit
        return vector

    def eoi(self) -> None:
        """A write to the EOI register: the highest vector in service is done, SDM 10.8.5."""
        isr = self.isr
        if isr:
            self.isr = isr ^ BIT[isr.bit_length() - 1]

    @property
    def cr8(self) -> int:
        """CR8 is TPR's class, SDM 10.8.6."""
        return self.tpr >> 4

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.tpr = (value & 15) << 4

    def write_base(self, value: int) -> bool:
        """WRMSR IA32_APIC_BASE.  False: #GP, nothing changed."""
        after = mode_after_base_write(self.mode, value)
        if after is None:
            return False
        if after is ApicMode.DISABLED:
            self.irr = self.isr = self.tpr = 0  # back to the state after reset, SDM 10.4.3
        self.mode = after
        return True

    def write_icr(self, value: int) -> bool:
        """A write of the interrupt command register, 64 bits.  False: #GP, nothing changed.

        Read-back (SDM 10.6.1, 10.12.9): xAPIC mode drops the delivery status and bits 55:32;
        x2APIC mode faults on reserved bits of the low half and keeps everything else.
        """
        if self.mode is ApicMode.X2APIC:
            if value & ICR_RESERVED:
                return False
            self.icr = value & (1 << 64) - 1
        else:
            self.icr = value & (0xFF << 56 | 0xFFFF_FFFF) & ~ICR_DELIVERY_STATUS
        if self.send is not None:
            self.send(self.icr)
        return True

    def write_register(self, offset: int, value: int) -> bool:
        """A write by MSR that reaches this APIC; `offset` = (MSR & FF) << 4.  False: #GP."""
        match offset:
            case 0x080:
                if value >> 8:
                    return False
                self.tpr = value
            case 0x0B0:
                if value:
                    return False
                self.eoi()
            case 0x300:
                return self.write_icr(value)
            case 0x3F0:
                if value >> 8:
                    return False
                self.accept(value)
            case _:
                self.registers[offset] = value & 0xFFFF_FFFF
        return True

    def read_register(self, offset: int) -> int:
        """A read by MSR that reaches this APIC."""
        match offset:
            case 0x020:
                return self.apic_id
            case 0x080:
                return self.tpr
            case 0x0A0:
                return self.ppr()
            case 0x280:
                return self.error
            case 0x300:
                return self.icr
            case _ if 0x100 <= offset < 0x180:
                return self.isr >> 2 * (offset - 0x100) & 0xFFFF_FFFF
            case _ if 0x200 <= offset < 0x280:
                return self.irr >> 2 * (offset - 0x200) & 0xFFFF_FFFF
            case _:
                return self.registers.get(offset, 0)
