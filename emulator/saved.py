"""A saved run, read again: analysis is a separate step on saved files.

Works later and on another machine, without the processes.
"""

import json
from pathlib import Path
from typing import Any, Final

from emulator.measure.summary import judge, load_run, matrix, summarise
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
    try:
        events, facts = load_run(directory)
        saved = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        return judge(summarise(events, facts), saved["expect"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{directory}: not a whole run directory: {error}") from error
