"""What can go wrong in the world: each becomes one sentence and an exit code in `cli`."""

import signal
from pathlib import Path
from typing import Final

LOG_TAIL_LINES: Final = 8


class HostError(Exception):
    """What the host cannot do (exit code 4)."""


class RunBroken(Exception):  # noqa: N818  a state of the run, not of the code
    """A process died unasked or a deadline passed (exit code 3).  Finished results are kept."""


def describe_exit(status: int) -> str:
    """An exit status in words; negative is a signal."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name} (exit status {status})"
    return f"ended with exit status {status}"


def log_tail(run_dir: Path, name: str) -> str:
    """The last lines of a process's log, indented, behind a line that names it."""
    path = run_dir / "log" / f"{name}.log"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        return ""
    if not lines:
        return f"; {path} is empty"
    return f"; last lines of {path}:\n" + "\n".join(f"    {line}" for line in lines)
