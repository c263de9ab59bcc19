"""The posted-interrupt descriptor: 64 bytes, 64-byte aligned, and what its bits mean.

Layout only: the atomic operations on it are steps of `cpu` (`hardware/cpu.py`), its plain form for
one thread is `hardware/bare`.  SDM vol. 3, table 29-1; VT-d specification 9.11 for NV and NDST;
Linux: struct pi_desc, arch/x86/include/asm/posted_intr.h.

    bits      bytes    name
    255:0     0..31    PIR   bit v: vector v is requested
    256       32       ON    a notification is outstanding
    257       32       SN    hardware senders must not notify
    279:272   34       NV    the vector that hardware senders send
    319:288   36..39   NDST  the APIC ID that they send it to
"""

from typing import Final

from emulator.hardware.cpu import Control

DESCRIPTOR_BYTES: Final = 64
PIR_BYTES: Final = 32
CONTROL_OFFSET: Final = 32  # the u64 of bits 256..319
NV_OFFSET: Final = 34
NDST_OFFSET: Final = 36

ON_BIT: Final = 256  # within the descriptor
SN_BIT: Final = 257
ON: Final = 1 << 0  # within the control word
SN: Final = 1 << 1
_NV_SHIFT = 16
_NDST_SHIFT = 32

Buffer = bytearray | memoryview


def pack_control(control: Control) -> int:
    """The u64 of bits 256..319; its reserved bits are 0."""
    return (
        (ON if control.on else 0)
        | (SN if control.sn else 0)
        | (control.nv & 0xFF) << _NV_SHIFT
        | (control.ndst & 0xFFFF_FFFF) << _NDST_SHIFT
    )


def unpack_control(word: int) -> Control:
    """What `pack_control` packed, from the u64 of bits 256..319."""
    return Control(
        on=bool(word & ON),
        sn=bool(word & SN),
        nv=word >> _NV_SHIFT & 0xFF,
        ndst=word >> _NDST_SHIFT & 0xFFFF_FFFF,
    )


def read_control(descriptor: Buffer) -> int:
    """The control word.  A plain load."""
    return int.from_bytes(descriptor[CONTROL_OFFSET : CONTROL_OFFSET + 8], "little")


def write_control(descriptor: Buffer, word: int) -> None:
    """The control word.  A plain store: for one thread, or before anybody else looks."""
    descriptor[CONTROL_OFFSET : CONTROL_OFFSET + 8] = word.to_bytes(8, "little")


def read_pir(descriptor: Buffer) -> int:
    """PIR as a 256-bit number; bit v is vector v.  A plain load."""
    return int.from_bytes(descriptor[:PIR_BYTES], "little")


def write_pir(descriptor: Buffer, pir: int) -> None:
    """PIR from a 256-bit number.  A plain store."""
    descriptor[:PIR_BYTES] = pir.to_bytes(PIR_BYTES, "little")


def ndst_of(apic_id: int, *, x2apic: bool) -> int:
    """NDST for a destination: all 32 bits in x2APIC mode, bits 15:8 in xAPIC mode."""
    return apic_id & 0xFFFF_FFFF if x2apic else (apic_id & 0xFF) << 8


def apic_id_of(ndst: int, *, x2apic: bool) -> int:
    """The APIC ID that a sender reads from NDST."""
    return ndst & 0xFFFF_FFFF if x2apic else ndst >> 8 & 0xFF
