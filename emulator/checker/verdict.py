"""`check`: explore a scenario, judge its claims, give a verdict that says what it rests on."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from textwrap import wrap
from typing import Any, Final

from emulator.checker.catalogue import SCENARIOS
from emulator.checker.claims import Claim, Sometimes
from emulator.checker.cost import Cost, cost
from emulator.checker.counterexample import Counterexample, counterexample_of
from emulator.checker.coverage import must_happen
from emulator.checker.liveness import delivery_stays_possible, every_post_is_delivered_at_last
from emulator.checker.scenario import MemoryModel, Scenario
from emulator.checker.search import Broken, Exploration, TooManyStatesError, explore
from emulator.checker.world import World
from emulator.kvm.params import Bug, Notify

SCHEMA: Final = "pirlab-check/1"

LIMITS: Final = (
    "Left out: nested VMX, APICv inhibition, ISR, EOI and priorities among virtual interrupts, "
    "halt polling (it only delays blocking), signals, AVIC.  try_to_wake_up(), the exchange loop "
    "on the control word and each list operation are single steps; the wake-up handler holds its "
    "list's lock over several.  VT-d's change of the descriptor is one step, as its specification "
    "promises; a device is taken away only when nothing it posted is outstanding.  Under tso a "
    "plain store waits in a FIFO of depth 2 per pCPU; locked steps and the barrier wait for it to "
    "drain, VM entry does not.  What is shown is shown of the steps in the protocol text within "
    "these bounds; not of CPython, ZeroMQ or the atomics, nor of a kernel."
)


class Judgement(Enum):
    """What an exploration says about a scenario's claims."""

    HOLDS = "holds"
    BROKEN = "broken"
    VACUOUS = "vacuous"  # nothing broke, but what the question is about never happened


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer, with everything it rests on.

    `losing` counts the states at rest in which a post is owed; `never` what should have happened
    and did not; `seconds` is the search alone.
    """

    scenario: Scenario
    judgement: Judgement
    claim: Claim | None
    text: str
    states: int
    transitions: int
    depth: int
    losing: int
    seconds: float
    never: tuple[Sometimes, ...] = ()
    counterexample: Counterexample | None = None
    cost: Cost | None = None

    def to_json(self) -> dict[str, Any]:
        """The object that `check --json` prints."""
        scenario, found = self.scenario, self.counterexample
        return {
            "schema": SCHEMA,
            "scenario": scenario.name,
            "question": scenario.question,
            "rule": scenario.rule.value,
            "bug": "+".join(sorted(bug.value for bug in scenario.bugs)) or None,
            "memory": scenario.memory.value,
            "verdict": self.judgement.value,
            "claim": self.claim.title if self.claim else None,
            "text": self.text,
            "states": self.states,
            "transitions": self.transitions,
            "depth": self.depth,
            "losing": self.losing,
            "seconds": round(self.seconds, 4),
            "bounds": str(scenario.bounds),
            "never": [sometimes.value for sometimes in self.never],
            "cost": self.cost.to_json() if self.cost else None,
            "counterexample": [step.to_json() for step in found.steps] if found else [],
            "limits": LIMITS,
        }

    def to_text(self) -> str:
        """A few lines for people; the counterexample is `render`'s."""
        scenario = self.scenario
        bugs = "".join(f", {bug}" for bug in sorted(b.value for b in scenario.bugs))
        explored = (
            f"rule {scenario.rule.value}{bugs}, {scenario.axes}, "
            f"bound {scenario.bounds}, {scenario.memory.value}: {self.states:,} states, "
            f"{self.transitions:,} transitions, depth {self.depth}, {self.seconds:.2f} s"
        )
        lines = [
            f"{scenario.name}: {scenario.question}",
            *wrap(f"{self.judgement.value}: {self.text}", 76),
            *wrap(explored, 76),
        ]
        lines += (f"never: {sometimes.value}" for sometimes in self.never)
        if self.cost:
            for what in ("raised", "wasted", "woken"):
                fewest, most = getattr(self.cost, what)
                lines.append(f"{what}: {fewest} to {most} in every run that makes all its posts")
        return "\n".join([*lines, *wrap(f"Limits: {LIMITS}", 76, subsequent_indent="  ")])


def find(scenario: Scenario | str) -> Scenario:
    """A scenario by its name.  Raises ValueError with the names there are."""
    if isinstance(scenario, Scenario):
        return scenario
    known = SCENARIOS.get(scenario)
    if known is None:
        raise ValueError(f"no scenario {scenario!r}; there are: {', '.join(SCENARIOS)}")
    return known


def check(
    scenario: Scenario | str,
    rule: Notify | None = None,
    bugs: Iterable[Bug] = (),
    memory: MemoryModel | None = None,
    *,
    stop_at_first: bool = False,
) -> Verdict:
    """Explore `scenario`, under another rule or memory model if one is given.

    `bugs` come on top of the scenario's own.  With `stop_at_first` the counts are of what had been
    seen when a claim broke.  Raises ValueError for an unknown name, TooManyStatesError.
    """
    asked = find(scenario)
    if asked.sampled:
        text = "too wide to explore; emulator.checker.sample() runs schedules of it"
        raise TooManyStatesError(f"{asked.name}: {text}")
    asked = asked.under(rule, asked.bugs | frozenset(bugs), memory)
    world = World(asked)
    found = explore(world, stop_at_first=stop_at_first)
    broken = found.broken or _in_the_end(found)
    never = tuple(s for s in Sometimes if s in must_happen(asked) - world.cpu.seen)
    if broken is not None:
        judgement, text = Judgement.BROKEN, f"{broken.claim.title}: {broken.text}"
    elif never:
        judgement, text = Judgement.VACUOUS, "nothing broke, but the question was not put"
    else:
        claims = sorted(claim.title for claim in asked.claims)
        judgement, text = Judgement.HOLDS, "; ".join(claims)
    return Verdict(
        scenario=asked,
        judgement=judgement,
        claim=broken.claim if broken else None,
        text=text,
        states=found.states,
        transitions=found.transitions,
        depth=found.depth,
        losing=found.losing,
        seconds=found.seconds,
        never=never if broken is None else (),
        counterexample=counterexample_of(world, broken) if broken else None,
        cost=cost(asked) if Claim.COST in asked.claims and broken is None else None,
    )


def _in_the_end(found: Exploration) -> Broken | None:
    """S2 and L1, if the scenario claims them."""
    claims = found.world.scenario.claims
    broken: Broken | None = None
    if Claim.DELIVERY_STAYS_POSSIBLE in claims:
        broken = delivery_stays_possible(found)
    if broken is None and Claim.EVERY_POST_IS_DELIVERED_AT_LAST in claims:
        broken = every_post_is_delivered_at_last(found)
    return broken


def list_scenarios() -> list[dict[str, Any]]:
    """Name, question, bounds, and the rules it is known to break under, of each."""
    return [
        {
            "name": scenario.name,
            "question": scenario.question,
            "bounds": str(scenario.bounds),
            "rule": scenario.rule.value,
            "memory": scenario.memory.value,
            "breaks_under": sorted(rule.value for rule in scenario.expected),
            "profile": _profile(scenario),
        }
        for scenario in SCENARIOS.values()
    ]


def _profile(scenario: Scenario) -> str:
    if scenario.sampled:
        return "sampled"
    return "full" if scenario.full else "quick"
