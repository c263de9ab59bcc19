"""C1: what the notifications cost, as a theorem about all runs and not as an average of some.

Over every run in which each sender makes all its posts: the fewest and the most vectors raised,
notifications that arrived in root mode (wasted), and wake-ups that found a sleeper.
"""

from dataclasses import dataclass, replace

from emulator.checker import memory as slot
from emulator.checker.claims import Claim
from emulator.checker.scenario import Scenario
from emulator.checker.search import explore
from emulator.checker.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """(fewest, most) over all whole runs; `runs` is how many states at rest end one."""

    raised: tuple[int, int]
    wasted: tuple[int, int]
    woken: tuple[int, int]
    runs: int

    def to_json(self) -> dict[str, object]:
        """{"raised": [fewest, most], ...}."""
        return {
            "raised": list(self.raised),
            "wasted": list(self.wasted),
            "woken": list(self.woken),
            "ends": self.runs,
        }


def cost(scenario: Scenario) -> Cost:
    """Explore `scenario` with counters; raises ValueError if no run makes all its posts."""
    world = World(replace(scenario, claims=scenario.claims | {Claim.COST}))
    layout = world.layout
    budgets = [
        v + where
        for v in layout.vcpus
        for where in (slot.LEFT_REMOTE, slot.LEFT_IRQ, slot.LEFT_FASTPATH, slot.LEFT_DEVICE)
    ]
    counters = [layout.masks[where] for where in (slot.RAISED, slot.WASTED, slot.WOKEN)]
    shifts = [layout.shifts[where] for where in (slot.RAISED, slot.WASTED, slot.WOKEN)]
    unmade = sum(layout.masks[where] for where in budgets)
    ends: set[tuple[int, ...]] = set()
    runs = 0

    def at_rest(state: int) -> None:
        nonlocal runs
        if not state & unmade:
            runs += 1
            ends.add(tuple((state & m) >> s for m, s in zip(counters, shifts, strict=True)))

    explore(world, at_rest=at_rest)
    if not ends:
        raise ValueError(f"{scenario.name}: no run makes all its posts")
    raised, wasted, woken = ((min(c), max(c)) for c in zip(*ends, strict=True))
    return Cost(raised=raised, wasted=wasted, woken=woken, runs=runs)
