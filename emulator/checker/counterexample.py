"""A way to a broken claim, as data: the same lines that `show`, `replay` and a bug report use.

A file is JSON lines.  The header has the scenario, the hash of the protocol text, the claim, the
initial memory.  Then a line for each step: actor, pCPU, step (a method of `Cpu`, or what the
surroundings did: see `moves.Move`), arguments, result, source line, the looks that went with it.
Last the final memory.  Everything nondeterministic is in the lines: a guest's choice is the result
of `non_root_event` with what the exit left in the VMCS, a scheduler's the result of
`context_switch`, an arrival an "interrupt" line.
"""

import json
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, Final, get_origin

from emulator.checker import describe
from emulator.checker import memory as slot
from emulator.checker.claims import Claim
from emulator.checker.moves import Move
from emulator.checker.scenario import Bounds, MemoryModel, Scenario
from emulator.checker.search import Broken, moves_along
from emulator.checker.twin import source_hash
from emulator.checker.world import World
from emulator.kvm.params import Bug, EntryOrder, Notify, PidScheme, ReentryOrder, Timer

FORMAT: Final = "pirlab-counterexample/2"
SHARED_BY_VCPU: Final = (
    *(slot.PIR, slot.VIRR, slot.ON, slot.SN, slot.NV, slot.NDST),
    *(slot.MODE, slot.CPU, slot.REQUESTS, slot.STATE, slot.TIMER_PENDING),
)
SHARED_BY_PCPU: Final = (slot.PENDING, slot.LIST, slot.LOCK, slot.FIRST, slot.SECOND)
HOSTS_MAX: Final = 8
SWITCHES: Final = [f.name for f in fields(Scenario) if f.type is bool]
ALWAYS_KEPT: Final = frozenset({"interrupt", "preempt", "context_switch", "drain", "assign"})


class CounterexampleError(Exception):
    """A counterexample cannot be read or followed; the message is one sentence, with the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.  `keep` is False if it commutes with what the other actors did.

    `vmcs`, of a VM exit: the external interrupt's "vector", the "deadline" written, "guest_if".
    """

    step: int
    actor: str
    cpu: int
    op: str
    args: list[Any]
    result: Any
    line: str
    functions: list[str]
    vmcs: dict[str, int]
    looks: list[list[Any]]
    state: dict[str, Any]
    keep: bool

    @property
    def taken(self) -> tuple[Any, ...]:
        """What determines the move, as `Walk` wants it."""
        told = (self.actor, self.op, self.args, self.result)
        return (*told, self.vmcs) if self.vmcs else told

    def to_json(self) -> dict[str, Any]:
        """A line of the file."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterexample:
    """A whole way, with what it was found in.  `seed` is None if a search found it."""

    scenario: Scenario
    claim: Claim
    text: str
    source: str
    initial: dict[str, Any]
    steps: tuple[Step, ...]
    final: dict[str, Any]
    seed: int | None = None

    def header(self) -> dict[str, Any]:
        """The first line of the file."""
        return {
            "format": FORMAT,
            "scenario": scenario_to_json(self.scenario),
            "rule": self.scenario.rule.value,
            "memory": self.scenario.memory.value,
            "bugs": sorted(bug.value for bug in self.scenario.bugs),
            "bounds": str(self.scenario.bounds),
            "source": self.source,
            "claim": self.claim.value,
            "text": self.text,
            "steps": len(self.steps),
            "seed": self.seed,
            "initial": self.initial,
        }

    def save(self, path: Path | str) -> None:
        """Write the file."""
        lines = [self.header(), *(step.to_json() for step in self.steps), {"final": self.final}]
        Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def counterexample_of(world: World, broken: Broken, seed: int | None = None) -> Counterexample:
    """What a search or a sampled schedule has found, step by step."""
    moves = moves_along(world, broken.states)
    conflicts = _conflicts(world, broken.states, moves)
    steps = tuple(
        _step(i, move, describe.summary(world, after), i - 1 in conflicts)
        for i, (move, after) in enumerate(zip(moves, broken.states[1:], strict=True), start=1)
    )
    return Counterexample(
        scenario=world.scenario,
        claim=broken.claim,
        text=broken.text,
        source=source_hash(),
        initial=describe.memory(world, broken.states[0]),
        steps=steps,
        final=describe.memory(world, broken.states[-1]),
        seed=seed,
    )


def _step(number: int, move: Move, state: dict[str, Any], keep: bool) -> Step:
    return Step(
        step=number,
        actor=move.actor,
        cpu=move.pcpu,
        op=move.op,
        args=plain(move.args),
        result=plain(move.result),
        line=move.node.line if move.node else "",
        functions=list(move.node.functions) if move.node else [],
        vmcs=dict(move.vmcs),
        looks=[[look.op, plain(look.args), plain(look.result)] for look in move.looks],
        state=state,
        keep=keep,
    )


def _conflicts(world: World, states: tuple[int, ...], moves: list[Move]) -> set[int]:
    """The steps that another actor's step depends on, or that depend on another actor's.

    Two steps depend on each other directly if they touch the same slot, one of them changes it, and
    no step in between does.  What a CPU keeps for itself (whose turn it is, its flags) is not
    counted; what comes from outside the text (an arrival, a preemption) is always kept, and so is
    the last change of what the verdict is about.
    """
    layout = world.layout
    shared = {v + field for v in layout.vcpus for field in SHARED_BY_VCPU}
    shared |= {p + field for p in layout.pcpus for field in SHARED_BY_PCPU}
    touched = [world.touched_by(s, m) & shared for s, m in zip(states, moves, strict=False)]
    unpacked = [list(layout.unpack(state)) for state in states]
    found = {i for i, move in enumerate(moves) if move.op in ALWAYS_KEPT}
    for where in frozenset().union(*touched):
        since: list[int] = []  # who has touched it since it last changed, the changer included
        for i, move in enumerate(moves):
            if where not in touched[i]:
                continue
            changes = unpacked[i][where] != unpacked[i + 1][where]
            others = [j for j in since if moves[j].actor != move.actor]
            changer = since[0] if since and _changed(unpacked, since[0], where) else None
            pairs = others if changes else [j for j in others if j == changer]
            found.update(pairs, [i] if pairs else [])
            since = [i] if changes else [*since, i]
        if since and _changed(unpacked, since[0], where):
            found.add(since[0])
    return found


def _changed(unpacked: list[list[int]], step: int, where: int) -> bool:
    return unpacked[step][where] != unpacked[step + 1][where]


def plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value


def scenario_to_json(scenario: Scenario) -> dict[str, Any]:
    """All that is needed to explore it again."""
    given: dict[str, Any] = {f.name: getattr(scenario, f.name) for f in fields(Scenario)}
    bounds = {f.name: getattr(scenario.bounds, f.name) for f in fields(Bounds)}
    for name in ("bugs", "claims", "expected"):
        given[name] = sorted(member.value for member in given[name])
    return {**{name: plain(value) for name, value in given.items()}, "bounds": bounds}


def scenario_from_json(given: dict[str, Any]) -> Scenario:
    """The inverse.  Raises KeyError, TypeError or ValueError on what is no scenario."""
    hosts, pins, bounds = given["hosts"], given["pins"], given["bounds"]
    switches = [name for name, value in given.items() if isinstance(value, bool)]
    texts = (given["name"], given["question"])
    if not isinstance(bounds, dict) or switches != SWITCHES or {*map(type, texts)} != {str}:
        raise ValueError("the scenario's fields have other types")
    if {*map(type, (hosts, *pins, *bounds.values()))} != {int}:
        raise ValueError("pCPUs and bounds are whole numbers")
    if not (0 < hosts <= HOSTS_MAX and pins and all(0 <= pin < hosts for pin in pins)):
        raise ValueError(f"vCPUs on pCPUs {pins} of {hosts}")
    if not all(0 <= bound < slot.RETIRED for bound in bounds.values()):
        raise ValueError(f"a bound is not in 0..{slot.RETIRED - 1}")
    return Scenario(
        **{
            **given,
            "bounds": Bounds(**given["bounds"]),
            "rule": Notify(given["rule"]),
            "pid_scheme": PidScheme(given["pid_scheme"]),
            "entry_order": EntryOrder(given["entry_order"]),
            "reentry_order": ReentryOrder(given["reentry_order"]),
            "timer": Timer(given["timer"]),
            "bugs": frozenset(Bug(b) for b in given["bugs"]),
            "memory": MemoryModel(given["memory"]),
            "pins": tuple(given["pins"]),
            "claims": frozenset(Claim(c) for c in given["claims"]),
            "expected": frozenset(Notify(n) for n in given["expected"]),
        }
    )


def _step_from_json(given: dict[str, Any]) -> Step:
    """The inverse of Step.to_json().  Raises TypeError or ValueError on what is no step."""
    step = Step(**given)
    for field in fields(Step):
        wanted = get_origin(field.type) or field.type
        if wanted is not Any and type(getattr(step, field.name)) is not wanted:
            raise ValueError(f"step {step.step}: {field.name} has another type")
    return step


def load_counterexample(path: Path | str) -> Counterexample:
    """Read a file.  Raises CounterexampleError if it is truncated, spoilt or not one."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CounterexampleError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CounterexampleError(f"{path}: cannot be read: it is not text") from error
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            parsed.append(json.loads(line))
        except ValueError as error:
            raise CounterexampleError(f"{path}: line {number} is not JSON") from error
    if not parsed or not isinstance(parsed[0], dict) or parsed[0].get("format") != FORMAT:
        raise CounterexampleError(f"{path}: its first line does not say format {FORMAT!r}")
    header, *steps = parsed
    if not steps or not isinstance(steps[-1], dict) or "final" not in steps[-1]:
        raise CounterexampleError(
            f"{path}: it breaks off, the line with the final state is missing"
        )
    final = steps.pop()["final"]
    try:
        found = Counterexample(
            scenario=scenario_from_json(header["scenario"]),
            claim=Claim(header["claim"]),
            text=header["text"],
            source=header["source"],
            initial=header["initial"],
            steps=tuple(_step_from_json(step) for step in steps),
            final=final,
            seed=header["seed"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CounterexampleError(f"{path}: a line is not what the format says: {error}") from error
    if len(found.steps) != header.get("steps"):
        said, held = header.get("steps"), len(found.steps)
        raise CounterexampleError(f"{path}: the header says {said} steps, the file holds {held}")
    return found
