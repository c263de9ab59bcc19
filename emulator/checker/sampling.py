"""Sampled schedules for what is too wide to explore: a uniform walk, and PCT with its promise.

PCT (Burckhardt et al., ASPLOS 2010) gives each actor a random priority, lets the highest that can
move do so, and at `depth - 1` random steps of the first k puts the running one last.  A bug that
needs `depth` ordering constraints shows in one schedule with a probability of at least
1 / (n * k**(depth - 1)) for n actors.  "Nothing found" means what that bound and the number of
schedules make of it.  The guest's choices, and every choice inside one actor, stay uniform and
are not in the bound: it speaks of the schedule, given these.
"""

import random
import time
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from emulator.checker import describe
from emulator.checker.claims import Claim
from emulator.checker.counterexample import Counterexample, counterexample_of
from emulator.checker.scenario import Scenario
from emulator.checker.search import Broken
from emulator.checker.world import World

SCHEMA: Final = "pirlab-sample/1"
HORIZON: Final = 60  # steps among which PCT puts its changes
STEPS_MAX: Final = 400  # a schedule that has not come to rest by then is given up


class Strategy(Enum):
    """Who moves next."""

    UNIFORM = "uniform"
    PCT = "pct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the schedules have shown.  `promised` is PCT's bound for one schedule, None otherwise.

    `horizon` is the bound's k: it speaks of bugs whose constraints fall into the first k steps.
    `parts` is its n, `steps` the mean length of a schedule.
    """

    scenario: Scenario
    strategy: Strategy
    depth: int
    seed: int
    schedules: int
    failing: int
    parts: int
    steps: float
    horizon: int
    seconds: float
    promised: float | None
    counterexample: Counterexample | None

    @property
    def missed_at_most(self) -> float | None:
        """The chance that a bug of this depth is there and none of the schedules showed it."""
        return None if self.promised is None else (1 - self.promised) ** self.schedules

    def to_json(self) -> dict[str, Any]:
        """Schema pirlab-sample/1."""
        found = self.counterexample
        return {
            "schema": SCHEMA,
            "scenario": self.scenario.name,
            "rule": self.scenario.rule.value,
            "memory": self.scenario.memory.value,
            "bounds": str(self.scenario.bounds),
            "strategy": self.strategy.value,
            "depth": self.depth,
            "seed": self.seed,
            "schedules": self.schedules,
            "failing": self.failing,
            "promised": self.promised,
            "missed_at_most": self.missed_at_most,
            "actors": self.parts,
            "steps": round(self.steps, 1),
            "horizon": self.horizon,
            "seconds": round(self.seconds, 3),
            "counterexample": [step.to_json() for step in found.steps] if found else [],
        }

    def to_text(self) -> str:
        """One line: how many failed, and what was promised."""
        line = f"{self.failing} of {self.schedules} schedules fail ({self.strategy.value}"
        if self.promised is None:
            return f"{line}; no bound)"
        return (
            f"{line}, d={self.depth}, n={self.parts}, k={self.horizon}: at least "
            f"{self.promised:.2e} a schedule promised, given the guest's choices, so a bug of this "
            f"depth is missed with a chance of at most {self.missed_at_most:.2f})"
        )


def sample(
    scenario: Scenario,
    schedules: int = 1000,
    strategy: Strategy = Strategy.PCT,
    depth: int = 3,
    seed: int = 0,
    horizon: int = HORIZON,
) -> Sample:
    """Run `schedules` of them; the first that fails is kept as the counterexample."""
    chosen = random.Random(seed)
    # Every schedule makes all its posts: a sender that retires early shows less, and the vCPU's
    # sleep is end enough.
    world = World(replace(scenario, early_ends=False))
    began = time.perf_counter()
    failing, total = 0, 0
    first: Counterexample | None = None
    for _ in range(schedules):
        changes: set[int] = set()
        if strategy is Strategy.PCT:
            changes = {chosen.randrange(1, horizon + 1) for _ in range(depth - 1)}
        way, broken = _schedule(world, chosen, strategy, changes)
        total += len(way) - 1
        if broken is not None:
            failing += 1
            first = first or counterexample_of(world, broken, seed)
    parts = len(world.parts)
    promised = 1 / (parts * horizon ** (depth - 1)) if strategy is Strategy.PCT else None
    return Sample(
        scenario=scenario,
        strategy=strategy,
        depth=depth,
        seed=seed,
        schedules=schedules,
        failing=failing,
        parts=parts,
        steps=total / schedules,
        horizon=horizon,
        seconds=time.perf_counter() - began,
        promised=promised,
        counterexample=first,
    )


def _schedule(
    world: World, chosen: random.Random, strategy: Strategy, changes: set[int]
) -> tuple[list[int], Broken | None]:
    """One schedule, until nothing can move, a claim breaks, or STEPS_MAX."""
    state = world.initial()
    way = [state]
    parts = range(len(world.parts))
    priority = [chosen.random() for _ in parts]  # above 0; changes put an actor below all others
    for step in range(1, STEPS_MAX + 1):
        entries = [(i, world.entry(i, state)) for i in parts]
        if world.fault is not None:
            delta, claim, text = world.fault
            world.fault = None
            return way, Broken(claim, text, (*way, state + delta))
        at_rest = not any(obliged for _, (obliged, _) in entries)
        if at_rest and state & world.owed_mask and world.owes(state):
            text = describe.loss(world, state)
            return way, Broken(Claim.EVERY_POST_IS_DELIVERED, text, tuple(way))
        able = [i for i, (_, deltas) in entries if deltas]
        if not able:
            break
        if strategy is Strategy.PCT:
            turn = max(able, key=priority.__getitem__)
            if step in changes:
                priority[turn] = -step
        else:
            turn = chosen.choice(able)
        state += chosen.choice(entries[turn][1][1])
        way.append(state)
    return way, None
