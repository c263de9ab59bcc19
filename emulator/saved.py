"""A saved run, read again: analysis is a separate step on saved files.

Works later and on another machine, without the processes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from emulator.measure.compare import compare_runs
from emulator.measure.exits import exit_times
from emulator.measure.facts import RunFacts
from emulator.measure.records import Records
from emulator.measure.stages import latencies
from emulator.measure.summary import judge, load_run, matrix, summarise
from emulator.report.kernel import exits_text, interrupts_text
from emulator.report.matrix import matrix_text
from emulator.report.text import run_text

CELLS: Final = "cell-*"


class RunError(Exception):
    """Not a run directory, or not a whole one."""


def reread(directory: Path) -> tuple[dict[str, Any], str]:
    """The summary of a run or of a matrix, computed anew from its events, and its text."""
    if not directory.is_dir():
        raise RunError(f"{directory}: no such run directory")
    cells = sorted(directory.glob(CELLS))
    if not cells:
        summary = reread_run(directory)
        return summary, run_text(summary)
    whole = matrix([reread_run(cell) for cell in cells])
    whole["run_dir"] = str(directory)
    return whole, matrix_text(whole)


def reread_run(directory: Path) -> dict[str, Any]:
    """One run; the verdicts on its config's expectations are those of the day."""
    events, facts = _load(directory)
    try:
        saved = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        return judge(summarise(events, facts), saved["expect"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{directory}: not a whole run directory: {error}") from error


def interrupts(directory: Path) -> str:
    """Host interrupts of a run, or of each run of a matrix, as /proc/interrupts shows them."""
    return _each(directory, lambda run: interrupts_text(_load(run)[1].counters.get("pcpus", ())))


def exits(directory: Path) -> str:
    """VM exits of a run, or of each run of a matrix, as `perf kvm stat report` shows them."""
    return _each(directory, lambda run: exits_text(exit_times(_load(run)[0])))


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Two runs, metric by metric: schema `pirlab-compare/1`.  A matrix is not one run."""
    sides = []
    for directory in (first, second):
        if sorted(directory.glob(CELLS)):
            raise RunError(f"{directory}: a matrix of runs; compare two of its cells")
        events, facts = _load(directory)
        sides.append((summarise(events, facts), latencies(events, facts)))
    (a, samples_a), (b, samples_b) = sides
    return compare_runs(a, b, samples_a, samples_b)


def _each(directory: Path, show: Callable[[Path], str]) -> str:
    """One run's text, or each cell's behind its settings."""
    if not directory.is_dir():
        raise RunError(f"{directory}: no such run directory")
    cells = sorted(directory.glob(CELLS))
    if not cells:
        return show(directory)
    parts = []
    for cell in cells:
        settings = _load(cell)[1].cell
        label = ", ".join(f"{key}={value}" for key, value in settings.items())
        parts.append(f"{cell.name}: {label}\n{show(cell)}")
    return "\n".join(parts)


def _load(directory: Path) -> tuple[Records, RunFacts]:
    try:
        return load_run(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{directory}: not a whole run directory: {error}") from error
