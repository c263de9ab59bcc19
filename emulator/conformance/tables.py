"""Matrices that are truth tables: each row is made to happen, and its outcome compared.

Recognition, priorities, destinations, and what senders do.
Next to it: `registers` (access matrices), `sweeps` (exhaustive ones).
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from emulator.conformance.agents import Agent, agent_of, post_text
from emulator.conformance.words import (
    MismatchError,
    NotUnderstoodError,
    check,
    known_keys,
    number,
    plain,
    switch,
    vector_of,
)
from emulator.hardware import instructions, pi_desc
from emulator.hardware.apicv import VICR_HIGH, VICR_LOW, VPPR, VTPR
from emulator.hardware.bare import BareCpu
from emulator.hardware.cpu import Control
from emulator.hardware.destinations import (
    LogicalModel,
    decode_icr,
    is_destination,
    logical_match,
    x2apic_ldr,
)
from emulator.hardware.entry_checks import PHYSICAL_ADDRESS_WIDTH
from emulator.hardware.lapic import ApicMode, LocalApic
from emulator.hardware.senders import PidPointerTable, ipi_virtualization
from emulator.hardware.vectors import ExitReason
from emulator.hardware.vmcs import Controls, GuestState, Vmcs
from emulator.hardware.vmx import LogicalProcessor

VIRTUAL_DELIVERY: Final = Controls(
    external_interrupt_exiting=True,
    use_tpr_shadow=True,
    activate_secondary_controls=True,
    virtualize_x2apic_mode=True,
    virtual_interrupt_delivery=True,
)
NV: Final = 0xF2
NDST: Final = 5


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


# -- recognition and priority -----------------------------------------------------------------------


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


# -- senders --------------------------------------------------------------------------------------


class Post:
    """One post to a descriptor in a given state, and what it left."""

    def __init__(self, *, vector: int, pir: bool, on: bool, sn: bool) -> None:
        self.vector = vector
        descriptor = bytearray(pi_desc.DESCRIPTOR_BYTES)
        pi_desc.write_pir(descriptor, int(pir) << vector)
        control = Control(on=on, sn=sn, nv=NV, ndst=NDST)
        pi_desc.write_control(descriptor, pi_desc.pack_control(control))
        self.before = bytes(descriptor)
        self.descriptor = descriptor
        self.processor = LogicalProcessor(LocalApic(), Silent())
        self.cpu = BareCpu([descriptor], self.processor)
        self.exited = False

    def check_result(self, words: str) -> None:
        """A result in words: "PIR[V]=1, ON stays 0, nothing sent", "APIC_WRITE exit, ..."."""
        exit_ = re.fullmatch(
            r"APIC[_-]write (?:VM )?exit, qualification (\w+)", words, re.IGNORECASE
        )
        if exit_:
            if not self.exited:
                raise MismatchError(f"expected {words}, got no exit")
            check("qualification", self.processor.exit_qualification, number(exit_[1]))
            check("descriptor changed", bytes(self.descriptor) != self.before, expected=False)
            return
        if self.exited:
            raise MismatchError(f"expected {words}, got an APIC-write exit")
        for clause in re.split(r"[,;] ?", words):
            self._check_clause(clause.strip())

    def _check_clause(self, clause: str) -> None:
        control = pi_desc.unpack_control(pi_desc.read_control(self.descriptor))
        pir = pi_desc.read_pir(self.descriptor) >> self.vector & 1
        if found := re.fullmatch(r"PIR(?:\[\w+\])? ?(?:=|stays|:=) ?([01])", clause):
            check("PIR[V]", pir, int(found[1]))
        elif found := re.fullmatch(r"ON ?(?:=|stays|:=) ?([01])", clause):
            check("ON", int(control.on), int(found[1]))
        elif re.fullmatch(r"(?:sends?|notif\w+)(?: NV)?(?: to NDST)?|NV sent(?: to NDST)?", clause):
            self.check_sent(expected=True)
        elif re.fullmatch(r"nothing sent|no NV(?: sent)?|no notification|stops?", clause):
            self.check_sent(expected=False)
        else:
            raise NotUnderstoodError(f"result {clause!r}")

    def check_sent(self, *, expected: bool) -> None:
        """Whether the notification vector has left, to where NDST says."""
        sent = [(ipi.pcpu, ipi.vector) for ipi in self.cpu.sent]
        check("sent", sent, [(NDST, NV)] if expected else [])


def run_sender_rules(data: dict[str, Any]) -> None:
    """Rows: an agent, PIR bit, ON and SN before; PIR bit, ON and notification afterwards."""
    for row in rows_of(data):
        if not isinstance(row, dict):
            raise NotUnderstoodError(f"row {row!r} does not name its values")
        values = {_SENDER_KEYS.get(plain(key), ""): value for key, value in row.items()}
        if "" in values:
            unknown = [key for key in row if plain(key) not in _SENDER_KEYS]
            raise NotUnderstoodError(f"unknown key {unknown[0]!r} in a row of sender rules")
        try:
            _run_sender_row(values)
        except MismatchError as mismatch:
            raise MismatchError(f"{row}: {mismatch}") from mismatch


_SENDER_KEYS: Final = {
    **dict.fromkeys(("agent", "sender", "who", "source"), "agent"),
    **dict.fromkeys(("urgent", "urg"), "urgent"),
    **dict.fromkeys(("pir", "pirbit", "pirwas", "pirbefore", "pirold", "pirv", "oldpir"), "pir"),
    **dict.fromkeys(("pirbitwas", "pirbitbefore", "pirbitold", "oldpirbit", "pirset"), "pir"),
    **dict.fromkeys(("on", "onwas", "onbefore", "onold", "oldon"), "on"),
    **dict.fromkeys(("sn", "snwas", "snbefore"), "sn"),
    **dict.fromkeys(("v", "vector"), "vector"),
    **dict.fromkeys(("result", "outcome", "action", "then"), "result"),
    **dict.fromkeys(("pirafter", "pirbitafter", "newpir", "pirvafter"), "pir_after"),
    **dict.fromkeys(("onafter", "newon", "onnew"), "on_after"),
    **dict.fromkeys(("seton", "setson", "onset"), "set_on"),
    **dict.fromkeys(("sent", "send", "sends", "notify", "notifies", "notified", "nv"), "sent"),
    **dict.fromkeys(("notification", "nvsent", "sendnv", "sendsnv", "notificationsent"), "sent"),
    **dict.fromkeys(("note", "notes", "ref", "title", "comment", "origin"), "notes"),
}


def _run_sender_row(values: dict[str, Any]) -> None:
    agent = agent_of(values.get("agent"), _urgency(values.get("urgent")))
    vector = vector_of(values.get("vector", 0x51))
    outcomes = [name for name in ("result", "pir_after", "on_after", "set_on", "sent")]
    if not set(outcomes) & set(values):
        raise NotUnderstoodError("the row expects nothing")
    # A column that the row leaves open must not matter.
    for pir, on, sn in _open_states(values):
        post = Post(vector=vector, pir=pir, on=on, sn=sn)
        nv, ndst = (0, 0) if agent is Agent.IPI_VIRTUALIZATION else (NV, NDST)
        post_text(agent, 0, vector, nv, ndst)(post.cpu)
        control = pi_desc.unpack_control(pi_desc.read_control(post.descriptor))
        if "result" in values:
            post.check_result(str(values["result"]))
        if "pir_after" in values:
            bit = pi_desc.read_pir(post.descriptor) >> vector & 1 == 1
            check("PIR[V] afterwards", bit, switch(values["pir_after"]))
        if "on_after" in values:
            check("ON afterwards", control.on, switch(values["on_after"]))
        if "set_on" in values:
            check("ON 0 -> 1", control.on and not on, switch(values["set_on"]))
        if "sent" in values:
            post.check_sent(expected=_yes(values["sent"]))
        check("SN unchanged", control.sn, sn)


def _urgency(value: Any) -> Any:
    return None if value in (None, "", "-", "any", "n/a") else value


def _yes(value: Any) -> bool:
    words = plain(value)
    if words in ("1", "true", "yes", "nv", "sendnv", "nvtondst", "sendnvtondst"):
        return True
    if words in ("0", "false", "no", "none", "nothing", "null"):
        return False
    raise NotUnderstoodError(f"sent {value!r}")


def _open_states(values: dict[str, Any]) -> Iterator[tuple[bool, bool, bool]]:
    def options(name: str, default: tuple[bool, ...]) -> tuple[bool, ...]:
        value = values.get(name, "absent")
        if value == "absent":
            return default
        if value in (None, "", "-", "any", "x", "*", "n/a"):
            return (False, True)
        return (switch(value),)

    for pir in options("pir", (False,)):
        for on in options("on", (False, True)):
            for sn in options("sn", (False, True)):
                yield pir, on, sn


# -- IPI virtualization -----------------------------------------------------------------------------


def run_ipi_virtualization(data: dict[str, Any]) -> None:
    """Rows {V, T, last, entry, on, sn, result}; by WRMSR 830H, and by the page where T fits."""
    for row in rows_of(data):
        known_keys("row", row, ("V", "T", "last", "entry", "on", "sn", "result"))
        target = number(row.get("T"))
        for x2apic in (True, False) if target <= 0xFF else (True,):
            post = Post(
                vector=vector_of(row.get("V")),
                pir=False,
                on=switch(row.get("on", 0)),
                sn=switch(row.get("sn", 0)),
            )
            _write_icr(post, target, _table(row), x2apic=x2apic)
            try:
                post.check_result(str(row.get("result")))
            except MismatchError as mismatch:
                raise MismatchError(f"{row}: {mismatch}") from mismatch


def _table(row: dict[str, Any]) -> PidPointerTable:
    """The table; entry T is the row's, the others do not exist."""
    last = number(row.get("last"))
    if not 0 <= last <= 0xFFFF:
        raise NotUnderstoodError(f"last PID-pointer index {last}")
    valid = PidPointerTable.of_vcpus(1)
    entry = _entry(row.get("entry", "valid"), valid.entries[0])
    entries = tuple(entry if i == number(row.get("T")) else 0 for i in range(last + 1))
    return PidPointerTable(entries=entries, last=last, base=valid.base)


def _entry(words: Any, valid: int) -> int:
    """An 8-byte entry: a number, "valid", or a valid one with bits changed."""
    if words in ("valid", "n/a", None):
        return valid
    if isinstance(words, int):
        return words
    entry = valid
    for clause in str(words).split(","):
        if found := re.fullmatch(r"bit (\d+) (set|clear)", clause.strip()):
            bit = 1 << int(found[1])
            entry = entry | bit if found[2] == "set" else entry & ~bit
        elif re.fullmatch(r"bits? (?:at or )?beyond MAXPHYADDR(?: set)?", clause.strip()):
            entry |= 1 << PHYSICAL_ADDRESS_WIDTH
        else:
            raise NotUnderstoodError(f"entry {words!r}")
    return entry


def _write_icr(post: Post, target: int, table: PidPointerTable, *, x2apic: bool) -> None:
    """The guest's ICR write, and what the processor makes of it."""
    controls = Controls(
        external_interrupt_exiting=True,
        use_tpr_shadow=True,
        activate_secondary_controls=True,
        virtualize_x2apic_mode=x2apic,
        virtualize_apic_accesses=not x2apic,
        apic_register_virtualization=True,
        virtual_interrupt_delivery=True,
        ipi_virtualization=True,
    )
    p = post.processor
    p.vm_entry(Vmcs(controls))
    if x2apic:
        outcome = instructions.wrmsr(p, 0x830, target << 32 | post.vector)
    else:
        instructions.xapic_write(p, VICR_HIGH, target << 24)
        outcome = instructions.xapic_write(p, VICR_LOW, post.vector)
    if outcome == instructions.IPI and not ipi_virtualization(post.cpu, *p.ipi, table):
        outcome = p.vm_exit(ExitReason.APIC_WRITE, VICR_LOW)
    post.exited = outcome == ExitReason.APIC_WRITE
    if outcome is not None and outcome > 0 and not post.exited:
        raise MismatchError(f"exit {ExitReason(outcome).name}")
