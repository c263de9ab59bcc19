"""Vectors, modes and small enums that several rooms name.

Vectors: arch/x86/include/asm/irq_vectors.h.  Modes: include/linux/kvm_host.h.
MSR numbers: SDM vol. 3, table 10-6 and section 10.5.4.1.
"""

from enum import IntEnum
from typing import Final

POSTED_INTR_VECTOR: Final = 0xF2  # /proc/interrupts: PIN
POSTED_INTR_WAKEUP_VECTOR: Final = 0xF1  # PIW
POSTED_INTR_NESTED_VECTOR: Final = 0xF0  # NPI
RESCHEDULE_VECTOR: Final = 0xFD  # RES
LOCAL_TIMER_VECTOR: Final = 0xEC  # LOC
FIRST_DEVICE_VECTOR: Final = 0x22  # host vectors of devices in remapped mode start here

FIRST_LEGAL_VECTOR: Final = 0x10  # 0..15 are illegal in the APIC

# A vector's place in a 256-bit register, and all the others: looked up in half the time of a shift.
BIT: Final = tuple(1 << vector for vector in range(256))
OTHERS: Final = tuple(~bit & (1 << 256) - 1 for bit in BIT)

MSR_TSC_DEADLINE: Final = 0x6E0
MSR_X2APIC_TPR: Final = 0x808
MSR_X2APIC_EOI: Final = 0x80B
MSR_X2APIC_ICR: Final = 0x830
MSR_X2APIC_SELF_IPI: Final = 0x83F


class Mode(IntEnum):
    """`vcpu->mode`.  The only transition made by another CPU is 1 -> 2 (a kick)."""

    OUTSIDE_GUEST_MODE = 0
    IN_GUEST_MODE = 1
    EXITING_GUEST_MODE = 2
    READING_SHADOW_PAGE_TABLES = 3


class ExitReason(IntEnum):
    """VM-exit reasons, SDM vol. 3 appendix C.  Only those that this model can produce."""

    EXTERNAL_INTERRUPT = 1
    INTERRUPT_WINDOW = 7
    HLT = 12
    VMCALL = 18
    CR_ACCESS = 28
    MSR_READ = 31
    MSR_WRITE = 32
    MWAIT = 36
    TPR_BELOW_THRESHOLD = 43
    APIC_ACCESS = 44
    VIRTUALIZED_EOI = 45
    PREEMPTION_TIMER = 52
    APIC_WRITE = 56


# The members that protocol text names, as the kernel spells them (see `kvm/params.py`).
OUTSIDE_GUEST_MODE: Final = Mode.OUTSIDE_GUEST_MODE
IN_GUEST_MODE: Final = Mode.IN_GUEST_MODE
EXITING_GUEST_MODE: Final = Mode.EXITING_GUEST_MODE
EXIT_REASON_EXTERNAL_INTERRUPT: Final = int(ExitReason.EXTERNAL_INTERRUPT)
EXIT_REASON_HLT: Final = int(ExitReason.HLT)
EXIT_REASON_INTERRUPT_WINDOW: Final = int(ExitReason.INTERRUPT_WINDOW)
EXIT_REASON_MSR_WRITE: Final = int(ExitReason.MSR_WRITE)
EXIT_REASON_PREEMPTION_TIMER: Final = int(ExitReason.PREEMPTION_TIMER)
