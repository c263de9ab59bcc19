"""Following a given list of steps through the model: replay of a file, validation of a live trace.

A walk takes one entry after the other and says whether the model could have done the same, with the
same result; if not, where the two part and what the model could have done instead.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emulator.checker import describe
from emulator.checker.claims import Claim
from emulator.checker.counterexample import (
    Counterexample,
    CounterexampleError,
    counterexample_of,
    load_counterexample,
    plain,
)
from emulator.checker.lint import KINDS
from emulator.checker.moves import Look, Move
from emulator.checker.scenario import Scenario
from emulator.checker.search import Broken
from emulator.checker.twin import source_hash
from emulator.checker.world import World
from emulator.hardware.cpu import Kind

# (actor, op, args, result), as JSON would give them; of a VM exit a fifth, what it left in the VMCS
# (`Step.vmcs`).  Without the fifth an entry stands for the first exit with that reason.
Taken = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Divergence:
    """Entry number `at` (from 0) is no step of the model; `possible` are those of its actor."""

    at: int
    entry: Taken
    possible: tuple[Taken, ...]

    def __str__(self) -> str:
        actor = self.entry[0]
        could = "; ".join(_call(entry) for entry in self.possible) or "nothing"
        return (
            f"step {self.at + 1}, {actor}: {_call(self.entry)}, is not possible here; {actor} "
            f"could do: {could}"
        )


def _call(entry: Taken) -> str:
    _, op, args, result, *vmcs = entry
    given = ", ".join(str(a) for a in args) if isinstance(args, list | tuple) else args
    left = "".join(f", {name} {value}" for name, value in (vmcs[0].items() if vmcs else ()))
    return f"{op}({given}) = {result!r}{left}"


@dataclass(slots=True)
class Walk:
    """A way through the model of `scenario`, one entry at a time.

    The entries of a live trace may hold what the model fuses (a LOOK, or a load of what nobody else
    can change): such an entry is compared with what the actor's last move saw.  LOOKs may be left
    out.
    """

    scenario: Scenario
    world: World = field(init=False)
    states: list[int] = field(init=False)
    _seen: dict[str, list[Look]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.world = World(self.scenario)
        self.states = [self.world.initial()]

    def follow(self, entries: Iterable[Taken]) -> Divergence | None:
        """Take every entry; the first that the model cannot, if any."""
        for at, entry in enumerate(entries):
            if not (self._looked(entry) or self.take(entry)):
                return Divergence(at, entry, tuple(self._possible(entry[0])))
        return None

    def take(self, entry: Taken) -> Move | None:
        """Do the move that `entry` names; None if it is not one that can be made now."""
        state = self.states[-1]
        for move in self.world.moves(state):
            if _is(move, entry):
                self.states.append(state + move.delta)
                self._seen[move.actor] = list(move.looks)
                return move
        return None

    def _looked(self, entry: Taken) -> bool:
        """The entry is one of the looks that went with its actor's last move."""
        actor, op, args, result = entry[:4]
        looks = self._seen.get(actor, [])
        for i, look in enumerate(looks):
            if look.op == op and plain(look.args) == plain(args):
                del looks[: i + 1]
                return bool(plain(look.result) == plain(result)) or KINDS[op] is Kind.TRACE
            if KINDS[look.op] not in (Kind.LOOK, Kind.TRACE):
                return False  # a step that the model fused must not be left out
        return False

    def _possible(self, actor: str) -> list[Taken]:
        moves = self.world.moves(self.states[-1])
        return [_as_entry(move) for move in moves if move.actor == actor]


def _as_entry(move: Move) -> Taken:
    told = (move.actor, move.op, plain(move.args), plain(move.result))
    return (*told, dict(move.vmcs)) if move.vmcs else told


def _is(move: Move, entry: Taken) -> bool:
    told = _as_entry(move)
    return bool(plain(entry[:4]) == plain(told[:4])) and entry[4:] in ((), told[4:])


@dataclass(frozen=True, slots=True)
class Replay:
    """A saved counterexample, followed to its end in the model."""

    counterexample: Counterexample
    claim: Claim
    text: str


def replay_file(path: Path | str) -> Replay:
    """Load a file and follow it.  Raises CounterexampleError if it does not lead where it says."""
    found = load_counterexample(path)
    if found.source != source_hash():
        raise CounterexampleError(
            f"{path}: found in protocol text {found.source}, this is {source_hash()}: search again"
        )
    walk = Walk(found.scenario)
    last: Move | None = None
    for at, step in enumerate(found.steps):
        last = walk.take(step.taken)
        if last is None:
            possible = tuple(walk._possible(step.actor))  # noqa: SLF001
            divergence = Divergence(at, step.taken, possible)
            raise CounterexampleError(f"{path}: {divergence}")
    return Replay(found, *_verdict(path, found, walk, last))


def _verdict(
    path: Path | str, found: Counterexample, walk: Walk, last: Move | None
) -> tuple[Claim, str]:
    """What is wrong at the end of the way, if the file is right in all that it says."""
    state = walk.states[-1]
    claim, text = found.claim, found.text
    if last is not None and last.fault is not None:
        claim, text = last.fault
    elif claim is Claim.EVERY_POST_IS_DELIVERED:
        at_rest = all(move.voluntary for move in walk.world.moves(state))
        if not (at_rest and walk.world.owes(state)):
            raise CounterexampleError(f"{path}: the last state is not at rest with a post owed")
        text = describe.loss(walk.world, state)
    broken = Broken(claim, text, tuple(walk.states))
    again = counterexample_of(walk.world, broken, found.seed)
    for told, done in zip(found.steps, again.steps, strict=True):
        if told != done:
            raise CounterexampleError(f"{path}: step {told.step} is told otherwise than it went")
    for name in ("initial", "final", "claim", "text"):
        if getattr(found, name) != getattr(again, name):
            raise CounterexampleError(f"{path}: {name} is not what the steps lead to")
    return claim, text
