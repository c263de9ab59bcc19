"""Breadth-first search: every state that can be reached, and the shortest way to a broken claim.

The loop adds integers that `world` has worked out and does nothing else.  Each state keeps the
one it was first reached from, so that the way there can be told afterwards.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from emulator.checker import describe
from emulator.checker.claims import Claim
from emulator.checker.moves import Move
from emulator.checker.world import World

STATES_MAX: Final = 5_000_000  # about 1.5 GB
_START: Final = -1


class TooManyStatesError(Exception):
    """The scenario's bounds are too wide for this search; the message says what it reached."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A claim that does not hold: what is wrong, and the states on a shortest way there."""

    claim: Claim
    text: str
    states: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Exploration:
    """What a search has found.  `losing` counts the states at rest in which a post is owed."""

    world: World
    parents: dict[int, int] = field(repr=False)
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    losing: int = 0
    broken: Broken | None = None

    @property
    def states(self) -> int:
        return len(self.parents)

    def way_to(self, state: int) -> tuple[int, ...]:
        """The states from the initial one to `state`, both included."""
        way = [state]
        while (before := self.parents[way[-1]]) != _START:
            way.append(before)
        return tuple(reversed(way))


def explore(
    world: World,
    *,
    stop_at_first: bool = False,
    at_rest: Callable[[int], None] | None = None,
    states_max: int = STATES_MAX,
) -> Exploration:
    """Explore `world` from its initial state.

    It goes on behind a state that owes a post, to count them all, unless `stop_at_first`; never
    behind a step that breaks a claim.  `at_rest` is called with each state at rest.  Raises
    TooManyStatesError at `states_max`.
    """
    began = time.perf_counter()
    parents = {world.initial(): _START}
    found = Exploration(world=world, parents=parents)
    parts = tuple(
        zip(world.tables, world.masks, world.places, world.limits, range(99), strict=False)
    )
    owed_mask, compute = world.owed_mask, world.compute
    delivered = Claim.EVERY_POST_IS_DELIVERED in world.scenario.claims
    transitions = 0
    frontier = list(parents)
    late: Broken | None = None  # a step that breaks a claim leads one level deeper
    while frontier:
        reached: list[int] = []
        for state in frontier:
            obliged = False
            for table, masks, place, limit, i in parts:
                entry = table.get(state & masks[state >> place & limit])
                if entry is None:
                    entry = compute(i, state)
                    if world.fault is not None:
                        late = late or _fault(found, state)
                if entry[0]:
                    obliged = True
                for delta in entry[1]:
                    after = state + delta
                    transitions += 1
                    if after not in parents:
                        parents[after] = state
                        reached.append(after)
            if not obliged:
                if at_rest is not None:
                    at_rest(state)
                if delivered and state & owed_mask and world.owes(state):
                    found.losing += 1
                    found.broken = found.broken or _loss(found, state)
        found.broken = found.broken or late
        if found.broken is not None and stop_at_first:
            break
        if len(parents) > states_max:
            text = f"{len(parents):,} states and no end at depth {found.depth}: narrow the bounds"
            raise TooManyStatesError(f"{world.scenario.name}: {text}")
        found.depth += bool(reached)
        frontier = reached
    found.transitions = transitions
    found.seconds = time.perf_counter() - began
    return found


def _fault(found: Exploration, state: int) -> Broken:
    fault = found.world.fault
    assert fault is not None
    delta, claim, text = fault
    found.world.fault = None
    return Broken(claim, text, (*found.way_to(state), state + delta))


def _loss(found: Exploration, state: int) -> Broken:
    text = describe.loss(found.world, state)
    return Broken(Claim.EVERY_POST_IS_DELIVERED, text, found.way_to(state))


def moves_along(world: World, states: tuple[int, ...]) -> list[Move]:
    """The moves that lead from each state to the next."""
    found = []
    for before, after in pairwise(states):
        matching = [move for move in world.moves(before) if move.delta == after - before]
        assert matching, "no move leads from one of these states to the next"
        found.append(matching[0])
    return found
