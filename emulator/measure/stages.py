"""The stages of an interrupt's way, and how long each took.

`STAGES` is the one table of them: the keys of the summary's `latency`, in the order of the walk.
A latency belongs to the run if its POST lies in the measured part; warm-up and drain are counted
(see `account`) and not timed.  A post that found its PIR bit set has no latency of its own.
Before: `chains`.  Next: `summary`.
"""

from typing import Any, Final

import numpy as np

from emulator.events import Event
from emulator.measure.chains import Chains, Messages, match_chains, match_messages
from emulator.measure.facts import RunFacts
from emulator.measure.records import Flags, Indices, Records, Samples, Times, is_notification

STAGES: Final = {
    "due_to_post": "the load asked for it -> its PIR bit is set (how late the sender was)",
    "post_to_notify": "PIR bit set -> the sender begins to send the notification",
    "send": "the sender's own cost of one notification: send begins -> send returns",
    "notify_to_arrive": "send begins -> folded into the target's local APIC",
    "arrive_to_accept": "in the local APIC -> taken: interrupts were on, or the guest ran",
    "post_to_sync": "PIR bit set -> harvested into VIRR",
    "sync_to_deliver": "in VIRR -> the guest's handler starts",
    "deliver_to_eoi": "the guest's handler starts -> its EOI",
    "post_to_deliver": "PIR bit set -> the guest's handler starts (service time)",
    "due_to_deliver": "the load asked for it -> the guest's handler starts (open loop)",
    "remote_post_to_deliver": "as post_to_deliver, posted on another pCPU than it was delivered on",
    "wake_to_deliver": "the sleeping vCPU is woken for it -> the guest's handler starts",
    "self_post_to_sync": "as post_to_sync, of a vCPU's post to itself",
    "self_sync_to_deliver": "as sync_to_deliver, of a vCPU's post to itself",
    "self_post_to_deliver": "as post_to_deliver, of a vCPU's post to itself",
}
# A percentile is shown when at least this many samples lie beyond it.
SAMPLES_BEYOND: Final = 10
_QUANTILES: Final = (("p50_ns", 500), ("p90_ns", 900), ("p99_ns", 990), ("p999_ns", 999))


def latencies(events: Records, facts: RunFacts) -> dict[str, Samples]:
    """Samples of every stage in ns, in the order of posting, from the records alone."""
    chains = match_chains(events, whole=facts.dropped == 0)
    messages = match_messages(events, chains)
    return stage_samples(events, chains, messages, measured(events, facts))


def measured(events: Records, facts: RunFacts) -> Flags:
    """Which records lie in the measured part of the run."""
    if not facts.measure_to_ns:
        return np.ones(len(events), dtype=np.bool_)
    ts = events["ts"]
    inside: Flags = (ts >= facts.measure_from_ns) & (ts < facts.measure_to_ns)
    return inside


def stage_samples(
    events: Records, chains: Chains, messages: Messages, inside: Flags
) -> dict[str, Samples]:
    """The stages of `STAGES`, each of the chains whose POST is `inside`."""
    of = chains.pick(inside[chains.post])
    # A guest program's own posts have no due time.
    due = np.where(events["arg"][of.post] > 0, of.post, -1)
    decided = np.where(of.decision < 0, 0, events["kind"][of.decision])
    woken = np.where(decided == Event.WAKE, of.decision, -1)
    notified = np.where(decided == Event.NOTIFY, of.decision, -1)
    own = of.pick(posted_to_itself(events, of.post, of.deliver, decided))
    remote = of.pick(events["pcpu"][of.post] != events["pcpu"][of.deliver])

    sent_for = np.where(messages.post < 0, messages.notify, messages.post)
    ours = inside[sent_for] & is_notification(events[messages.notify]) & ~messages.dropped
    notify, arrive, accept = (
        column[ours] for column in (messages.notify, messages.arrive, messages.accept)
    )

    ts, arg = events["ts"], events["arg"]  # arg: POST's due time, NOTIFY's end
    spans = {
        "due_to_post": _spans(arg, due, ts, of.post),
        "post_to_notify": _spans(ts, of.post, ts, notified),
        "send": _spans(ts, notify, arg, notify),
        "notify_to_arrive": _spans(ts, notify, ts, arrive),
        "arrive_to_accept": _spans(ts, arrive, ts, accept),
        "post_to_sync": _spans(ts, of.post, ts, of.sync),
        "sync_to_deliver": _spans(ts, of.sync, ts, of.deliver),
        "deliver_to_eoi": _spans(ts, of.deliver, ts, of.eoi),
        "post_to_deliver": _spans(ts, of.post, ts, of.deliver),
        "due_to_deliver": _spans(arg, due, ts, of.deliver),
        "remote_post_to_deliver": _spans(ts, remote.post, ts, remote.deliver),
        "wake_to_deliver": _spans(ts, woken, ts, of.deliver),
        "self_post_to_sync": _spans(ts, own.post, ts, own.sync),
        "self_sync_to_deliver": _spans(ts, own.sync, ts, own.deliver),
        "self_post_to_deliver": _spans(ts, own.post, ts, own.deliver),
    }
    assert spans.keys() == STAGES.keys()
    return spans


def posted_to_itself(events: Records, post: Indices, deliver: Indices, decided: Indices) -> Flags:
    """Posts by the target's own pCPU in guest mode: the path that the same-vCPU test shortens.

    Under a rule without the test they are notified instead of elided; both count, so that the
    rules can be compared.  An interrupt handler's posts (woken, not blocked) are not among them.
    """
    here = events["pcpu"][post] == events["pcpu"][deliver]
    told = np.isin(decided, (Event.ELIDE_SAME_VCPU, Event.NOTIFY))
    flags: Flags = (deliver >= 0) & here & told
    return flags


def quantiles(samples: Samples) -> dict[str, Any]:
    """{n, p50_ns, p90_ns, p99_ns, p999_ns, max_ns}; None where too few samples lie beyond.

    A percentile is a sample (the smallest with that share at or below it), the maximum is exact.
    """
    n = len(samples)
    shown = [q for _, q in _QUANTILES if n * (1000 - q) >= SAMPLES_BEYOND * 1000]
    values = np.quantile(samples, [q / 1000 for q in shown], method="inverted_cdf") if shown else ()
    by_quantile = dict(zip(shown, values, strict=True))
    result: dict[str, Any] = {"n": n}
    for name, q in _QUANTILES:
        result[name] = int(by_quantile[q]) if q in by_quantile else None
    result["max_ns"] = int(samples.max()) if n else None
    return result


def _spans(begins: Times, begin: Indices, ends: Times, end: Indices) -> Samples:
    """From begin to end in ns, where both are there.

    Not below 0: a poster that lost its CPU between the locked instruction and the look at the
    clock stamps its post after the harvest (`account.inverted` counts those).
    """
    both = (begin >= 0) & (end >= 0)
    from_ns, to_ns = begins[begin[both]].astype(np.int64), ends[end[both]].astype(np.int64)
    spans: Samples = np.maximum(to_ns - from_ns, 0)
    return spans
