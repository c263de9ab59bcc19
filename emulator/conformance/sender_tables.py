"""Matrices of senders: a descriptor in some state, a post, and what it must have left.

The posts are made by the senders' own text (`agents`), IPI virtualization's by a guest that writes
its ICR.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from emulator.conformance.agents import agent_of, post_text
from emulator.conformance.tables import Silent, rows_of
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
from emulator.hardware.apicv import VICR_HIGH, VICR_LOW
from emulator.hardware.bare import BareCpu
from emulator.hardware.cpu import Control
from emulator.hardware.entry_checks import PHYSICAL_ADDRESS_WIDTH
from emulator.hardware.lapic import LocalApic
from emulator.hardware.senders import PidPointerTable, ipi_virtualization
from emulator.hardware.vectors import ExitReason
from emulator.hardware.vmcs import Controls, Vmcs
from emulator.hardware.vmx import LogicalProcessor

NV: Final = 0xF2
NDST: Final = 5


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
        exit_ = re.fullmatch(r"(?i:APIC[_-]write (?:VM )?exit), qualification (\w+)", words)
        if exit_:
            if not self.exited:
                raise MismatchError(f"expected {words}, got no exit")
            check("qualification", self.processor.exit_qualification, number(exit_[1]))
            check("descriptor changed", bytes(self.descriptor) != self.before, expected=False)
            return
        if self.exited:
            raise MismatchError(f"expected {words}, got an APIC-write exit")
        for clause in re.split(r"[,;+] ?|\band\b|\bthen\b", words):
            if clause.strip():
                self._check_clause(clause.strip())

    def _check_clause(self, clause: str) -> None:
        before = pi_desc.unpack_control(pi_desc.read_control(bytearray(self.before)))
        on = pi_desc.unpack_control(pi_desc.read_control(self.descriptor)).on
        pir = pi_desc.read_pir(self.descriptor) >> self.vector & 1
        if found := re.fullmatch(r"PIR(?:\[\w+\])? ?(?:=|stays|:=) ?([01])", clause):
            check("PIR[V]", pir, int(found[1]))
        elif re.fullmatch(r"sets? PIR(?:\[\w+\])?|PIR (?:is )?set", clause):
            check("PIR[V]", pir, 1)
        elif re.fullmatch(r"PIR only", clause):
            check("PIR[V]", pir, 1)
            check("ON", on, before.on)
            self.check_sent(expected=False)
        elif found := re.fullmatch(r"ON ?(?:=|stays|:=) ?([01])", clause):
            check("ON", int(on), int(found[1]))
        elif re.fullmatch(r"sets? ON|ON (?:is )?set|ON 0 ?-> ?1", clause):
            check("ON 0 -> 1", (before.on, on), (False, True))
        elif re.fullmatch(r"ON unchanged", clause):
            check("ON", on, before.on)
        elif re.fullmatch(r"(?:sends?|notif\w+)(?: NV)?(?: to NDST)?|NV sent(?: to NDST)?", clause):
            self.check_sent(expected=True)
        elif re.fullmatch(r"nothing(?: sent)?|no NV(?: sent)?|no notification|stops?", clause):
            self.check_sent(expected=False)
        else:
            raise NotUnderstoodError(f"result {clause!r}")

    def check_sent(self, *, expected: bool) -> None:
        """Whether the notification vector has left, to where NDST says."""
        sent = [(ipi.pcpu, ipi.vector) for ipi in self.cpu.sent]
        check("sent", sent, [(NDST, NV)] if expected else [])


# -- sender rules --------------------------------------------------------------------------------

_OUTCOMES: Final = ("result", "pir_after", "on_after", "sn_after", "set_on", "sent")


def run_sender_rules(data: dict[str, Any]) -> None:
    """Rows: an agent, PIR bit, ON and SN before; PIR bit, ON and notification afterwards."""
    for row in rows_of(data):
        try:
            _run_sender_row(_by_role(row))
        except MismatchError as mismatch:
            raise MismatchError(f"{row}: {mismatch}") from mismatch


def _by_role(row: Any, *, after: bool = False) -> dict[str, Any]:
    """The row's values by what they are, whatever the row calls them.

    A row may nest: {"before": {"on": 0}, "after": {"on": 1}}.
    """
    if not isinstance(row, dict):
        raise NotUnderstoodError(f"row {row!r} does not name its values")
    values: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            late = plain(key) not in ("before", "given", "state", "pid", "setup")
            found = _by_role(value, after=late)
        else:
            found = {_role(key, after=after): value}
        if set(found) & set(values):
            raise NotUnderstoodError(f"{key!r} stands twice in a row")
        values |= found
    return values


def _role(key: str, *, after: bool) -> str:
    word = plain(key)
    after = after or re.search("after|new|then|becomes", word) is not None
    for pattern, role in (
        ("agent|sender|who|source", "agent"),
        (r"result|outcome|action|effect", "result"),
        (r"notes?|comment|ref|origin|title|why|id", "notes"),
        (r"v|vector", "vector"),
        (r".*urg.*", "urgent"),
        (r"seton|setson|onset", "set_on"),
        (r".*(?:notif|sen[dt]|nv|ipi).*", "sent"),
        (r".*pir.*", "pir_after" if after else "pir"),
        (r"(?:new|old)?on(?:bit)?(?:was|before|old|after|new|then|becomes)?", "on"),
        (r"(?:new|old)?sn(?:bit)?(?:was|before|old|after|new|then|becomes)?", "sn"),
    ):
        if re.fullmatch(pattern, word):
            return f"{role}_after" if after and role in ("on", "sn") else role
    raise NotUnderstoodError(f"unknown key {key!r} in a row of sender rules")


def _run_sender_row(values: dict[str, Any]) -> None:
    urgent = values.get("urgent")
    agent = agent_of(values.get("agent"), None if _is_open(urgent) else urgent)
    vector = vector_of(values.get("vector", 0x51))
    if not set(_OUTCOMES) & set(values):
        raise NotUnderstoodError("the row expects nothing")
    # What a row leaves open must not matter, except a PIR bit that nobody mentions: it is new.
    for pir in _options(values.get("pir", 0)):
        for on in _options(values.get("on")):
            for sn in _options(values.get("sn")):
                post = Post(vector=vector, pir=pir, on=on, sn=sn)
                post_text(agent, 0, vector, NV, NDST)(post.cpu)
                _check_sender_row(post, values, on=on, sn=sn)


def _check_sender_row(post: Post, values: dict[str, Any], *, on: bool, sn: bool) -> None:
    control = pi_desc.unpack_control(pi_desc.read_control(post.descriptor))
    pir = pi_desc.read_pir(post.descriptor) >> post.vector & 1 == 1
    if "result" in values:
        post.check_result(str(values["result"]))
    if "pir_after" in values:
        check("PIR[V] afterwards", pir, switch(values["pir_after"]))
    if "on_after" in values:
        check("ON afterwards", control.on, switch(values["on_after"]))
    if "set_on" in values:
        check("ON 0 -> 1", control.on and not on, switch(values["set_on"]))
    if "sent" in values:
        post.check_sent(expected=_yes(values["sent"]))
    check("SN afterwards", control.sn, switch(values.get("sn_after", sn)))


def _yes(value: Any) -> bool:
    words = plain(value)
    if words in ("1", "true", "yes", "nv", "sendnv", "nvtondst", "sendnvtondst"):
        return True
    if words in ("0", "false", "no", "none", "nothing", "null"):
        return False
    raise NotUnderstoodError(f"sent {value!r}")


def _is_open(value: Any) -> bool:
    return value in (None, "", "-", "*", "x", "any", "n/a")


def _options(value: Any) -> Iterator[bool]:
    yield from (False, True) if _is_open(value) else (switch(value),)


# -- IPI virtualization --------------------------------------------------------------------------


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
