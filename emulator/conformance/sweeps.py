"""Exhaustive sweeps: every combination is run, a line each, and the text's SHA-256 compared.

What a line holds is told by the matrix (`line_format`), the ranges by its title.  Where words can
be read in more than one way, each reading is tried: the digest says which one was meant, and no
wrong text can have it.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Final, NamedTuple

from emulator.conformance.words import MismatchError, NotUnderstoodError, check, known_keys, plain
from emulator.hardware import instructions
from emulator.hardware.apicv import VIRR, VISR, VTPR
from emulator.hardware.bare import BareCpu
from emulator.hardware.cpu import NOTIFICATION
from emulator.hardware.lapic import LocalApic
from emulator.hardware.posted import process_posted_interrupts
from emulator.hardware.vectors import ExitReason
from emulator.hardware.vmcs import Controls, Vmcs
from emulator.hardware.vmx import LogicalProcessor, Outcome

NV: Final = 0xFF  # as the suite has it
_ALL_VECTORS: Final = (1 << 256) - 1
READINGS_MAX: Final = 64
_EOI_EXIT: Final = int(ExitReason.VIRTUALIZED_EOI)


class Result(NamedTuple):
    """What one combination came to."""

    deliveries: int
    eoi_exits: int
    rvi: int
    svi: int


class SweepGuest:
    """One guest, entered afresh for every combination.  Its handler does EOI and IRET."""

    def __init__(self) -> None:
        self.lapic = LocalApic()
        self.processor = LogicalProcessor(self.lapic, self)
        self.vmcs = Vmcs(
            Controls(
                external_interrupt_exiting=True,
                process_posted_interrupts=True,
                acknowledge_interrupt_on_exit=True,
                use_tpr_shadow=True,
                activate_secondary_controls=True,
                virtualize_x2apic_mode=True,
                virtual_interrupt_delivery=True,
            )
        )
        self.vmcs.nv = NV
        self.descriptor = bytearray(64)
        self.cpu = BareCpu([self.descriptor], self.processor)
        self.deliveries = 0
        self.eoi_exits = 0
        self._handlers = 0

    def interrupt(self, vector: int) -> None:
        self.deliveries += 1
        self._handlers += 1

    def run(self, *, vtpr: int, rvi: int, virr: int = 0, bitmap: int = 0, post: int = 0) -> Result:
        """Enter, let everything come to rest, VMCALL.  `virr`, `post`: a vector, 0 for none."""
        vmcs, processor = self.vmcs, self.processor
        page = vmcs.vapic.page
        page.words[VTPR >> 2] = vtpr
        vmcs.rvi, vmcs.svi = rvi, 0
        vmcs.eoi_exit_bitmap = bitmap
        if virr:
            page.set_bit(VIRR, virr)
        self.deliveries = self.eoi_exits = self._handlers = 0
        processor.vm_entry(vmcs)
        self._settle(processor.boundary())
        if post:
            self.cpu.pi_test_and_set_pir(0, post)
            self.cpu.pi_test_and_set_on(0)
            self.lapic.accept(NV)
            self._settle(processor.boundary())
        instructions.vmcall(processor)
        result = Result(self.deliveries, self.eoi_exits, vmcs.rvi, vmcs.svi)
        if vmcs.rvi:
            page.clear_bit(VIRR, vmcs.rvi)  # what was held is not left for the next combination
        if page.top(VIRR) or page.top(VISR) or any(self.descriptor[:33]):
            raise MismatchError("something is left in VIRR, VISR, PIR or ON")
        return result

    def _settle(self, outcome: Outcome) -> None:
        """Run handlers, process notifications, re-enter after EOI exits, until the guest rests."""
        processor = self.processor
        while True:
            if outcome == NOTIFICATION:
                process_posted_interrupts(self.cpu)
            elif outcome is not None:
                check("exit", outcome, _EOI_EXIT)
                self.eoi_exits += 1
                processor.vm_entry(self.vmcs)
                instructions.iret(processor)
            elif self._handlers:
                self._handlers -= 1
                outcome = instructions.eoi(processor)
                if outcome is not None:
                    continue
                instructions.iret(processor)
            else:
                return
            outcome = processor.boundary()


# -- the text of a sweep --------------------------------------------------------------------------

Row = dict[str, int]
Field = Callable[[Row, Result], int]


def check_digest(data: dict[str, Any], rows: list[Row], run: Callable[[Row], Result]) -> None:
    """The rows' text in the matrix's format has the matrix's digest, lines and sum."""
    known_keys(
        "matrix",
        data,
        ("id", "title", "source", "line_format", "lines", "deliveries_total", "sha256")
        + ("notes", "origin", "eoi_exits_total", "exits_total"),
    )
    results = [run(row) for row in rows]
    if "lines" in data:
        check("lines", len(rows), data["lines"])
    for key, got in (
        ("deliveries_total", sum(result.deliveries for result in results)),
        ("eoi_exits_total", sum(result.eoi_exits for result in results)),
        ("exits_total", sum(result.eoi_exits for result in results)),
    ):
        if key in data:
            check(key, got, data[key])
    digests = [digest(text) for text in _texts(str(data.get("line_format")), rows, results)]
    if data.get("sha256") not in digests:
        raise MismatchError(f"sha256: expected {data.get('sha256')}, got {digests[0]}")


def digest(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _texts(line_format: str, rows: list[Row], results: list[Result]) -> Iterator[str]:
    """The text in each reading of `line_format`."""
    found = re.search(r"'([^']*\{[^']*)'|\"([^\"]*\{[^\"]*)\"", line_format)
    if found is None:
        raise NotUnderstoodError(f"line_format {line_format!r}")
    template = (found[1] or found[2]).replace("\\n", "")
    parts = re.split(r"\{([^{}:!]+)(?::([^{}]*))?\}", template)
    names, specs, between = parts[1::3], parts[2::3], parts[0::3]
    pattern = between[0] + "".join(
        "{:" + (spec or "") + "}" + text for spec, text in zip(specs, between[1:], strict=True)
    )
    readings = list(product(*(_fields(name, rows[0]) for name in names)))
    for reading in readings[:READINGS_MAX]:
        lines = [
            pattern.format(*(field(row, result) for field in reading))
            for row, result in zip(rows, results, strict=True)
        ]
        yield "\n".join(lines) + "\n"
        yield "\n".join(lines)


def _fields(name: str, row: Row) -> list[Field]:
    """What a field called `name` can mean: results by their words, inputs by their names."""
    word = plain(name)
    for words, field in _RESULTS:
        if re.search(words, word):
            return [field]
    for key in row:
        if plain(key) == word:
            return [lambda row, _, key=key: row[key]]  # type: ignore[misc]
    close = [key for key in row if plain(key) in word or word in plain(key)]
    if not close:
        raise NotUnderstoodError(f"unknown field {name!r} in line_format")
    return [lambda row, _, key=key: row[key] for key in close]  # type: ignore[misc]


_RESULTS: Final[tuple[tuple[str, Field], ...]] = (
    ("deliver", lambda _, result: result.deliveries),
    ("exit|45", lambda _, result: result.eoi_exits),
    ("(?:final|end|after|last).*rvi|rvi(?:final|end|after|last)", lambda _, result: result.rvi),
    ("(?:final|end|after|last).*svi|svi(?:final|end|after|last)?", lambda _, result: result.svi),
)


def _ranges(title: str) -> dict[str, range]:
    """ "(vector 21h..ffh) x (VTPR 00h..ffh)" by name, in the order of the title."""
    ranges = {}
    for name, low, high in re.findall(
        r"\(([^()]*?),? (?:= )?([0-9a-fA-F]+h?)\.\.([0-9a-fA-F]+h?)\)", title
    ):
        ranges[plain(name)] = range(_bound(low), _bound(high) + 1)
    return ranges


def _bound(word: str) -> int:
    return int(word[:-1], 16) if word.endswith("h") else int(word)


# -- the sweeps -----------------------------------------------------------------------------------


def run_sweep_basic_vid(data: dict[str, Any]) -> None:
    """VM entry with RVI = vector, for each VTPR."""
    ranges = _ranges(str(data.get("title")))
    vectors = ranges.get("vector", range(0x21, 0x100))
    vtprs = ranges.get("vtpr", range(0x100))
    rows = [{"vector": v, "vtpr": t} for v in vectors for t in vtprs]
    guest = SweepGuest()
    check_digest(data, rows, lambda row: guest.run(vtpr=row["vtpr"], rvi=row["vector"]))


def run_sweep_posted(data: dict[str, Any]) -> None:
    """A notification for each vector, at each class of VTPR."""
    ranges = _ranges(str(data.get("title")))
    classes = ranges.get("vtprclass", range(16))
    vectors = ranges.get("postedvector", range(0x21, 0x100))
    rows = [{"class": c, "vector": v} for c in classes for v in vectors]
    guest = SweepGuest()
    check_digest(
        data, rows, lambda row: guest.run(vtpr=row["class"] << 4, rvi=0, post=row["vector"])
    )


def run_sweep_eoi(data: dict[str, Any]) -> None:
    """RVI = a vector, VIRR = a lower one, all pairs; EOI-exit bitmap all 0 and all 1.

    A line tells of both runs, or of one of them, in one of the two orders of a pair.
    """
    lowest, highest = 0x21, 0xFF
    for vectors in _ranges(str(data.get("title"))).values():
        lowest, highest = min(lowest, vectors[0]), max(highest, vectors[-1])
    pairs = [(high, low) for high in range(lowest + 1, highest + 1) for low in range(lowest, high)]
    guest = SweepGuest()
    mismatch: MismatchError | None = None
    for by_low, bitmap in product((False, True), (0, _ALL_VECTORS)):
        ordered = sorted(pairs, key=lambda pair: pair[1]) if by_low else pairs
        rows = [dict.fromkeys(_HIGH, high) | dict.fromkeys(_LOW, low) for high, low in ordered]

        def run(row: Row, bitmap: int = bitmap) -> Result:
            return guest.run(vtpr=0, rvi=row["rvi"], virr=row["virr"], bitmap=bitmap)

        try:
            check_digest(data, rows, run)
        except MismatchError as wrong:
            mismatch = mismatch or wrong
        else:
            return
    assert mismatch is not None
    raise mismatch


_HIGH: Final = ("rvi", "vector", "v", "high", "hi", "higher", "first", "v1", "a")
_LOW: Final = ("virr", "lower", "low", "lo", "w", "other", "second", "v2", "b", "pending")
