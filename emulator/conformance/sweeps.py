"""Exhaustive sweeps: every combination is run, a line each, and the text's SHA-256 compared.

What a line holds is told by the matrix (`line_format`), the ranges by its title.  Where words can
be read in more than one way, each reading is tried: the digest says which one was meant, and no
wrong text can have it.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, product
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
READINGS_MAX: Final = 128
_EOI_EXIT: Final = int(ExitReason.VIRTUALIZED_EOI)


class Result(NamedTuple):
    """What one combination came to."""

    deliveries: int
    eoi_exits: int
    rvi: int
    svi: int
    eoi_exits_without_bitmap: int = 0


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
Run = tuple[Row, Result]
Field = Callable[[Result], int]
Column = tuple[int, ...]

_KEYS: Final = (
    *("id", "title", "source", "origin", "notes", "line_format", "lines", "sha256"),
    *("deliveries_total", "eoi_exits_total", "exits_total"),
)


def check_digest(data: dict[str, Any], *orders: list[Run]) -> None:
    """The runs' text in the matrix's format has the matrix's digest, lines and sums.

    `orders`: the same runs in each order in which the matrix may list them.
    """
    known_keys("matrix", data, _KEYS)
    runs = orders[0]
    exits = sum(result.eoi_exits for _, result in runs)
    for key, got in (
        ("lines", len(runs)),
        ("deliveries_total", sum(result.deliveries for _, result in runs)),
        ("eoi_exits_total", exits),
        ("exits_total", exits),
    ):
        if key in data:
            check(key, got, data[key])
    first = ""
    for order in orders:
        for text in _texts(str(data.get("line_format")), order):
            digest = hashlib.sha256(text.encode()).hexdigest()
            if digest == data.get("sha256"):
                return
            first = first or digest
    raise MismatchError(f"sha256: expected {data.get('sha256')}, got {first}")


def _texts(line_format: str, runs: list[Run]) -> Iterator[str]:
    """The text in each reading of `line_format`."""
    found = re.search(r"'([^']*\{[^']*)'|\"([^\"]*\{[^\"]*)\"", line_format)
    if found is None:
        raise NotUnderstoodError(f"line_format {line_format!r}")
    template = (found[1] or found[2]).replace("\\n", "")
    parts = re.split(r"\{([^{}:]+)(?::([^{}]*))?\}", template)
    names, specs, between = parts[1::3], parts[2::3], parts[0::3]
    pattern = between[0] + "".join(
        "{:" + (spec or "") + "}" + text for spec, text in zip(specs, between[1:], strict=True)
    )
    readings = product(*(_columns(name, runs) for name in names))
    for reading in islice(readings, READINGS_MAX):
        lines = [pattern.format(*values) for values in zip(*reading, strict=True)]
        yield "\n".join(lines) + "\n"
        yield "\n".join(lines)


def _columns(name: str, runs: list[Run]) -> list[Column]:
    """What a field called `name` can hold: a result by its words, an input by its name.

    A name that says neither can be any of them.
    """
    word = plain(name)
    for words, fields in _RESULTS:
        if re.search(words, word):
            return _distinct(_result_column(runs, field) for field in fields)
    inputs = {plain(key): tuple(row[key] for row, _ in runs) for key in runs[0][0]}
    if word in inputs:
        return [inputs[word]]
    close = [column for key, column in inputs.items() if key in word or word in key]
    every = (_result_column(runs, field) for _, fields in _RESULTS for field in fields)
    return _distinct(close or [*inputs.values(), *every])


def _result_column(runs: list[Run], field: Field) -> Column:
    return tuple(field(result) for _, result in runs)


def _distinct(columns: Iterable[Column]) -> list[Column]:
    return list(dict.fromkeys(columns))


_RESULTS: Final[tuple[tuple[str, list[Field]], ...]] = (
    ("deliver", [lambda result: result.deliveries]),
    (
        "exit|45",
        [lambda result: result.eoi_exits, lambda result: result.eoi_exits_without_bitmap],
    ),
    ("(?:final|end|after|last).*rvi|rvi(?:final|end|after|last)", [lambda result: result.rvi]),
    ("(?:final|end|after|last).*svi|svi", [lambda result: result.svi]),
)


def _ranges(title: str) -> dict[str, range]:
    """What a title gives as "(vector 21h..ffh)", by name."""
    found = re.findall(r"\(([^()]*?) ([0-9a-fA-F]+h?)\.\.([0-9a-fA-F]+h?)\)", title)
    return {plain(name): range(_bound(low), _bound(high) + 1) for name, low, high in found}


def _bound(word: str) -> int:
    return int(word[:-1], 16) if word.endswith("h") else int(word)


# -- the sweeps -----------------------------------------------------------------------------------

_SUITE_VECTORS: Final = range(0x21, 0x100)


def run_sweep_basic_vid(data: dict[str, Any]) -> None:
    """VM entry with RVI = vector, for each VTPR."""
    ranges = _ranges(str(data.get("title")))
    guest = SweepGuest()
    runs = [
        ({"vector": vector, "vtpr": vtpr}, guest.run(vtpr=vtpr, rvi=vector))
        for vector in ranges.get("vector", _SUITE_VECTORS)
        for vtpr in ranges.get("vtpr", range(0x100))
    ]
    check_digest(data, runs, sorted(runs, key=lambda run: run[0]["vtpr"]))


def run_sweep_posted(data: dict[str, Any]) -> None:
    """A notification for each vector, at each class of VTPR."""
    ranges = _ranges(str(data.get("title")))
    guest = SweepGuest()
    runs = [
        ({"class": level, "vector": vector}, guest.run(vtpr=level << 4, rvi=0, post=vector))
        for level in ranges.get("vtprclass", range(16))
        for vector in ranges.get("postedvector", _SUITE_VECTORS)
    ]
    check_digest(data, runs, sorted(runs, key=lambda run: run[0]["vector"]))


def run_sweep_eoi(data: dict[str, Any]) -> None:
    """RVI = a vector, VIRR = a lower one, all pairs; with the EOI-exit bitmap all 0, then all 1."""
    vectors = list(_SUITE_VECTORS)
    for mentioned in _ranges(str(data.get("title"))).values():
        vectors = sorted({*vectors, *mentioned})
    guest = SweepGuest()
    runs = []
    for high in vectors:
        for low in (vector for vector in vectors if vector < high):
            without = guest.run(vtpr=0, rvi=high, virr=low)
            full = guest.run(vtpr=0, rvi=high, virr=low, bitmap=_ALL_VECTORS)
            if without._replace(eoi_exits=full.eoi_exits) != full:
                raise MismatchError(
                    f"{high:#x}, {low:#x}: {without} becomes {full} with the bitmap"
                )
            row = dict.fromkeys(_HIGH, high) | dict.fromkeys(_LOW, low)
            runs.append((row, full._replace(eoi_exits_without_bitmap=without.eoi_exits)))
    check_digest(data, runs, sorted(runs, key=lambda run: run[0]["low"]))


_HIGH: Final = ("rvi", "vector", "v", "high")
_LOW: Final = ("virr", "lower", "low", "w")
