"""The progress line on a terminal; nothing where there is none.  NO_COLOR is rich's business."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Line:
    """One line on stderr that says how far a run has come."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._name = name
        self._shown = console.is_terminal and not quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[events]:,} events"),
            console=console,
            transient=True,
            disable=not self._shown,
        )
        self._task = self._bar.add_task(name, total=1.0, events=0)
        self._label = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def announce(self, label: str) -> None:
        """A new run of the matrix begins."""
        self._label = f" {label}" if label else ""

    def progress(self, phase: str, fraction: float, events: int) -> None:
        """How far the run has come (0..1) and how many events are on disk."""
        description = f"{self._name}{self._label}: {phase}"
        self._bar.update(self._task, completed=fraction, events=events, description=description)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
