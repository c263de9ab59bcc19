"""The conservation law: nothing posted may vanish, nothing may be delivered that nobody posted.

For every vCPU and vector: posted = delivered + coalesced + pending.  It is checked leg by leg, so
that a difference names the place where it arose:

    posted-harvested     PIR bits set = harvested + still set at the end
    harvested-delivered  harvested, VIRR not set before = delivered + still in VIRR
    delivered-eoi        delivered = ended, or one more: in service at the end
    post-decided         every POST was notified, elided or woken for, or found its vCPU awake
    sent-arrived         messages sent = arrived + refused + under way at the end
    arrived-accepted     notifications set in a local APIC = taken + at most one pending
    lost-wakeup          nobody sleeps over announced work with nobody on the way
    lost-interrupt       nobody runs on past announced work with nobody on the way

A run that breaks one has failed, however fast it was.  Records dropped by the rings make the
account void, not the run wrong: then it says "not checked", and why.
Before: `chains`.  Next: `summary`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from emulator.events import Event
from emulator.hardware.vectors import POSTED_INTR_VECTOR
from emulator.measure.chains import SYNC_FOUND_VIRR_SET, Chains, Messages, bit_key
from emulator.measure.facts import RunFacts
from emulator.measure.records import Indices, Records, positions
from emulator.measure.story import around, last_of

_NONE: Final = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Account:
    """What was counted, and what is wrong with it."""

    checked: bool
    why: str  # it was not checked
    rows: list[dict[str, Any]]  # one a vCPU and vector
    inverted: int  # posts stamped after their own harvest
    violations: list[dict[str, Any]]

    def total(self, column: str) -> int:
        return sum(row[column] for row in self.rows)


def balance(events: Records, chains: Chains, messages: Messages, facts: RunFacts) -> Account:
    """Count every vCPU's vectors and check the law."""
    lost = _lost_chains(events, chains, messages, facts)
    rows = _rows(events, facts, lost)
    why = _why_not(facts)
    violations = _losses(events, facts, lost)
    known = {_which(found) for found in violations}
    violations += [dict(found) for found in facts.violations if _which(found) not in known]
    if not why:
        violations += _broken_rows(events, facts, rows)
        violations += _undecided(events, facts, chains)
        violations += _transport(events, facts)
    late = (chains.sync >= 0) & (
        events["ts"][chains.post] > events["ts"][np.maximum(chains.sync, 0)]
    )
    return Account(not why, why, rows, int(late.sum()), violations)


def _why_not(facts: RunFacts) -> str:
    if facts.dropped:
        return f"{facts.dropped} events dropped"
    if facts.status == "died":
        return "a process died"
    if "vcpus" not in facts.counters:
        return "the state at the end is not known"
    return ""


def _rows(
    events: Records, facts: RunFacts, lost: dict[tuple[int, int], Indices]
) -> list[dict[str, Any]]:
    """The counts of every vCPU and vector that had any."""
    syncs = positions(events, Event.SYNC)
    merged = syncs[(events["arg"][syncs] & SYNC_FOUND_VIRR_SET) != 0]
    self_ipis = positions(events, Event.SELF_IPI)
    columns = {
        "won": positions(events, Event.POST),
        "elided_pir": positions(events, Event.POST_PIR_SET),
        "synced": syncs,
        "merged": merged,
        "self_ipi": self_ipis,
        "self_merged": self_ipis[events["ref"][self_ipis] != 0],
        "delivered": positions(events, Event.DELIVER),
        "ended": positions(events, Event.EOI),
    }
    keyed = {name: bit_key(events, index) for name, index in columns.items()}
    keyed["in_pir"] = _pending(facts, "pir_pending")
    keyed["in_virr"] = _pending(facts, "virr_pending")
    keys = np.unique(np.concatenate([*keyed.values(), _NONE]))
    # A key a count: searching the keys in the sorted column costs less than a table of all bits.
    counted = {name: _count(keys, column) for name, column in keyed.items()}
    rows = []
    for i, key in enumerate(keys.tolist()):
        vcpu, vector = key >> 8, key & 0xFF
        row = {name: int(column[i]) for name, column in counted.items()}
        row["posted"] = row["won"] + row["elided_pir"] + row["self_ipi"]
        row["coalesced"] = row["elided_pir"] + row["merged"] + row["self_merged"]
        row["pending"] = row["in_pir"] + row["in_virr"]
        row["difference"] = row["posted"] - row["delivered"] - row["coalesced"] - row["pending"]
        row["lost"] = len(lost.get((vcpu, vector), _NONE))
        rows.append({"vcpu": facts.vcpu_name(vcpu), "vcpu_index": vcpu, "vector": vector, **row})
    return rows


def _count(keys: Indices, column: Indices) -> Indices:
    column = np.sort(column)
    return np.searchsorted(column, keys, side="right") - np.searchsorted(column, keys)


def _pending(facts: RunFacts, name: str) -> Indices:
    keys = [
        vcpu << 8 | vector
        for vcpu, state in enumerate(facts.counters.get("vcpus", ()))
        for vector in state.get(name, ())
    ]
    return np.array(keys, dtype=np.int64)


def _lost_chains(
    events: Records, chains: Chains, messages: Messages, facts: RunFacts
) -> dict[tuple[int, int], Indices]:
    """(vCPU, vector) -> the posts whose wake-up was lost: seen by the watchdog, or stranded at
    the end.  One stall that the watchdog reports again and again is one loss.
    """
    suspects: dict[tuple[int, int], list[int]] = {}  # not posted later than these times
    end_ns = int(events["ts"].max()) if len(events) else 0
    states = list(facts.counters.get("vcpus", ()))
    for at in positions(events, Event.LOST).tolist():
        vcpu, vector, ts = (int(events[name][at]) for name in ("vcpu", "vector", "ts"))
        pending = states[vcpu].get("pir_pending", ()) if vcpu < len(states) else ()
        for v in [vector] if vector else pending or [0]:
            suspects.setdefault((vcpu, v), []).append(ts)
    for vcpu in _stranded(messages, events, facts):
        for vector in states[vcpu]["pir_pending"]:
            suspects.setdefault((vcpu, vector), []).append(end_ns)

    key = bit_key(events, chains.post)
    lost = {}
    for (vcpu, vector), times in suspects.items():
        mine = chains.post[key == vcpu << 8 | vector]  # in the order of posting
        place = np.searchsorted(events["ts"][mine], np.array(times, dtype=np.uint64), side="right")
        # The last one posted by then is the one that waits; -1 where its record is missing.
        lost[vcpu, vector] = np.concatenate([[-1], mine])[np.unique(place)]
    return lost


def _stranded(messages: Messages, events: Records, facts: RunFacts) -> list[int]:
    """Who sleeps at the end with ON set and PIR bits, and with no notification on the way."""
    if facts.status == "died":
        return []  # whoever was about to wake them has died: the run says that already
    if facts.dropped and _under_way(facts):
        return []  # whom a message under way is meant for is not known
    arrived = messages.arrive >= 0
    merged = arrived & (events["kind"][messages.arrive] == Event.ARRIVE_MERGED)
    done = (messages.accept >= 0) | merged | messages.dropped
    coming = set(events["vcpu"][messages.notify[~done]].tolist()) if not facts.dropped else set()
    return [
        vcpu
        for vcpu, state in enumerate(facts.counters.get("vcpus", ()))
        if state.get("blocked") and state.get("on") and state.get("pir_pending")
        if vcpu not in coming
    ]


def _losses(
    events: Records, facts: RunFacts, lost: dict[tuple[int, int], Indices]
) -> list[dict[str, Any]]:
    """One a vCPU and vector.  Awake over the set bit: no sleeper was forgotten, a notification
    was.
    """
    found = []
    states = list(facts.counters.get("vcpus", ()))
    watched = events[positions(events, Event.LOST)]
    seen_awake = {(int(r["vcpu"]), int(r["vector"])) for r in watched if r["ref"]}
    for (vcpu, vector), posts in sorted(lost.items()):
        name = facts.vcpu_name(vcpu)
        times = "" if len(posts) == 1 else f" ({len(posts)} times)"
        state = states[vcpu] if vcpu < len(states) else {}
        left_awake = vector in state.get("pir_pending", ()) and not state.get("blocked")
        awake = left_awake or (vcpu, vector) in seen_awake
        invariant = "lost-interrupt" if awake else "lost-wakeup"
        does, missed = ("runs", "notified") if awake else ("slept", "woke")
        text = f"{name} {does} over vector {vector:#04x}: posted, and nobody {missed} it{times}"
        first = int(posts[0])
        story = around(events, facts, vcpu, first) if first >= 0 else last_of(events, facts, vcpu)
        found.append(_violation(invariant, name, vector, text, story))
    return found


def _broken_rows(
    events: Records, facts: RunFacts, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The three legs of a vector's way that a row can show."""
    found = []
    for row in rows:
        own = row["synced"] - row["merged"] + row["self_ipi"] - row["self_merged"]
        in_service = row["delivered"] - row["ended"]
        legs = [
            (
                "posted-harvested",
                row["won"] == row["synced"] + row["in_pir"],
                f"{row['won']} PIR bits set, {row['synced']} harvested, {row['in_pir']} still set",
            ),
            (
                "harvested-delivered",
                own == row["delivered"] + row["in_virr"],
                f"{own} put into VIRR, {row['delivered']} delivered, {row['in_virr']} still there",
            ),
            (
                "delivered-eoi",
                0 <= in_service <= 1,
                f"{row['delivered']} delivered, {row['ended']} ended by EOI",
            ),
        ]
        for invariant, holds, counted in legs:
            if not holds:
                name, vector = row["vcpu"], row["vector"]
                story = last_of(events, facts, row["vcpu_index"])
                text = f"{name} vector {vector:#04x}: {counted}"
                found.append(_violation(invariant, name, vector, text, story))
    return found


def _undecided(events: Records, facts: RunFacts, chains: Chains) -> list[dict[str, Any]]:
    left = chains.post[chains.decision < 0]
    found = []
    for key, first, n in zip(*_grouped(bit_key(events, left)), strict=True):
        vcpu, vector = key >> 8, key & 0xFF
        name = facts.vcpu_name(vcpu)
        text = f"{name} vector {vector:#04x}: {n} posts without a decision to notify, elide or wake"
        story = around(events, facts, vcpu, int(left[first]))
        found.append(_violation("post-decided", name, vector, text, story))
    return found


def _transport(events: Records, facts: RunFacts) -> list[dict[str, Any]]:
    """Messages: none may vanish on the way, none appear, and a local APIC holds one a vector."""
    found = []
    sent = _numbered(events, Event.NOTIFY, Event.RAISE)
    arrived = _numbered(events, Event.ARRIVE, Event.ARRIVE_MERGED)
    refused = _numbered(events, Event.NOTIFY_DROPPED)
    numbers, came = events["ref"][sent], events["ref"][arrived]
    missing = sent[~np.isin(numbers, came) & ~np.isin(numbers, events["ref"][refused])]
    under_way = _under_way(facts)
    if len(missing) > under_way:
        text = f"{len(missing)} messages never arrived, {under_way} were under way at the end"
        found.append(_message_violation(events, facts, "sent-arrived", text, missing))
    unsent = arrived[~np.isin(came, numbers)]
    if len(unsent):
        text = f"{len(unsent)} messages arrived that nobody sent"
        found.append(_message_violation(events, facts, "sent-arrived", text, unsent))
    twice = arrived[np.sort(_repeats(came))]
    if len(twice):
        text = f"{len(twice)} messages arrived more than once"
        found.append(_message_violation(events, facts, "sent-arrived", text, twice))

    # What a host's handler takes has no ACCEPT of its own, but for the protocol's vector.
    pins = events["vector"] == POSTED_INTR_VECTOR
    folded, taken = (
        events["pcpu"][pins & (events["kind"] == kind)] for kind in (Event.ARRIVE, Event.ACCEPT)
    )
    for pcpu in np.unique(np.concatenate([folded, taken])).tolist():
        bits, accepts = int((folded == pcpu).sum()), int((taken == pcpu).sum())
        if not 0 <= bits - accepts <= 1:
            text = (
                f"{facts.pcpu_name(pcpu)}: {bits} times set in its IRR, {accepts} times taken: "
                f"vector {POSTED_INTR_VECTOR:#04x}"
            )
            found.append(_violation("arrived-accepted", "-", POSTED_INTR_VECTOR, text, []))
    return found


def _under_way(facts: RunFacts) -> int:
    """Messages that were sent and not taken from the transport when the run was closed."""
    counted = facts.counters
    unread = int(counted.get("sent", 0)) - int(counted.get("arrived", 0))
    return max(int(counted.get("in_flight", 0)), unread)


def _numbered(events: Records, *kinds: Event) -> Indices:
    index = positions(events, *kinds)
    # 0: local, no message (a timer of this pCPU)
    numbered: Indices = index[events["ref"][index] != 0]
    return numbered


def _repeats(values: Records) -> Indices:
    """Where a value stands that stood before."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    again: Indices = order[1:][ordered[1:] == ordered[:-1]]
    return again


def _message_violation(
    events: Records, facts: RunFacts, invariant: str, text: str, messages: Indices
) -> dict[str, Any]:
    first = int(messages[0])
    vcpu, vector = int(events["vcpu"][first]), int(events["vector"][first])
    name = facts.vcpu_name(vcpu)
    whom = f"{text}; the first: vector {vector:#04x}, meant for {name}"
    return _violation(invariant, name, vector, whom, around(events, facts, vcpu, first))


def _grouped(keys: Indices) -> tuple[list[int], list[int], list[int]]:
    """Distinct keys, where each first stands, how often."""
    unique, first, count = np.unique(keys, return_index=True, return_counts=True)
    return unique.tolist(), first.tolist(), count.tolist()


def _which(violation: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return violation["invariant"], violation["vcpu"], violation["vector"]


def _violation(
    invariant: str, vcpu: str, vector: int, text: str, story: list[str]
) -> dict[str, Any]:
    return {
        "invariant": invariant,
        "vcpu": vcpu,
        "vector": vector,
        "text": text,
        "story": story,
    }
