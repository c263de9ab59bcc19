"""A golden-case file from beginning to end: who reads which group, and what came of each case.

Next: the command line prints `Result.as_json()` or `format_text`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emulator.conformance.apics import run_lapic
from emulator.conformance.bench import Bench, merged
from emulator.conformance.document import Case, Matrix, load
from emulator.conformance.expectations import check_all
from emulator.conformance.race_cases import run_interleaving
from emulator.conformance.registers import run_config_validity, run_x2apic_msr, run_xapic_access
from emulator.conformance.selftests import run_selftest
from emulator.conformance.sender_tables import run_ipi_virtualization, run_sender_rules
from emulator.conformance.sweeps import run_sweep_basic_vid, run_sweep_eoi, run_sweep_posted
from emulator.conformance.tables import run_class_recognition, run_logical_destination, run_ppr
from emulator.conformance.windows import run_entry_checks, run_interrupt_window
from emulator.conformance.words import MismatchError, NotUnderstoodError

SCHEMA: Final = "pirlab-conformance/1"

_MALFORMED: Final = (
    *(ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, OverflowError, RecursionError),
)
"""What data of a wrong shape leads to: a string for a number, a vector of 10**9, a missing key."""


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case or matrix.  `why` is a sentence if it is not `ok`, else empty."""

    id: str
    ok: bool
    why: str


@dataclass(frozen=True, slots=True)
class Result:
    """A whole file; cases in its order, then matrices."""

    cases: list[CaseResult]

    @property
    def passed(self) -> int:
        return sum(case.ok for case in self.cases)

    @property
    def failed(self) -> int:
        return sum(not case.ok for case in self.cases)

    @property
    def skipped(self) -> int:
        """Nothing ever is: what cannot be run has failed."""
        return 0

    def as_json(self) -> dict[str, Any]:
        """Schema `pirlab-conformance/1`."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "failed": self.failed,
            "skipped": self.skipped,
            "cases": [{"id": case.id, "ok": case.ok, "why": case.why} for case in self.cases],
        }


def run_shared_vocabulary(case: Case) -> None:
    """The groups that share one vocabulary of steps."""
    bench = Bench(merged(case.defaults, case.setup))
    for step in case.steps:
        bench.step(step)
    check_all(bench, case.expect)


GROUPS: Final[dict[str, Callable[[Case], None]]] = {
    **dict.fromkeys(
        ("vid_entry", "vid_tpr", "self_ipi", "eoi", "pi_suite", "pi_rules", "tpr_ppr", "icr"),
        run_shared_vocabulary,
    ),
    "entry_events": run_shared_vocabulary,
    "interrupt_window": run_interrupt_window,
    "entry_checks": run_entry_checks,
    "lapic": run_lapic,
    "kvm_selftests": run_selftest,
    "interleaving": run_interleaving,
}

MATRICES: Final[dict[str, Callable[[dict[str, Any]], None]]] = {
    "class-recognition": run_class_recognition,
    "ppr": run_ppr,
    "sweep-basic-vid": run_sweep_basic_vid,
    "sweep-eoi": run_sweep_eoi,
    "sweep-posted": run_sweep_posted,
    "sender-rules": run_sender_rules,
    "ipi-virtualization": run_ipi_virtualization,
    "logical-destination": run_logical_destination,
    "xapic-access": run_xapic_access,
    "apic-config-validity": run_config_validity,
    "x2apic-msr": run_x2apic_msr,
}


def run_file(path: Path | str) -> Result:
    """Run every case and every matrix of `path`.

    `ConformanceError` if the file itself cannot be used; what is wrong with a case is its result.
    """
    document = load(path)
    results = [run_case(case) for case in document.cases]
    return Result(results + [run_matrix(matrix) for matrix in document.matrices])


def run_case(case: Case) -> CaseResult:
    """One case."""

    def run() -> None:
        if case.group not in GROUPS:
            raise NotUnderstoodError(f"unknown group {case.group!r}")
        if not case.expect:
            raise NotUnderstoodError("the case expects nothing")
        GROUPS[case.group](case)

    return outcome_of(case.id, run)


def run_matrix(matrix: Matrix) -> CaseResult:
    """One matrix, by its id: its rows do not say what they are about."""

    def run() -> None:
        if matrix.id not in MATRICES:
            raise NotUnderstoodError(f"unknown matrix {matrix.id!r}")
        MATRICES[matrix.id](matrix.data)

    return outcome_of(matrix.id, run)


def outcome_of(name: str, run: Callable[[], None]) -> CaseResult:
    try:
        run()
    except MismatchError as mismatch:
        return CaseResult(name, ok=False, why=str(mismatch))
    except NotUnderstoodError as unknown:
        return CaseResult(name, ok=False, why=f"not understood: {unknown}")
    except _MALFORMED as error:
        return CaseResult(name, ok=False, why=f"not understood: {type(error).__name__}: {error}")
    return CaseResult(name, ok=True, why="")


def format_text(result: Result) -> str:
    """A summary for people: what failed, one line each, and the counts."""
    lines = [f"FAILED {case.id}: {case.why}" for case in result.cases if not case.ok]
    lines.append(f"{result.passed} passed, {result.failed} failed, {result.skipped} skipped")
    return "\n".join(lines)
