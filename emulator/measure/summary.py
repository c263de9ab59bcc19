"""A run as one object: the schema `pirlab-run/1` that scripts and `report` read.

Everything in it is derived from records and facts; every key exists always, and what was not
measured is null or 0, never missing.
Before: `account`, `stages`.  Next: `report`, or a program that reads `run --json`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from emulator.events import Event, Met
from emulator.hardware.vectors import RESCHEDULE_VECTOR, ExitReason
from emulator.measure.account import Account, balance
from emulator.measure.chains import Chains, Messages, match_chains, match_messages
from emulator.measure.facts import RunFacts, read_facts
from emulator.measure.histogram import log2_histogram
from emulator.measure.records import Flags, Records, is_notification, positions, read_events
from emulator.measure.stages import measured, quantiles, stage_samples

EVENTS_FILE: Final = "events.bin"
_POSTS: Final = (Event.POST, Event.POST_PIR_SET, Event.SELF_IPI)
# Host handlers by their rows of /proc/interrupts, and devices in remapped mode.
HOST_IRQS: Final = ("pin", "npi", "piw", "res", "loc", "device")
LOAD_STAGES: Final = ("due_to_deliver", "post_to_deliver")  # shown for every load by itself


def load_run(run_dir: Path | str) -> tuple[Records, RunFacts]:
    """A saved run's records and facts.  Raises OSError where they are missing."""
    return read_events(Path(run_dir, EVENTS_FILE)), read_facts(run_dir)


def summarise(events: Records, facts: RunFacts) -> dict[str, Any]:
    """The whole `pirlab-run/1` object: plain data, ready for JSON."""
    chains = match_chains(events, whole=facts.dropped == 0)
    messages = match_messages(events, chains)
    account = balance(events, chains, messages, facts)
    inside = measured(events, facts)
    samples = stage_samples(events, chains, messages, inside)
    floor = quantiles(np.array(facts.floor_ns, dtype=np.int64))
    summary = {
        "schema": "pirlab-run/1",
        "name": facts.name,
        "question": facts.question,
        "run_dir": facts.run_dir,
        "status": facts.status,
        "verdict": "ok",
        "seconds": facts.seconds,
        "seed": facts.seed,
        "rule": facts.rule,
        "set": dict(facts.cell),
        "host": dict(facts.host),
        "counts": _counts(events, chains, messages, account, facts),
        "latency": {stage: quantiles(of) for stage, of in samples.items()},
        "histogram": {"post_to_deliver": log2_histogram(samples["post_to_deliver"])},
        "floor": {
            "notify_p50_ns": floor["p50_ns"],
            "notify_p99_ns": floor["p99_ns"],
            "n": floor["n"],
        },
        "loads": _loads(events, chains, messages, inside, facts),
        "expect": [],
        "account": {
            "checked": account.checked,
            "why": account.why,
            "inverted": account.inverted,
            "rows": account.rows,
        },
        "violations": account.violations,
        "recorder": {"events": len(events), "dropped": facts.dropped},
    }
    return judge(summary, facts.expect)


def judge(summary: Mapping[str, Any], expect: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary with these expectations ({check, held, value}) and the verdict that follows."""
    expected = [dict(one) for one in expect]
    verdict = "ok"
    if any(one["held"] is False for one in expected):
        verdict = "expect-failed"
    if summary["violations"]:
        verdict = "violated"
    return {**summary, "expect": expected, "verdict": verdict}


def matrix(
    runs: Sequence[Mapping[str, Any]], *, name: str = "", question: str = ""
) -> dict[str, Any]:
    """The schema `pirlab-matrix/1`: one cell a run, `set` first."""
    return {
        "schema": "pirlab-matrix/1",
        "name": name or (runs[0]["name"] if runs else ""),
        "question": question or (runs[0]["question"] if runs else ""),
        "cells": [{"set": run["set"], **run} for run in runs],
    }


def _counts(
    events: Records, chains: Chains, messages: Messages, account: Account, facts: RunFacts
) -> dict[str, Any]:
    pcpus = facts.counters.get("pcpus", ())

    def counted(name: str) -> int:
        return sum(int(pcpu.get(name, 0)) for pcpu in pcpus)

    return {
        "posted": account.total("posted"),
        "delivered": account.total("delivered"),
        "coalesced": account.total("coalesced"),
        "pending": account.total("pending"),
        "lost": account.total("lost"),
        "notify": _notify(events, chains, messages, account),
        "arrive": _arrive(events),
        "exits": _exits(events, pcpus),
        "halts": _number_of(events, Event.HALT),
        "wakeups": counted("halt_wakeup") or _number_of(events, Event.WAKE),
        "halt_poll": {
            "attempted": counted("halt_attempted_poll"),
            "successful": counted("halt_successful_poll"),
            "success_ns": counted("halt_poll_success_ns"),
            "fail_ns": counted("halt_poll_fail_ns"),
            "wait_ns": counted("halt_wait_ns"),
        },
        "syncs": {"on": counted("syncs_on"), "off": counted("syncs_off")},
        "fastpath_reenter": counted("fastpath_reenter"),
        "host_irqs": {name: counted(f"irq_{name}") for name in HOST_IRQS},
    }


def _number_of(events: Records, *kinds: Event) -> int:
    return len(positions(events, *kinds))


def _notify(
    events: Records, chains: Chains, messages: Messages, account: Account
) -> dict[str, int]:
    """What became of the notifications: one decision a POST, and what was sent besides.

    `sent` is every message with a vector of the protocol.  `sent_without_post` are those among
    them that no POST's decision sent: a wake-up vector at sched-out, or a hardware sender that
    found its PIR bit set (it decides about ON all the same).  `kicked` is no decision but comes
    on top of one, in the eras before v5.17 and from timers.
    """
    decided = events["kind"][chains.decision[chains.decision >= 0]]
    ours = is_notification(events[messages.notify])
    gone = ours & messages.dropped
    reschedules = events["vector"][messages.notify] == RESCHEDULE_VECTOR

    def decision(kind: Event) -> int:
        return int((decided == kind).sum())

    return {
        "sent": int((ours & ~gone).sum()),
        "elided_pir": account.total("elided_pir"),
        "elided_on": decision(Event.ELIDE_ON),
        "elided_same_vcpu": decision(Event.ELIDE_SAME_VCPU),
        "elided_sn": decision(Event.ELIDE_SN),
        "woke": decision(Event.WAKE),
        "not_blocked": decision(Event.NOT_BLOCKED),
        "kicked": _number_of(events, Event.KICK),
        "dropped": _number_of(events, Event.NOTIFY_DROPPED),
        "sent_without_post": int((ours & ~gone & (messages.post < 0)).sum()),
        "reschedule_ipis": int(reschedules.sum()),
    }


def _arrive(events: Records) -> dict[str, int]:
    """Every notification by what it met: the three cases of the patch's comment, and two more."""
    accepts = events[positions(events, Event.ACCEPT)]
    met = accepts["arg"][is_notification(accepts)]
    merged = events[positions(events, Event.ARRIVE_MERGED)]
    return {
        "in_guest": int((met == Met.IN_GUEST).sum()),
        "root_runnable": int((met == Met.ROOT_RUNNABLE).sum()),
        "root_blocked": int((met == Met.ROOT_BLOCKED).sum()),
        "other_vcpu": int((met == Met.OTHER_VCPU).sum()),
        "merged": int(is_notification(merged).sum()),
    }


def _exits(events: Records, pcpus: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """VM exits by name: from the pCPUs' counters, which miss nothing, else from the records."""
    counted: dict[str, int] = {}
    for pcpu in pcpus:
        for reason, n in pcpu.get("exits", {}).items():
            counted[_reason(reason)] = counted.get(_reason(reason), 0) + int(n)
    if not counted:
        reasons = events["ref"][positions(events, Event.EXIT)]
        for reason, n in zip(*np.unique(reasons, return_counts=True), strict=True):
            counted[_reason(str(int(reason)))] = int(n)
    return dict(sorted(counted.items()))


def _reason(reason: str) -> str:
    if not reason.isdigit():
        return reason
    known = {member.value: member.name for member in ExitReason}
    return known.get(int(reason), f"EXIT_{reason}")


def _loads(
    events: Records, chains: Chains, messages: Messages, inside: Flags, facts: RunFacts
) -> dict[str, Any]:
    """By the name in the config: what each load asked for and what it got."""
    if facts.measure_to_ns:
        seconds = (facts.measure_to_ns - facts.measure_from_ns) / 1e9
    else:
        seconds = facts.seconds
    # Every child of one config entry counts for it: `from: each-vcpu` is one load to its author.
    parents = list(dict.fromkeys(load.parent for load in facts.loads))
    row_of = np.zeros(np.iinfo(np.uint16).max + 1, dtype=np.int64)  # by `load`; 0: none of ours
    row_of[1 : len(facts.loads) + 1] = [1 + parents.index(load.parent) for load in facts.loads]

    def per_row(flags: Flags, *kinds: Event) -> list[int]:
        of = np.isin(events["kind"], kinds) & flags
        rows = np.bincount(row_of[events["load"][of]], minlength=len(parents) + 1)
        return [int(n) for n in rows]

    everywhere = np.ones(len(events), dtype=np.bool_)
    posted = per_row(everywhere, *_POSTS)
    raised = per_row(everywhere, Event.RAISE)
    late = per_row(everywhere, Event.LATE)
    posts_inside = per_row(inside, *_POSTS)
    raises_inside = per_row(inside, Event.RAISE)

    loads = {}
    for row, parent in enumerate(parents, start=1):
        wanted = [load.rate_wanted_per_s for load in facts.loads if load.parent == parent]
        # A device's interrupts may merge in the host's local APIC before anybody posts: what the
        # load reached is what it raised.
        done = raises_inside[row] if raised[row] else posts_inside[row]
        own = row_of[events["load"][chains.post]] == row
        samples = stage_samples(events, chains.pick(own), messages, inside)
        loads[parent] = {
            "posted": posted[row],
            "raised": raised[row],
            "late": late[row],
            "rate_wanted": None if None in wanted else sum(rate or 0 for rate in wanted),
            "rate_reached": done / seconds if seconds > 0 else None,
            "latency": {stage: quantiles(samples[stage]) for stage in LOAD_STAGES},
        }
    return loads
