"""Is a recorded run a path of the model?

Three questions, asked of every step: does the text do that here (`record_text`), is the result the
one that the CPU's own state gives (`record_owned`), is there an order of the steps that explains
what they found in memory (`record_memory`).  A run is a path if all are answered yes.  The first
step for which one is not is where it leaves the model.
Before: `machine/ordered` recorded it, `order.read_steps` read it.  Next: `live_path` shows it.
"""

import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from emulator.checker.record_memory import (
    NAMES,
    Key,
    Use,
    check_messages,
    initial_value,
    search,
    uses,
)
from emulator.checker.record_owned import ANY, Owned
from emulator.checker.record_text import CpuText, NoPathError, TextCpu, said_result
from emulator.hardware.senders import PidPointerTable
from emulator.kvm.params import Kvm
from emulator.order import SHARED, Step

Place = tuple[int, int, int]  # (ticket, source, index): sorts steps as the record has them

WORLD_ENDS: Final = frozenset({"complete", "interrupted"})  # a run whose threads all ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A run's record, and what the steps are steps of."""

    kvm: Kvm
    pins: tuple[int, ...]  # where each vCPU starts
    has_pi_sender: tuple[bool, ...]  # of each vCPU, as the run began
    steps: dict[int, list[Step]]  # by source
    whole: bool  # every thread has ended: nothing was cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Where a run leaves the model."""

    step: Step | None  # None: the record ends where the text goes on
    why: str  # what the model would have allowed
    about: str  # the object that it is about, "" if it is not about memory
    before: tuple[Step, ...]  # the steps that led there, the step itself last


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What validation found; `divergence` is None for a path."""

    steps: int
    objects: int
    overlapping: int  # uses of an object that overlapped the next one of it
    moves: int  # times a thread came from another CPU
    divergence: Divergence | None


def check_path(run: Recorded, around: int = 12) -> Answer:
    """Is `run` a path of the model?  `around`: how many steps to show where it is not."""
    merged = list(merge(run.steps))
    objects = _objects(merged)
    found = min(
        filter(
            None, (_by_tickets(merged), _by_text(run, merged), _by_memory(run, merged, objects))
        ),
        key=lambda d: d[0],
        default=None,
    )
    overlapping = sum(
        a.step.end > b.step.begin for used in objects.values() for a, b in itertools.pairwise(used)
    )
    divergence = None
    if found is not None:
        place, step, why, key = found
        steps = _before(merged, place, key, around)
        about = NAMES[key[0]].format(*key[1:]) if key else ""
        divergence = Divergence(step=step, why=why, about=about, before=steps)
    return Answer(
        steps=len(merged),
        objects=len(objects),
        overlapping=overlapping,
        moves=len(_moves(merged)),
        divergence=divergence,
    )


Found = tuple[Place, Step | None, str, Key]
Merged = list[tuple[Place, Step]]


def merge(steps: dict[int, list[Step]]) -> Iterator[tuple[Place, Step]]:
    """All steps in the order of the tickets before them; a CPU's own keep their order.

    What has no ticket stands behind what its CPU did last.
    """
    return heapq.merge(*(_placed(own) for own in steps.values()))


def _placed(own: Iterable[Step]) -> Iterator[tuple[Place, Step]]:
    at = 0
    for step in own:
        at = max(at, step.begin)
        yield (at, step.source, step.number), step
        at = max(at, step.end)


def before(steps: dict[int, list[Step]], ticket: int) -> dict[int, list[Step]]:
    """The steps that nothing from `ticket` on can have had a part in.

    A step that was open at that ticket is left out, and so then is whatever overlapped it.
    """
    shared = sorted((s for own in steps.values() for s in own if s.end), key=lambda s: -s.end)
    for step in shared:
        if step.end < ticket:
            break
        ticket = min(ticket, step.begin)
    return {
        source: own[: next((i for i, step in enumerate(own) if step.end >= ticket), len(own))]
        for source, own in steps.items()
    }


# -- the text, and what a CPU has to itself --------------------------------------------------------


def _by_text(run: Recorded, merged: Merged) -> Found | None:
    """The first step that its own CPU's text or state does not allow."""
    cpu, table = TextCpu(run.kvm), PidPointerTable.of_vcpus(len(run.pins))
    texts = {source: CpuText(source, cpu, table) for source in run.steps}
    owned = Owned()
    for place, step in merged:
        try:
            if step.op == "thread":
                _move(texts, step)
            texts[step.source].feed(step)
            result = owned.do(step)
        except NoPathError as error:
            return place, step, str(error), ()
        if result is not ANY and result is not None and result != step.result:
            return place, step, f"the model returns {said_result(result)}", ()
    if run.whole:
        for source, text in texts.items():
            if text.wanted or text.parked:
                end = max((p for p, s in merged if s.source == source), default=(0, source, 0))
                return end, None, f"the record ends and the text goes on{text.place()}", ()
    return None


def _move(texts: dict[int, CpuText], step: Step) -> None:
    """A thread begins: wherever else it was, it is no longer."""
    for source, text in texts.items():
        if source != step.source:
            text.leave(step.args[0])


def _moves(merged: Merged) -> list[Step]:
    """The beginnings of threads that had begun before."""
    begun: set[int] = set()
    again = []
    for _, step in merged:
        if step.op == "thread":
            if step.args[0] in begun:
                again.append(step)
            begun.add(step.args[0])
    return again


# -- tickets ---------------------------------------------------------------------------------------


def _by_tickets(merged: Merged) -> Found | None:
    """A step whose tickets cannot be its own: each was taken once, in turn, and none is missing."""
    own: dict[int, Merged] = {}  # by source
    holders: dict[int, list[tuple[int, int]]] = {}
    for place, step in merged:
        if (step.op in SHARED or step.op == "stop") != (step.begin > 0):
            return place, step, "its tickets are not those of such a step", ()
        if step.begin:
            mine = own.setdefault(step.source, [])
            for ticket in (step.begin, step.end):
                holders.setdefault(ticket, []).append((step.source, len(mine)))
            mine.append((place, step))
    total = 2 * sum(map(len, own.values()))
    missing = next((t for t in range(1, total + 1) if t not in holders), 0)
    if missing:
        suspects = [
            who for t, by in holders.items() if len(by) > 1 or not 1 <= t <= total for who in by
        ]
        source, i = next((w for w in suspects if _fits(own[w[0]], w[1], missing)), suspects[0])
        place, step = own[source][i]
        tickets = f"{step.begin} and {step.end}"
        return place, step, f"its tickets are {tickets}, and nobody has ticket {missing}", ()
    for mine in own.values():
        for i, ((_, a), (_, b)) in enumerate(itertools.pairwise(mine)):
            if not a.end < b.begin < b.end:
                place, step = mine[_astray(mine, i)]
                why = f"tickets {step.begin}-{step.end} are not where it stands on its CPU"
                return place, step, why, ()
    return None


def _astray(own: Merged, i: int) -> int:
    """Of the i-th step of this CPU and the next, whose tickets do not grow: which is astray?"""
    without_it = i == 0 or own[i - 1][1].end < own[i + 1][1].begin
    without_next = i + 2 >= len(own) or own[i][1].end < own[i + 2][1].begin
    return i if without_it and not without_next else i + 1


def _fits(own: Merged, i: int, ticket: int) -> bool:
    """Would `ticket` be right in the i-th step of this CPU, in place of one of its own?"""
    step = own[i][1]
    after = own[i - 1][1].end if i else 0
    until = own[i + 1][1].begin if i + 1 < len(own) else ticket + step.end
    return after < ticket < step.end < until or after < step.begin < ticket < until


# -- memory ---------------------------------------------------------------------------------------


def _by_memory(run: Recorded, merged: Merged, objects: dict[Key, list[Use]]) -> Found | None:
    """The first step that no order of the steps explains."""
    found: list[Found] = []
    places = {(step.source, step.number): place for place, step in merged}
    for key, used in objects.items():
        stuck = search(used, initial_value(key, run.pins, run.has_pi_sender))
        if stuck is not None:
            step = stuck.use.step
            said = " or ".join(map(said_result, stuck.possible))
            why = "no order of the steps that overlap explains it"
            why += f"; the model returns {said}" if said else ""
            found.append((places[step.source, step.number], step, why, key))
    for step, why in check_messages(step for _, step in merged).items():
        found.append((places[step.source, step.number], step, why, ()))
    return min(found, default=None, key=lambda one: one[0])


def _objects(merged: Merged) -> dict[Key, list[Use]]:
    """The uses of each object, by the ticket before them."""
    objects: dict[Key, list[Use]] = {}
    for _, step in merged:
        for use in uses(step):
            objects.setdefault(use.key, []).append(use)
    return objects


def _before(merged: Merged, place: Place, key: Key, around: int) -> tuple[Step, ...]:
    """The last steps up to the one at `place`: of the same object, or of the same CPU."""
    source = place[1]
    chosen = [
        other
        for at, other in merged
        if at <= place and (other.source == source or any(use.key == key for use in uses(other)))
    ]
    return tuple(chosen[-around:])
