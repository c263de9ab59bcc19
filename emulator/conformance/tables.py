"""Matrices that are truth tables: each row is made to happen, and its outcome compared.

Recognition, priorities and destinations.  Next to it: `sender_tables` (who posts and what comes
of it), `registers` (access matrices), `sweeps` (exhaustive ones).
"""

import re
from typing import Any, Final

from emulator.conformance.words import (
    MismatchError,
    NotUnderstoodError,
    check,
    known_keys,
    number,
    switch,
)
from emulator.hardware.apicv import VPPR, VTPR
from emulator.hardware.destinations import (
    LogicalModel,
    decode_icr,
    is_destination,
    logical_match,
    x2apic_ldr,
)
from emulator.hardware.lapic import ApicMode, LocalApic
from emulator.hardware.vmcs import Controls, GuestState, Vmcs
from emulator.hardware.vmx import LogicalProcessor

VIRTUAL_DELIVERY: Final = Controls(
    external_interrupt_exiting=True,
    use_tpr_shadow=True,
    activate_secondary_controls=True,
    virtualize_x2apic_mode=True,
    virtual_interrupt_delivery=True,
)


class Silent:
    """A guest's IDT that nobody should use."""

    def interrupt(self, vector: int) -> None:
        raise MismatchError(f"vector {vector:#x} delivered")


def rows_of(data: dict[str, Any]) -> list[Any]:
    """The rows; as objects, where the matrix names its columns."""
    rows = data.get("rows")
    if not isinstance(rows, list) or not rows:
        raise NotUnderstoodError("the matrix has no rows")
    columns = data.get("columns")
    if columns is None:
        return rows
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise NotUnderstoodError("a row does not have one value per column")
    return [dict(zip(columns, row, strict=True)) for row in rows]


# -- recognition and priority --------------------------------------------------------------------


def run_class_recognition(data: dict[str, Any]) -> None:
    """Row r, column c: is a vector of class r recognised at entry when VTPR has class c?"""
    for r, row in enumerate(rows_of(data)):
        for c, cell in enumerate(row):
            if cell not in ("0", "1"):
                raise NotUnderstoodError(f"cell {cell!r}")
            for nibbles in ((0, 0), (15, 0), (0, 15), (15, 15)):
                vector, vtpr = r << 4 | nibbles[0], c << 4 | nibbles[1]
                vmcs = _entered(rvi=vector, vtpr=vtpr)
                name = f"vector {vector:#x}, VTPR {vtpr:#x}"
                check(f"{name}: recognised", vmcs.vapic.recognised, cell == "1")


def run_ppr(data: dict[str, Any]) -> None:
    """Row r, column c: VPPR after entry with SVI = r<<4|9 and VTPR = c<<4|5."""
    for r, row in enumerate(rows_of(data)):
        for c, cell in enumerate(row):
            vmcs = _entered(svi=r << 4 | 9, vtpr=c << 4 | 5)
            got = vmcs.vapic.page.read32(VPPR)
            check(f"SVI class {r}, VTPR class {c}: VPPR", f"{got:02x}", cell)


def _entered(*, vtpr: int, rvi: int = 0, svi: int = 0) -> Vmcs:
    vmcs = Vmcs(VIRTUAL_DELIVERY, guest=GuestState(interrupt_flag=False))
    vmcs.vapic.page.write32(VTPR, vtpr)
    vmcs.rvi, vmcs.svi = rvi, svi
    processor = LogicalProcessor(LocalApic(), Silent())
    if processor.vm_entry(vmcs) is not None or processor.boundary() is not None:
        raise MismatchError("VM exit at entry")
    return vmcs


# -- destinations ---------------------------------------------------------------------------------


def run_logical_destination(data: dict[str, Any]) -> None:
    """Rows {model, dest, ldr or ldr_byte, match}; each also as a message to a local APIC."""
    for row in rows_of(data):
        known_keys("row", row, ("model", "dest", "ldr", "ldr_byte", "match"))
        models = [model for model in LogicalModel if model.value == row.get("model")]
        if not models:
            raise NotUnderstoodError(f"unknown model {row.get('model')!r}")
        dest, ldr = number(row.get("dest")), number(row.get("ldr_byte", row.get("ldr")))
        got = logical_match(models[0], dest, ldr)
        check(f"{models[0].value}: {dest:#x} for {ldr:#x}", got, switch(row.get("match")))
        check("the same by message", _reaches(models[0], dest, ldr), got)
    if "x2apic_ldr_rule" in data:
        _check_ldr_rule(str(data["x2apic_ldr_rule"]))


def _reaches(model: LogicalModel, dest: int, ldr: int) -> bool:
    if model is LogicalModel.X2APIC:
        apic = LocalApic(mode=ApicMode.X2APIC)
        low = [bit for bit in range(16) if ldr >> bit & 1]
        if len(low) != 1:
            raise NotUnderstoodError(f"{ldr:#x} is no x2APIC logical ID")
        apic.apic_id = ldr >> 16 << 4 | low[0]
        return is_destination(apic, decode_icr(dest << 32 | 1 << 11, apic.mode))
    apic = LocalApic(mode=ApicMode.XAPIC)
    apic.ldr = ldr << 24
    apic.dfr = 0xFFFF_FFFF if model is LogicalModel.FLAT else 0x0FFF_FFFF
    return is_destination(apic, decode_icr(dest << 56 | 1 << 11, apic.mode))


def _check_ldr_rule(rule: str) -> None:
    found = re.fullmatch(r"LDR = (.+?)(?:, for a (\d+)-bit id)?", rule)
    if found is None:
        raise NotUnderstoodError(f"x2apic_ldr_rule {rule!r}")
    bits = int(found[2] or 20)
    ids = {0, 1, 15, 16, 0x1F, 0xFF, 0x100} | {1 << bit for bit in range(bits)}
    for apic_id in sorted(ids | {(1 << bits) - 1}):
        check(f"LDR of {apic_id:#x}", x2apic_ldr(apic_id), number(found[1], id=apic_id))
