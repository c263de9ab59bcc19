"""A way through the model, driven through real pCPU processes: `pirlab replay FILE --live`.

The only text that knows both worlds.  It takes the model's moves as a schedule (`machine/gate`),
has processes follow it (`machine/gated_run`), and holds what they leave against the model's memory.
At its end the gate opens: what is lost must stay lost, a repaired rule must recover.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

from emulator.checker import (
    CounterexampleError,
    Divergence,
    MemoryModel,
    Scenario,
    Walk,
    describe,
    replay_file,
)
from emulator.checker import memory as slot
from emulator.checker.memory import initial_memory
from emulator.checker.moves import Look, Move
from emulator.checker.search import moves_along
from emulator.checker.world import World
from emulator.kvm.params import Notify
from emulator.machine.gate import Schedule, Turn, plain
from emulator.machine.gated_run import Outcome, run_schedule

WALK_STEPS_MAX: Final = 150
FREE_S: Final = 0.2  # how long the processes run freely behind the schedule
LIMITS: Final = (
    "One process per pCPU and per sender; the protocol text, its atomics on the mapped file and "
    "its ZeroMQ messages are the live ones.  From the schedule come what the guest does, when an "
    "interrupt is taken, who is preempted and where a thread runs.  A thread that comes back to a "
    "pCPU runs its text again over its recorded results up to where it left."
)
BUFFER: Final = (
    "Plain stores (vcpu->mode, vcpu->cpu) go through a software store buffer, drained by the "
    "schedule: nobody can steer the hardware's.  `pirlab litmus` asks the hardware itself."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way through the model of `scenario`.  `stopped` says why it ends before the file does."""

    scenario: Scenario
    world: World
    states: tuple[int, ...]
    stopped: Divergence | None = None

    def state(self, at: int) -> dict[str, Any]:
        """The model's memory before step `at` (from 0), pending vectors in order."""
        told = describe.memory(self.world, self.states[at])
        for pcpu in told["pcpus"]:
            pcpu["pending"].sort()
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveReplay:
    """What came of it.  `differs` is empty if live and model agree in every value.

    `left` names what is still undelivered after the free running; `lost` says whether the model
    says that the schedule ends in a loss.
    """

    way: Way
    schedule: Schedule
    outcome: Outcome
    differs: tuple[str, ...]
    left: tuple[str, ...]
    lost: bool

    @property
    def good(self) -> bool:
        """Every result and the memory are the model's; lost stays lost, else nothing is."""
        same = self.outcome.diverged is None and not self.differs
        return same and bool(self.left) is self.lost

    def to_text(self) -> str:
        """What was done, where it differs, what freedom brought."""
        steps, outcome = len(self.schedule.turns), self.outcome
        scenario = self.way.scenario
        names = ", ".join(f"{name} (pid {pid})" for name, pid in outcome.pids.items())
        lines = [f"live: {scenario.name}, rule {scenario.rule.value}, {scenario.memory.value}"]
        lines += wrap(f"processes: {names}", 76, subsequent_indent="  ")
        if self.way.stopped is not None:
            lines += wrap(f"the schedule is followed up to where rules differ: {self.way.stopped}")
        if outcome.diverged is not None:
            return "\n".join([*lines, *self._divergence()])
        lines.append(
            f"{steps} steps in {outcome.schedule_s * 1e3:.1f} ms, {outcome.messages} vectors over "
            "ZeroMQ, every result the model's"
        )
        if self.differs:
            lines += ["the memory at the end is not the model's:", *self.differs]
        else:
            lines.append("the memory at the end is the model's")
        lines.append(f"then {FREE_S * 1e3:.0f} ms without a gate: {self._freedom()}")
        lines += wrap(LIMITS, 76)
        if self.schedule.tso:
            lines += wrap(BUFFER, 76)
        return "\n".join(lines)

    def _freedom(self) -> str:
        if self.left:
            return f"{'; '.join(self.left)}: " + ("lost, and stays lost" if self.lost else "LOST")
        return "NOT LOST, it was delivered" if self.lost else "everything has been delivered"

    def _divergence(self) -> list[str]:
        diverged = self.outcome.diverged
        assert diverged is not None
        where = f"step {diverged.at + 1} of {len(self.schedule.turns)}, in {diverged.process}"
        return [
            f"DIVERGED at {where}:",
            *wrap(diverged.text, 76, initial_indent="  ", subsequent_indent="  "),
            *(self.differs or ("  (the memory is the model's)",)),
        ]


# -- the schedule ----------------------------------------------------------------------------------


def way_of_file(path: Path | str, rule: Notify | None = None) -> Way:
    """The way that a saved counterexample tells, under its rule or as far as another goes it.

    Raises CounterexampleError for a file that the checker would not replay, or that ends with a
    process spinning on a lock for good.
    """
    found = replay_file(path).counterexample
    scenario = found.scenario.under(rule)
    walk = Walk(scenario)
    stopped = None
    for at, step in enumerate(found.steps):
        stopped = walk.follow([step.taken])
        if stopped is not None:
            stopped = Divergence(at, step.taken, stopped.possible)
            break
    if all(move.voluntary for move in walk.world.moves(walk.states[-1])) and (
        stuck := describe.deadlock(walk.world, walk.states[-1])
    ):
        raise CounterexampleError(f"{path}: {stuck}, and so would a process: not with --live")
    states = tuple(walk.states)
    return Way(scenario=scenario, world=walk.world, states=states, stopped=stopped)


def random_way(scenario: Scenario, seed: int, steps_max: int = WALK_STEPS_MAX) -> Way:
    """A uniform random walk: until nothing can move, something is lost, or `steps_max`."""
    chosen = random.Random(seed)
    world = World(scenario)
    states = [world.initial()]
    while len(states) <= steps_max:
        state = states[-1]
        entries = [world.entry(i, state) for i in range(len(world.parts))]
        able = [deltas for _, deltas in entries if deltas]
        at_rest = not any(obliged for obliged, _ in entries)
        if world.fault is not None or not able or (at_rest and world.owes(state)):
            break
        states.append(state + chosen.choice(chosen.choice(able)))
    return Way(scenario=scenario, world=world, states=tuple(states))


def schedule_of(way: Way) -> Schedule:
    """The way as turns for processes."""
    scenario, world = way.scenario, way.world
    moves = moves_along(world, way.states)
    memory = initial_memory(scenario, world.layout)
    vcpus = range(len(scenario.pins))
    queued = {v for v in vcpus if memory[world.layout.vcpus[v] + slot.PREEMPTING]}
    return Schedule(
        kvm=scenario.kvm,
        hosts=scenario.hosts,
        pins=scenario.pins,
        turns=tuple(_turn(move) for move in moves),
        before=tuple(_before(scenario, v, queued=v in queued) for v in vcpus),
        queued=frozenset(queued),
        assigned=scenario.assigned,
        tso=scenario.memory is MemoryModel.TSO,
        irq_vector=scenario.irq_vector,
        timer_vector=scenario.timer_vector,
    )


def _turn(move: Move) -> Turn:
    left = dict(move.vmcs)
    return Turn(
        actor=move.actor,
        pcpu=move.pcpu,
        op=move.op,
        args=plain(move.args),
        result=plain(move.result),
        looks=_looks(move.looks),
        forced=(left.get("vector", 0), left.get("deadline", 0), bool(left.get("guest_if", 1))),
    )


def _looks(looks: tuple[Look, ...]) -> tuple[tuple[str, list[Any], Any], ...]:
    return tuple((look.op, plain(look.args), plain(look.result)) for look in looks)


def _before(scenario: Scenario, vcpu: int, *, queued: bool) -> tuple[Turn, ...]:
    """What the thread of `vcpu` did before the schedule: see `World.initial`."""
    world = World(scenario)
    programs, pcpu = world.programs, scenario.pins[vcpu]
    world.cpu.m = initial_memory(scenario, world.layout)
    world.cpu.me, world.cpu.c = vcpu, pcpu
    actor = f"vcpu{vcpu}"
    _, looks = programs.start("vcpu_run", vcpu)
    done = [Turn(actor=actor, pcpu=pcpu, op="start", args=[], result=None, looks=_looks(looks))]
    if not queued:
        return tuple(done)
    at, looks = programs.start("preempt_schedule", vcpu)
    args = ["preempt_schedule", vcpu]
    done.append(
        Turn(actor="sched", pcpu=pcpu, op="preempt", args=args, result=None, looks=_looks(looks))
    )
    while programs.node(at).op != "context_switch":
        choice = programs.choices(programs.node(at))[0]
        result = programs.apply(choice)
        followed: list[Look] = []
        at = programs.after(at, choice, result, followed)
        done.append(
            Turn(
                actor=actor,
                pcpu=pcpu,
                op=choice.op,
                args=plain(choice.args),
                result=plain(result),
                looks=_looks(tuple(followed)),
            )
        )
    return tuple(done)


# -- the replay ------------------------------------------------------------------------------------


def replay_live(way: Way, free_s: float = FREE_S, schedule: Schedule | None = None) -> LiveReplay:
    """Drive real processes along `way`.  RunBroken if one of them dies, HostError.

    `schedule` replaces the way's own: what a test changes in it must be found.
    """
    schedule = schedule or schedule_of(way)
    outcome = run_schedule(schedule, free_s)
    broke = outcome.diverged
    at = len(schedule.turns) if broke is None else broke.at + broke.done
    last = way.states[-1]
    at_rest = all(move.voluntary for move in way.world.moves(last))
    return LiveReplay(
        way=way,
        schedule=schedule,
        outcome=outcome,
        differs=tuple(_differences(way.state(at), outcome.at_end)),
        left=tuple(_left(outcome)),
        lost=bool(at_rest and way.world.owes(last)),
    )


def _differences(model: dict[str, Any], live: dict[str, Any]) -> list[str]:
    """The values that are not the same, a line each."""
    return [
        f"  {kind[:-1]} {i}: {name} is {there[name]!r} live, {value!r} in the model"
        for kind in ("vcpus", "pcpus")
        for i, (there, here) in enumerate(zip(live[kind], model[kind], strict=True))
        for name, value in here.items()
        if there[name] != value
    ]


def _left(outcome: Outcome) -> list[str]:
    """What nobody has delivered."""
    found = []
    for i, vcpu in enumerate(outcome.after["vcpus"]):
        held = [f"{name}[{v}]" for name in ("pir", "virr") for v in vcpu[name]]
        held += ["a timer's expiry"] * (i in outcome.timers)
        queued = vcpu["on_cpu"] < 0 and vcpu["state"] != "SLEEPING"  # another computes there
        if held and i not in outcome.masked and not queued:
            where = "sleeps" if vcpu["state"] == "SLEEPING" else "runs"
            found.append(f"vCPU {i} {where}, {', '.join(held).upper()} set")
    return found
