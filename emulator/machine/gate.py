"""The gate: whose turn it is, in a word of the mapped file, and a schedule that says so.

Every process of a gated run holds the whole schedule.  A turn is one step of one actor: whoever
owns the next turn waits until the word says so, does the step, compares what came of it, and moves
the word on.  Behind the last turn the gate opens and the processes run freely.
Next: `gated` does the steps, `gated_run` has the processes.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic_ns
from typing import Any, Final

from emulator.kvm.params import Kvm
from emulator.machine.memory import Memory

H_TURN: Final = 256  # u64 in the header's page, next to nothing else
NOT_STARTED: Final = (1 << 64) - 1
STUCK_NS: Final = 5_000_000_000  # the word has not moved for so long: a process is lost

# H_PHASE of a gated run
GATED: Final = 0
REPORT: Final = 1  # the schedule is over: say what only you know
FREE: Final = 2
STOP: Final = 3

Look = tuple[str, list[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One step as the schedule has it; all values plain, as JSON would give them.

    `looks` are calls that go with the step and have no turn of their own.  `forced` is what the
    surroundings chose, where `op` is a guest's event: (vector, deadline written, guest IF).
    """

    actor: str
    pcpu: int
    op: str
    args: list[Any]
    result: Any
    looks: tuple[Look, ...] = ()
    forced: tuple[int, int, bool] = (0, 0, True)

    @property
    def process(self) -> str:
        """The process that does it: a pCPU's, or a sender's own."""
        if self.actor.startswith(("remote", "device", "plug")):
            return self.actor
        return f"pcpu{self.pcpu}"

    def __str__(self) -> str:
        args = ", ".join(str(arg) for arg in self.args)
        return f"{self.actor}: {self.op}({args}) = {self.result!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A run, step by step, and the machine it is for.

    `before[v]` is what the thread of vCPU v had done when the schedule begins: it is about to call
    `vcpu_run()`, or has been preempted there and waits for its pCPU (`queued`).
    """

    kvm: Kvm
    hosts: int
    pins: tuple[int, ...]
    turns: tuple[Turn, ...]
    before: tuple[tuple[Turn, ...], ...]
    queued: frozenset[int]
    assigned: bool
    tso: bool
    irq_vector: int
    timer_vector: int

    @property
    def processes(self) -> tuple[str, ...]:
        """One for each pCPU that can run vCPUs, one for each sender that has a turn."""
        senders = {turn.process for turn in self.turns} - {f"pcpu{p}" for p in range(self.hosts)}
        return (*(f"pcpu{p}" for p in range(self.hosts)), *sorted(senders))

    def last_pcpu(self, vcpu: int) -> int:
        """Where the thread of `vcpu` was last, or still is, when the schedule is over."""
        actor = f"vcpu{vcpu}"
        where = [t.pcpu for t in self.turns if t.actor == actor and t.op != "retire"]
        return where[-1] if where else self.pins[vcpu]


class DivergedError(Exception):
    """The live processes did not do what the schedule says: at turn `at`, done or not yet."""

    def __init__(self, at: int, text: str, *, done: bool) -> None:
        super().__init__(text)
        self.at = at
        self.done = done


class Stopped(BaseException):
    """No error: the run is over, and whatever text is under way unwinds."""


@dataclass(slots=True)
class Gate:
    """One process's view of the turns."""

    memory: Memory
    schedule: Schedule
    process: str
    report: Callable[[], None]  # called once, when the schedule is over
    free: bool = False
    _mine: list[int] = field(init=False)
    _at: int = field(init=False, default=0)
    _reported: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        turns = self.schedule.turns
        self._mine = [i for i, turn in enumerate(turns) if turn.process == self.process]

    @property
    def number(self) -> int:
        """The turn that this process waits for or is doing; behind the last one: their count."""
        return self._mine[self._at] if self._at < len(self._mine) else len(self.schedule.turns)

    def wait(self) -> Turn | None:
        """Wait for this process's next turn; None: there is none, the gate is open."""
        load = self.memory.u64(H_TURN).load
        turns = self.schedule.turns
        wanted = self.number
        seen, since = load(), monotonic_ns()
        while seen != wanted or wanted == len(turns):
            phase = self.memory.phase()
            if phase == STOP:
                raise Stopped
            if phase == FREE:
                self.free = True
                return None
            if phase == REPORT and not self._reported:
                self._reported = True
                self.report()
            os.sched_yield()
            now = load()
            if now != seen:
                seen, since = now, monotonic_ns()
            elif wanted < len(turns) and phase == GATED and monotonic_ns() - since > STUCK_NS:
                text = f"{self.process} waits for step {wanted + 1}, nobody does step {seen + 1}"
                raise DivergedError(wanted, text, done=False)
        return turns[wanted]

    def publish(self) -> None:
        """The turn is over; the next one's owner may go on."""
        self._at += 1
        self.memory.u64(H_TURN).fetch_add(1)

    def check_stop(self) -> None:
        """Free running ends here."""
        if self.memory.phase() == STOP:
            raise Stopped


def plain(value: Any) -> Any:
    """`value` as a file's JSON gives it back."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value


def same(one: Any, other: Any) -> bool:
    """Equal results; a step that returns nothing may say so by None or by False."""
    return bool(one == other) or (not one and not other)
