"""The last words about a vCPU: its records as lines that a human reads.

Only for a violation's few lines; `report` has traces of whole runs.
Before: `account`, which knows where to look.  Next: the summary's `violations[].story`.
"""

from typing import Final

import numpy as np

from emulator.events import Event, Met
from emulator.measure.facts import RunFacts
from emulator.measure.records import Indices, Records

LINES_BEFORE: Final = 8  # of the record that matters
LINES_AFTER: Final = 4

_VERBS: Final = {
    Event.POST: "post",
    Event.POST_PIR_SET: "post, PIR was set",
    Event.ELIDE_ON: "elide: ON was set",
    Event.ELIDE_SAME_VCPU: "elide: same vCPU",
    Event.ELIDE_SN: "elide: SN is set",
    Event.NOTIFY: "notify",
    Event.WAKE: "wake",
    Event.NOT_BLOCKED: "no wake: not blocked",
    Event.KICK: "kick",
    Event.NOTIFY_DROPPED: "notify: refused",
    Event.ARRIVE: "arrive",
    Event.ARRIVE_MERGED: "arrive, merged",
    Event.SYNC: "sync",
    Event.DELIVER: "deliver",
    Event.EOI: "eoi",
    Event.SELF_IPI: "self-IPI, virtualized",
    Event.EXIT: "exit",
    Event.HALT: "halt",
    Event.HALT_POLL: "halt-poll",
    Event.SCHED_IN: "sched in",
    Event.SCHED_OUT: "sched out",
    Event.HOST_IRQ: "host irq",
    Event.VM_ENTRY: "entry",
    Event.RAISE: "raise",
    Event.LOST: "LOST",
}
_MET: Final = {
    Met.IN_GUEST: "in guest",
    Met.ROOT_RUNNABLE: "exited, runnable",
    Met.ROOT_BLOCKED: "exited, blocked",
    Met.OTHER_VCPU: "another vCPU",
}


def around(events: Records, facts: RunFacts, vcpu: int, at: int) -> list[str]:
    """What happened to `vcpu` before and after the record at position `at`."""
    mine = _of_vcpu(events, vcpu)
    place = int(np.flatnonzero(mine == at)[0])
    return _lines(events, facts, mine[max(place - LINES_BEFORE, 0) : place + 1 + LINES_AFTER])


def last_of(events: Records, facts: RunFacts, vcpu: int) -> list[str]:
    """The last things that happened to `vcpu`."""
    return _lines(events, facts, _of_vcpu(events, vcpu)[-(LINES_BEFORE + LINES_AFTER) :])


def _of_vcpu(events: Records, vcpu: int) -> Indices:
    mine = np.flatnonzero((events["vcpu"] == vcpu) & (events["kind"] != Event.LATE))
    return mine[np.argsort(events["ts"][mine], kind="stable")].astype(np.int64)


def _lines(events: Records, facts: RunFacts, index: Indices) -> list[str]:
    start_ns = int(events["ts"].min()) if len(events) else 0
    return [_line(events[at], facts, start_ns) for at in index.tolist()]


def _line(record: np.void, facts: RunFacts, start_ns: int) -> str:
    ts, kind, load = int(record["ts"]), int(record["kind"]), int(record["load"])
    vector = int(record["vector"])
    words = [_verb(record, kind)]
    if vector:
        words.append(f"{vector:#04x}")
    words.append(f"[{facts.vcpu_name(int(record['vcpu']))}]")
    if 0 < load <= len(facts.loads):
        words.append(f"({facts.loads[load - 1].name})")
    seconds = (ts - start_ns) / 1e9
    return f"{seconds:13.9f}  {facts.pcpu_name(int(record['pcpu'])):<9} {' '.join(words)}"


def _verb(record: np.void, kind: int) -> str:
    if kind == Event.ACCEPT:
        met = int(record["arg"])
        return f"accept: {_MET[Met(met)] if met in _MET else met}"
    return _VERBS[Event(kind)] if kind in _VERBS else f"event {kind}"
