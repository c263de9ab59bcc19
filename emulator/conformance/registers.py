"""Matrices of register accesses: every access is executed, and what it did decides its outcome.

Each row has outcomes with lists of registers, for reads and writes; each outcome is a check on one
access that was really made.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from emulator.conformance.bench import controls_of
from emulator.conformance.tables import Silent, rows_of
from emulator.conformance.words import MismatchError, NotUnderstoodError, check, known_keys
from emulator.hardware import entry_checks, instructions
from emulator.hardware.apicv import VICR_HIGH, VICR_LOW, VIRR, VISR, VPPR, VTPR, ApicPage
from emulator.hardware.lapic import ApicMode, LocalApic
from emulator.hardware.vectors import ExitReason
from emulator.hardware.vmcs import Controls, GuestState, Vmcs
from emulator.hardware.vmx import LogicalProcessor, Outcome

IN_SERVICE: Final = 0x61  # in the page when the access is made
SELF_IPI: Final = 0x51
WRITTEN: Final = 0x9ABC_DEF4  # no self-IPI form, and every byte differs from what was there


class SpyApic(LocalApic):
    """A local APIC that remembers which registers were reached."""

    __slots__ = ("reached",)

    def __init__(self, mode: ApicMode) -> None:
        super().__init__(mode=mode)
        self.reached: list[int] = []

    def write_register(self, offset: int, value: int) -> bool:
        self.reached.append(offset)
        return super().write_register(offset, value)

    def read_register(self, offset: int) -> int:
        self.reached.append(offset)
        return super().read_register(offset)


class Access:
    """A guest that makes one access, with IF = 0 and one vector in service."""

    def __init__(self, controls: Controls, mode: ApicMode = ApicMode.X2APIC) -> None:
        self.apic = SpyApic(mode)
        self.processor = LogicalProcessor(self.apic, Silent())
        self.vmcs = Vmcs(controls, guest=GuestState(interrupt_flag=False))
        self.page = self.vmcs.vapic.page
        self.page.set_bit(VISR, IN_SERVICE)
        self.vmcs.svi = IN_SERVICE
        if self.processor.vm_entry(self.vmcs) is not None:
            raise MismatchError("VM exit at entry")
        self.outcome: Outcome = None

    def exited(self, reason: ExitReason, qualification: int) -> None:
        """It exited like this, or it is a mismatch."""
        got = "no exit" if self.outcome is None else self.outcome
        check("outcome", got, int(reason))
        check("qualification", self.processor.exit_qualification & 0xFFF, qualification)

    def completed(self) -> None:
        """No exit, no fault."""
        check("outcome", self.outcome, None)

    def clear_of(self, offset: int) -> None:
        """The physical APIC was not reached."""
        check(f"physical accesses for {offset:#x}", self.apic.reached, [])


# -- xapic-access ---------------------------------------------------------------------------------


def run_xapic_access(data: dict[str, Any]) -> None:
    """Rows {config, controls, read, write}: outcome -> offsets, three hexadecimal digits."""
    for row in rows_of(data):
        known_keys("row", row, ("config", "controls", "read", "write", "origin", "notes"))
        base = {"activate_secondary_controls": True, "external_interrupt_exiting": True}
        controls = controls_of(base | row.get("controls", {}))
        for outcome, offset in _entries(row, "read"):
            _explained(row, f"read {offset:03x}", _page_read, controls, outcome, offset)
        for outcome, offset in _entries(row, "write"):
            _explained(row, f"write {offset:03x}", _page_write, controls, outcome, offset)


def _entries(row: dict[str, Any], direction: str) -> Iterator[tuple[str, int]]:
    outcomes = row.get(direction)
    if not isinstance(outcomes, dict):
        raise NotUnderstoodError(f"row {row.get('config')!r} has no {direction!r}")
    for outcome, registers in outcomes.items():
        for register in registers:
            if not re.fullmatch(r"[0-9a-fA-F]{3}", str(register)):
                raise NotUnderstoodError(f"register {register!r}")
            yield outcome, int(register, 16)


def _explained(row: dict[str, Any], what: str, run: Callable[..., None], *args: Any) -> None:
    """A mismatch names its row and access."""
    try:
        run(*args)
    except MismatchError as mismatch:
        raise MismatchError(f"{row.get('config')}: {what}: {mismatch}") from mismatch


def _page_read(controls: Controls, outcome: str, offset: int) -> None:
    access = Access(controls)
    access.page.write32(offset, WRITTEN)
    access.outcome = instructions.xapic_read(access.processor, offset)
    match outcome:
        case "access_exit":
            access.exited(ExitReason.APIC_ACCESS, offset)
        case "virtual":
            access.completed()
            check("value", access.processor.result, WRITTEN)
        case "memory":
            access.completed()
            check("value", access.processor.result, 0)
        case _:
            raise NotUnderstoodError(f"unknown outcome {outcome!r}")


def _page_write(controls: Controls, outcome: str, offset: int) -> None:
    access = Access(controls)
    before = access.page.read32(offset)
    access.outcome = instructions.xapic_write(access.processor, offset, WRITTEN)
    stored = access.page.read32(offset)
    match outcome:
        case "access_exit":
            access.exited(ExitReason.APIC_ACCESS, offset)
            check("stored", stored, before)
        case "write_exit":
            access.exited(ExitReason.APIC_WRITE, offset)
            check("stored", stored, WRITTEN)
            # Whatever is written: also what would be a self-IPI, if self-IPIs were virtual.
            _self_ipi_write(controls, offset).exited(ExitReason.APIC_WRITE, offset)
        case "virtual:tpr":
            _check_tpr(access, stored)
        case "virtual:eoi":
            _check_eoi(access)
        case "virtual:mask":
            access.completed()
            check("stored", stored, WRITTEN & 0xFF00_0000)
        case "virtual:self_ipi_or_write_exit":
            access.exited(ExitReason.APIC_WRITE, offset)
            check("stored", stored, WRITTEN)
            access = Access(controls)
            access.outcome = instructions.xapic_write(access.processor, offset, 1 << 18 | SELF_IPI)
            _check_self_ipi(access)
        case "memory":
            access.completed()
            check("stored", stored, before)
        case _:
            raise NotUnderstoodError(f"unknown outcome {outcome!r}")


def _self_ipi_write(controls: Controls, offset: int) -> Access:
    access = Access(controls)
    access.outcome = instructions.xapic_write(access.processor, offset, 1 << 18 | SELF_IPI)
    return access


def _check_tpr(access: Access, stored: int) -> None:
    access.completed()
    check("VTPR", stored, WRITTEN & 0xFF)
    if access.processor.controls.virtual_interrupt_delivery:
        check("VPPR", access.page.read32(VPPR), WRITTEN & 0xFF)  # its class is above IN_SERVICE's


def _check_eoi(access: Access) -> None:
    access.completed()
    check("SVI", access.vmcs.vapic.svi, 0)
    check("VISR", access.page.bits(VISR), 0)


def _check_self_ipi(access: Access) -> None:
    access.completed()
    check("VIRR", access.page.bits(VIRR), 1 << SELF_IPI)
    check("RVI", access.vmcs.vapic.rvi, SELF_IPI)


# -- x2apic-msr -----------------------------------------------------------------------------------


def run_x2apic_msr(data: dict[str, Any]) -> None:
    """Rows {config, read, write}: outcome -> MSRs.  The configuration is told in words."""
    for row in rows_of(data):
        known_keys("row", row, ("config", "controls", "read", "write", "origin", "notes"))
        for controls, mode in _configurations(row):
            for outcome, msr in _entries(row, "read"):
                _explained(row, f"RDMSR {msr:x}", _msr_read, controls, mode, outcome, msr)
            for outcome, msr in _entries(row, "write"):
                _explained(row, f"WRMSR {msr:x}", _msr_write, controls, mode, outcome, msr)


_BASELINE: Final = Controls(
    external_interrupt_exiting=True,
    use_tpr_shadow=True,
    activate_secondary_controls=True,
    virtualize_x2apic_mode=True,
    apic_register_virtualization=True,
    virtual_interrupt_delivery=True,
)


def _configurations(row: dict[str, Any]) -> list[tuple[Controls, ApicMode]]:
    """What a row's words stand for; "secondary controls or the control itself" are two."""
    words = str(row.get("config", "")).lower()
    if not re.search(r"baseline|x2apic|register virt|vid", words):
        raise NotUnderstoodError(f"config {row.get('config')!r}")
    controls = _BASELINE
    if "controls" in row:
        known_keys("controls", row["controls"], Controls.__dataclass_fields__)
        controls = replace(controls, **{k: bool(v) for k, v in row["controls"].items()})
    if re.search(r"(?:no|without) (?:apic[- ])?register virt", words):
        controls = replace(controls, apic_register_virtualization=False)
    if re.search(r"(?:no|without) (?:vid|virtual-interrupt delivery)", words):
        controls = replace(controls, virtual_interrupt_delivery=False)
    mode = ApicMode.XAPIC if "not in x2apic mode" in words else ApicMode.X2APIC
    if re.search(r"(?:no|without) x2apic virt|x2apic virt (?:not in effect|off)", words):
        return [
            (replace(controls, virtualize_x2apic_mode=False), mode),
            (replace(controls, activate_secondary_controls=False), mode),
        ]
    return [(controls, mode)]


def _msr_read(controls: Controls, mode: ApicMode, outcome: str, msr: int) -> None:
    access = Access(controls, mode)
    offset = (msr & 0xFF) << 4
    access.page.write32(offset, WRITTEN)
    access.outcome = instructions.rdmsr(access.processor, msr)
    match outcome:
        case "virtual":
            access.completed()
            access.clear_of(offset)
            check("value", access.processor.result, WRITTEN)
        case "passthrough":
            access.completed()
            check("physical accesses", access.apic.reached, [offset])
        case "#GP":
            check("outcome", access.outcome, instructions.FAULT)
            access.clear_of(offset)
        case _:
            raise NotUnderstoodError(f"unknown outcome {outcome!r}")


def _msr_write(controls: Controls, mode: ApicMode, outcome: str, msr: int) -> None:
    offset = (msr & 0xFF) << 4

    def write(value: int) -> Access:
        access = Access(controls, mode)
        access.outcome = instructions.wrmsr(access.processor, msr, value)
        return access

    match outcome:
        case "#GP":
            access = write(0)
            check("outcome", access.outcome, instructions.FAULT)
            access.clear_of(offset)
        case "passthrough":
            access = write(0)
            access.completed()
            check("physical accesses", access.apic.reached, [offset])
        case "virtual:tpr":
            access = write(WRITTEN & 0xFF)
            _check_tpr(access, access.page.read32(VTPR))
            access.clear_of(offset)
            check("value above FF", write(0x100).outcome, instructions.FAULT)
        case "virtual:eoi":
            access = write(0)
            _check_eoi(access)
            access.clear_of(offset)
            check("value not 0", write(1).outcome, instructions.FAULT)
        case "write_exit":
            write(0).exited(ExitReason.APIC_WRITE, offset)
        case _ if outcome.startswith("virtual:self_ipi"):
            access = write(SELF_IPI)
            _check_self_ipi(access)
            access.clear_of(offset)
            write(15).exited(ExitReason.APIC_WRITE, offset)
            check("bits 63:8 not 0", write(0x100 | SELF_IPI).outcome, instructions.FAULT)
        case _:
            raise NotUnderstoodError(f"unknown outcome {outcome!r}")


# -- apic-config-validity -------------------------------------------------------------------------


def run_config_validity(data: dict[str, Any]) -> None:
    """Columns: controls, then the outcome: VMfail 7, or what becomes of accesses to the page."""
    for row in rows_of(data):
        if not isinstance(row, dict) or "outcome" not in row:
            raise NotUnderstoodError(f"row {row!r} has no outcome")
        values = {name: value for name, value in row.items() if name != "outcome"}
        controls = controls_of({"activate_secondary_controls": 1} | values)
        violated = entry_checks.violations(Vmcs(controls))
        words = str(row["outcome"])
        failed = words.startswith("VMfail")
        if failed and words.split()[1:] not in ([], [str(entry_checks.VM_INSTRUCTION_ERROR)]):
            raise NotUnderstoodError(f"outcome {words!r}")
        try:
            check("VM entry refused", bool(violated), failed)
            if not failed:
                _check_accesses(controls, words)
        except MismatchError as mismatch:
            raise MismatchError(f"{row}: {mismatch}") from mismatch


def _check_accesses(controls: Controls, words: str) -> None:
    """Some offsets tell the configurations apart."""
    match words.removeprefix("ok: ").removeprefix("secondary controls ignored, "):
        case "all accesses exit":
            reads = {VTPR: "access_exit", VICR_LOW: "access_exit", 0: "access_exit"}
            writes = reads
        case "only 80h virtual":
            reads = {VTPR: "virtual", VICR_LOW: "access_exit", 0: "access_exit"}
            writes = {VTPR: "virtual:tpr", VICR_LOW: "access_exit", 0x020: "access_exit"}
        case "register list":
            reads = {VTPR: "virtual", VICR_LOW: "virtual", VIRR: "virtual", 0: "access_exit"}
            writes = {VTPR: "virtual:tpr", VICR_HIGH: "virtual:mask", 0x020: "write_exit"}
            writes |= {VIRR: "access_exit", 0: "access_exit"}
        case "plain memory":
            reads = dict.fromkeys((VTPR, VICR_LOW, 0), "memory")
            writes = reads
            _check_memory(controls)
        case _:
            raise NotUnderstoodError(f"outcome {words!r}")
    for offset, outcome in reads.items():
        _page_read(controls, outcome, offset)
    for offset, outcome in writes.items():
        _page_write(controls, outcome, offset)


def _check_memory(controls: Controls) -> None:
    """What was written is read back, at every offset, and the virtual-APIC page stays as it was."""
    access = Access(controls)
    before = bytes(access.page.mem)
    memory = access.vmcs.apic_access_page = ApicPage()
    for offset in range(0, 0x400, 0x10):
        access.outcome = instructions.xapic_write(access.processor, offset, WRITTEN + offset)
        access.completed()
        instructions.xapic_read(access.processor, offset)
        check(f"memory at {offset:#x}", access.processor.result, WRITTEN + offset)
        check("the page itself", memory.read32(offset), WRITTEN + offset)
    check("virtual-APIC page changed", bytes(access.page.mem) != before, expected=False)
