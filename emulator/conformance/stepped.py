"""Protocol text, one step at a time: the very functions that run live, stopped between two calls.

A text is a pure function of what its calls on `cpu` return.  So to make its next step it is run
again from the start, fed the results it has had, and stopped at the first call that has none:
that call is the next step.
"""

from collections.abc import Callable
from typing import Any, cast

from emulator.hardware.cpu import Cpu


class _StopError(Exception):
    """The text has reached a step that it may not make yet."""


class SteppedText:
    """`text`, suspended before its next step.

    `next_step` is the name of the `Cpu` method, None when the text has ended.
    """

    def __init__(self, text: Callable[[Cpu], object], cpu: Cpu) -> None:
        self.next_step: str | None = None
        self._text = text
        self._cpu = cpu
        self._results: list[Any] = []
        self._run(may_step=False)

    def step(self) -> Any:
        """Make the next step.  Its result."""
        assert self.next_step is not None, "the text has ended"
        made = len(self._results)
        self._run(may_step=True)
        return self._results[made]

    def _run(self, *, may_step: bool) -> None:
        replay = _Replay(self._cpu, self._results, may_step=may_step)
        self.next_step = None
        try:
            self._text(cast("Cpu", replay))
        except _StopError:
            self.next_step = replay.stopped_at


class _Replay:
    """`Cpu` for one run of the text: results so far, at most one step more, then a stop."""

    def __init__(self, cpu: Cpu, results: list[Any], *, may_step: bool) -> None:
        self.stopped_at = ""
        self._cpu = cpu
        self._results = results
        self._given = 0
        self._may_step = may_step

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "trace":
                return None  # recording: not a step
            method = getattr(self._cpu, name)
            if name == "current_vmcs":
                return method(*args, **kwargs)  # one's own, and it does not change meanwhile
            if self._given == len(self._results):
                if not self._may_step:
                    self.stopped_at = name
                    raise _StopError
                self._may_step = False
                self._results.append(method(*args, **kwargs))
            self._given += 1
            return self._results[self._given - 1]

        return call
