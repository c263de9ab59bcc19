"""The guest's instructions, as far as interrupts are concerned.

Each function executes one instruction in non-root operation and returns an `Outcome`: None when it
completed, an `ExitReason` when the guest is out, FAULT or IPI (below).  It does not look for
interrupts: the caller calls `LogicalProcessor.boundary()` after each, and goes on with that.
A shadow (blocking by STI or MOV SS) ends with the next instruction that completes.
SDM vol. 3, 25.1 and 25.3 (exits by instruction), 29.3 (CR8), 29.4 (page), 29.5 (MSRs).
"""

from typing import Final

from emulator.hardware import access
from emulator.hardware.access import Access
from emulator.hardware.apicv import VEOI, VICR_HIGH, VTPR, ApicPage
from emulator.hardware.lapic import ICR_RESERVED, ApicMode
from emulator.hardware.vectors import MSR_X2APIC_EOI, ExitReason
from emulator.hardware.vmcs import BLOCKING_BY_MOV_SS, BLOCKING_BY_STI, Activity
from emulator.hardware.vmx import LogicalProcessor, Outcome

FAULT: Final = -1  # #GP(0): nothing has changed but that a shadow has ended
IPI: Final = -2  # `processor.ipi` is to be sent: the caller runs `senders.ipi_virtualization`

_EOI: Final = Access.EOI  # a name of its own: cheaper than the enumeration's
_HLT: Final = int(ExitReason.HLT)
_VMCALL: Final = int(ExitReason.VMCALL)
_CR_ACCESS: Final = int(ExitReason.CR_ACCESS)
_MSR_READ: Final = int(ExitReason.MSR_READ)
_MSR_WRITE: Final = int(ExitReason.MSR_WRITE)
_MWAIT: Final = int(ExitReason.MWAIT)
_TPR_BELOW_THRESHOLD: Final = int(ExitReason.TPR_BELOW_THRESHOLD)
_APIC_ACCESS: Final = int(ExitReason.APIC_ACCESS)
_VIRTUALIZED_EOI: Final = int(ExitReason.VIRTUALIZED_EOI)
_APIC_WRITE: Final = int(ExitReason.APIC_WRITE)

_CR8 = 8  # control-register number in the exit qualification of a CR access, SDM table 27-3
_CR_READ = 1 << 4
_PAGE_WRITE = 1 << 12  # access type in the exit qualification of an APIC access, SDM table 27-6


# -- IF and the shadows ---------------------------------------------------------------------------


def nop(p: LogicalProcessor) -> Outcome:
    """NOP, PAUSE, or any instruction that means nothing to interrupts."""
    p.guest.interruptibility = 0
    return None


def sti(p: LogicalProcessor) -> Outcome:
    """STI.  The shadow of one instruction comes only with a change of IF."""
    guest = p.guest
    guest.interruptibility = 0 if guest.interrupt_flag else BLOCKING_BY_STI
    guest.interrupt_flag = True
    return None


def cli(p: LogicalProcessor) -> Outcome:
    """CLI."""
    p.guest.interruptibility = 0
    p.guest.interrupt_flag = False
    return None


def mov_ss(p: LogicalProcessor) -> Outcome:
    """MOV to SS, POP SS."""
    p.guest.interruptibility = BLOCKING_BY_MOV_SS
    return None


def iret(p: LogicalProcessor, interrupt_flag: bool = True) -> Outcome:
    """IRET.  `interrupt_flag` is the frame's IF: an interrupt gate was entered with IF = 1."""
    p.guest.interruptibility = 0
    p.guest.interrupt_flag = interrupt_flag
    return None


# -- waiting --------------------------------------------------------------------------------------


def hlt(p: LogicalProcessor) -> Outcome:
    """HLT.  With HLT exiting the exit comes before halting: RIP stays on the HLT."""
    if p.controls.hlt_exiting:
        return p.vm_exit(_HLT)
    p.guest.interruptibility = 0
    p.guest.activity = Activity.HLT
    return None


def mwait(p: LogicalProcessor, ecx: int = 0) -> Outcome:
    """MWAIT.  ECX[0] = 1: interrupts end it although IF = 0.  SDM 25.3, 29.2.1."""
    if p.controls.mwait_exiting:
        return p.vm_exit(_MWAIT)
    guest = p.guest
    guest.interruptibility = 0
    if ecx & 1 and not guest.interrupt_flag and p.vapic.recognised:
        return None  # it does not begin to wait
    guest.activity = Activity.MWAIT
    return None


def vmcall(p: LogicalProcessor) -> Outcome:
    """VMCALL: an exit, always."""
    return p.vm_exit(_VMCALL)


# -- CR8 ------------------------------------------------------------------------------------------


def mov_to_cr8(p: LogicalProcessor, value: int) -> Outcome:
    """MOV to CR8, SDM 29.3: VTPR[7:4] := value, the rest of VTPR := 0."""
    if p.controls.cr8_load_exiting:
        return p.vm_exit(_CR_ACCESS, _CR8)
    p.guest.interruptibility = 0
    if value >> 4:
        return FAULT
    if not p.controls.use_tpr_shadow:
        p.lapic.cr8 = value
        return None
    p.vapic.page.write32(VTPR, value << 4)
    return _tpr_virtualization(p)


def mov_from_cr8(p: LogicalProcessor) -> Outcome:
    """MOV from CR8; `result` gets VTPR[7:4]."""
    if p.controls.cr8_store_exiting:
        return p.vm_exit(_CR_ACCESS, _CR8 | _CR_READ)
    p.guest.interruptibility = 0
    if p.controls.use_tpr_shadow:
        p.result = p.vapic.page.read32(VTPR) >> 4 & 15
    else:
        p.result = p.lapic.cr8
    return None


# -- MSRs -----------------------------------------------------------------------------------------


def eoi(p: LogicalProcessor) -> Outcome:
    """The guest's EOI, in the way of its APIC: WRMSR 80BH with 0, or a write of 0 to 0B0H."""
    if p.controls.virtualize_apic_accesses:
        return xapic_write(p, access.EOI, 0)
    return wrmsr(p, MSR_X2APIC_EOI, 0)


def wrmsr(p: LogicalProcessor, msr: int, value: int) -> Outcome:
    """WRMSR, SDM 29.5.  `value` is EDX:EAX."""
    if msr in p.vmcs.msr_write_intercepts:
        p.exit_msr = msr
        p.exit_value = value
        return p.vm_exit(_MSR_WRITE)
    p.guest.interruptibility = 0
    if not access.FIRST_MSR <= msr <= access.LAST_MSR:
        return FAULT  # no other MSR is modelled
    outcome = p.msr_writes[msr - access.FIRST_MSR]
    if outcome is _EOI:  # ahead of the others: every handler ends with it
        if value:
            return FAULT
        return _eoi_virtualization(p)
    return _write_x2apic(p, msr, value, outcome)


def _write_x2apic(p: LogicalProcessor, msr: int, value: int, outcome: Access) -> Outcome:
    """A WRMSR of 800H to 8FFH that does not exit; `outcome` is what it is to the processor."""
    page = p.vapic.page
    match outcome:
        case Access.TPR:
            if value >> 8:
                return FAULT
            page.write32(access.TPR, value)
            return _tpr_virtualization(p)
        case Access.SELF_IPI:
            if value >> 8:
                return FAULT
            page.write32(access.SELF_IPI, value)
            if value >> 4 == 0:
                return p.vm_exit(_APIC_WRITE, access.SELF_IPI)
            p.vapic.self_ipi_virtualization(value)
            return None
        case Access.ICR:
            if value & ICR_RESERVED:
                return FAULT
            page.write32(access.ICR_LOW, value)
            page.write32(access.ICR_LOW + 4, value >> 32)  # x2APIC: 64 bits in one piece
            return _icr(p, value & 0xFFFF_FFFF, value >> 32)
        case Access.PASSTHROUGH:
            return None if p.lapic.write_register(msr - access.FIRST_MSR << 4, value) else FAULT
        case _:
            return FAULT


def rdmsr(p: LogicalProcessor, msr: int) -> Outcome:
    """RDMSR, SDM 29.5; `result` gets EDX:EAX."""
    if msr in p.vmcs.msr_read_intercepts:
        p.exit_msr = msr
        return p.vm_exit(_MSR_READ)
    p.guest.interruptibility = 0
    if not access.FIRST_MSR <= msr <= access.LAST_MSR:
        return FAULT
    x2apic = p.lapic.mode is ApicMode.X2APIC
    offset = msr - access.FIRST_MSR << 4
    match access.msr_read(p.controls, msr, x2apic=x2apic):
        case Access.VIRTUAL:
            # 64 bits from the page: only the ICR has an upper half that is not 0.
            page = p.vapic.page
            p.result = page.read32(offset) | page.read32(offset + 4) << 32
        case Access.PASSTHROUGH:
            p.result = p.lapic.read_register(offset)
        case _:
            return FAULT
    return None


# -- the APIC-access page -------------------------------------------------------------------------


def xapic_write(p: LogicalProcessor, offset: int, value: int) -> Outcome:
    """A 32-bit write at `offset` of the APIC-access page.  SDM 29.4.3."""
    outcome = access.page_write(p.controls, offset)
    if outcome is Access.ACCESS_EXIT:
        return p.vm_exit(_APIC_ACCESS, offset | _PAGE_WRITE)
    p.guest.interruptibility = 0
    if outcome is Access.MEMORY:
        _plain_memory(p).write32(offset, value)
        return None
    page = p.vapic.page
    page.write32(offset, value)
    match outcome:
        case Access.TPR:
            page.write32(access.TPR, value & 0xFF)
            return _tpr_virtualization(p)
        case Access.EOI:
            return _eoi_virtualization(p)
        case Access.MASK:
            page.write32(access.ICR_HIGH, value & 0xFF00_0000)
            return None
        case Access.ICR:
            return _icr(p, value, page.read32(VICR_HIGH) >> 24)
        case _:
            return p.vm_exit(_APIC_WRITE, offset)


def xapic_read(p: LogicalProcessor, offset: int) -> Outcome:
    """A 32-bit read at `offset` of the APIC-access page; `result` gets it.  SDM 29.4.2."""
    match access.page_read(p.controls, offset):
        case Access.ACCESS_EXIT:
            return p.vm_exit(_APIC_ACCESS, offset)
        case Access.MEMORY:
            p.result = _plain_memory(p).read32(offset)
        case _:
            p.result = p.vapic.page.read32(offset)
    p.guest.interruptibility = 0
    return None


# -- what several of them lead to -----------------------------------------------------------------


def _tpr_virtualization(p: LogicalProcessor) -> Outcome:
    return p.vm_exit(_TPR_BELOW_THRESHOLD) if p.vapic.tpr_virtualization() else None


def _eoi_virtualization(p: LogicalProcessor) -> Outcome:
    vapic = p.vapic
    vapic.page.words[VEOI >> 2] = 0  # the processor clears VEOI first
    vector = vapic.eoi_virtualization()
    return None if vector is None else p.vm_exit(_VIRTUALIZED_EOI, vector)


def _icr(p: LogicalProcessor, low: int, target: int) -> Outcome:
    """VICR has been written: send to self, send by IPI virtualization, or exit 56."""
    if p.controls.virtual_interrupt_delivery and access.is_self_ipi(low):
        p.vapic.self_ipi_virtualization(low & 0xFF)
        return None
    if p.controls.ipi_virtualization and access.is_virtualizable_ipi(low):
        p.ipi = (low & 0xFF, target)
        return IPI
    return p.vm_exit(_APIC_WRITE, access.ICR_LOW)


def _plain_memory(p: LogicalProcessor) -> ApicPage:
    if p.vmcs.apic_access_page is None:
        p.vmcs.apic_access_page = ApicPage()
    return p.vmcs.apic_access_page
