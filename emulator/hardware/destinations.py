"""Who an interrupt message is for: ICR forms, and the match of a destination with a local APIC.

Pure.  Before: `LocalApic.write_icr` (its `send`).  Next: `LocalApic.accept` of every match.
SDM vol. 3, 10.6.1 (ICR), 10.6.2 (destinations), 10.12.9 and 10.12.10 (x2APIC).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from emulator.hardware.lapic import ApicMode, LocalApic


class DeliveryMode(IntEnum):
    """ICR bits 10:8.  FIXED and LOWEST_PRIORITY go through IRR, the others bypass it."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    NMI = 4
    INIT = 5
    SIPI = 6


class Shorthand(IntEnum):
    """ICR bits 19:18."""

    NONE = 0
    SELF = 1
    ALL_INCLUDING_SELF = 2
    ALL_EXCLUDING_SELF = 3


class LogicalModel(Enum):
    """How a logical destination is read: DFR bits 31:28 in xAPIC mode, always one in x2APIC."""

    FLAT = "flat"
    CLUSTER = "cluster"
    X2APIC = "x2apic"


@dataclass(frozen=True, slots=True)
class Icr:
    """One write of the interrupt command register, taken apart."""

    vector: int
    delivery_mode: int
    logical: bool
    level: bool
    level_triggered: bool
    shorthand: Shorthand
    destination: int  # 8 bits in xAPIC mode, 32 in x2APIC mode


def decode_icr(value: int, mode: ApicMode) -> Icr:
    """From the register's 64 bits."""
    return Icr(
        vector=value & 0xFF,
        delivery_mode=value >> 8 & 7,
        logical=bool(value >> 11 & 1),
        level=bool(value >> 14 & 1),
        level_triggered=bool(value >> 15 & 1),
        shorthand=Shorthand(value >> 18 & 3),
        destination=value >> (32 if mode is ApicMode.X2APIC else 56),
    )


def x2apic_ldr(apic_id: int) -> int:
    """The logical ID that x2APIC mode derives from the ID: cluster 31:16, one bit of 15:0."""
    return (apic_id >> 4 & 0xFFFF) << 16 | 1 << (apic_id & 15)


def logical_match(model: LogicalModel, destination: int, ldr: int) -> bool:
    """`ldr` is the logical APIC ID: one byte (LDR bits 31:24) in xAPIC mode, else LDR."""
    match model:
        case LogicalModel.FLAT:
            return destination == 0xFF or destination & ldr & 0xFF != 0
        case LogicalModel.CLUSTER:
            same = destination >> 4 == ldr >> 4
            return destination == 0xFF or (same and destination & ldr & 15 != 0)
        case LogicalModel.X2APIC:
            same = destination >> 16 == ldr >> 16
            return destination == 0xFFFF_FFFF or (same and destination & ldr & 0xFFFF != 0)


def is_destination(apic: LocalApic, icr: Icr) -> bool:
    """Whether `apic` is meant by a message without shorthand."""
    x2apic = apic.mode is ApicMode.X2APIC
    if not icr.logical:
        broadcast = 0xFFFF_FFFF if x2apic else 0xFF
        return icr.destination in (broadcast, apic.apic_id)
    if x2apic:
        return logical_match(LogicalModel.X2APIC, icr.destination, x2apic_ldr(apic.apic_id))
    model = LogicalModel.FLAT if apic.dfr >> 28 == 15 else LogicalModel.CLUSTER
    return logical_match(model, icr.destination, apic.ldr >> 24)


def targets(apics: Sequence[LocalApic], sender: int, icr: Icr) -> list[int]:
    """The positions in `apics` of those that a message of `apics[sender]` reaches.

    Lowest priority: one of the matches, that with the lowest PPR, and the first of equals.
    """
    match icr.shorthand:
        case Shorthand.SELF:
            found = [sender]
        case Shorthand.ALL_INCLUDING_SELF:
            found = list(range(len(apics)))
        case Shorthand.ALL_EXCLUDING_SELF:
            found = [i for i in range(len(apics)) if i != sender]
        case Shorthand.NONE:
            found = [i for i, apic in enumerate(apics) if is_destination(apic, icr)]
    enabled = [i for i in found if apics[i].mode is not ApicMode.DISABLED]
    if icr.delivery_mode == DeliveryMode.LOWEST_PRIORITY:
        return sorted(enabled, key=lambda i: apics[i].ppr())[:1]
    return enabled
