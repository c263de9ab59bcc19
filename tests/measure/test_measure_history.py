"""Any valid history balances, and its latencies are those that the simulator lived through."""

import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from measure_stream import History

from emulator.events import Event
from emulator.measure.chains import match_chains, match_messages
from emulator.measure.stages import measured, stage_samples
from emulator.measure.summary import summarise

quick = settings(max_examples=60, deadline=None)
# A seed and a length: what a failure prints is all that it takes to play it again.
seeds = st.integers(0, 2**32)
lengths = st.integers(0, 250)
histories = st.builds(lambda seed, steps: History(random.Random(seed), steps), seeds, lengths)


def samples_of(history, facts, events):
    chains = match_chains(events, whole=True)
    inside = measured(events, facts)
    samples = stage_samples(events, chains, match_messages(events, chains), inside)
    return {stage: of.tolist() for stage, of in samples.items()}


@quick
@given(histories, st.integers(1, 40))
def test_every_valid_history_balances_however_its_chunks_interleave(history, chunk):
    summary = summarise(history.stream.events(lambda: chunk), history.facts())
    assert summary["violations"] == []
    assert summary["account"]["checked"]
    assert summary["account"]["inverted"] == 0
    counts = summary["counts"]
    assert counts["posted"] == counts["delivered"] + counts["coalesced"] + counts["pending"]
    posted = len(history.posts) + history.counts["pir_set"] + history.counts["self_ipis"]
    assert counts["posted"] == posted
    assert counts["delivered"] == history.counts["delivered"]
    merged = sum(history.counts[name] for name in ("pir_set", "merged_syncs", "self_merged"))
    assert counts["coalesced"] == merged
    assert all(row["difference"] == 0 for row in summary["account"]["rows"])
    assert counts["arrive"]["merged"] == history.counts["merged"]
    arrived = sum(counts["arrive"].values())
    assert counts["notify"]["sent"] == arrived + len(history.wire) + len(history.irr)
    json.dumps(summary)


@quick
@given(histories)
def test_every_post_is_decided_once_and_a_stray_wake_belongs_to_none(history):
    notify = summarise(history.stream.events(), history.facts())["counts"]["notify"]
    truth = history.decisions
    assert notify["sent"] == truth.get(Event.NOTIFY, 0)
    assert notify["sent_without_post"] == 0
    assert notify["elided_on"] == truth.get(Event.ELIDE_ON, 0)
    assert notify["elided_same_vcpu"] == truth.get(Event.ELIDE_SAME_VCPU, 0)
    decided = [notify[k] for k in ("sent", "elided_on", "elided_same_vcpu", "woke", "not_blocked")]
    assert sum(decided) == len(history.posts)


@quick
@given(histories, st.integers(1, 40))
def test_latencies_are_the_simulators_truth(history, chunk):
    events, facts = history.stream.events(lambda: chunk), history.facts()
    samples = samples_of(history, facts, events)
    assert samples["due_to_post"] == history.spans("due", "post")
    assert samples["post_to_sync"] == history.spans("post", "sync")
    assert samples["sync_to_deliver"] == history.spans("sync", "deliver")
    assert samples["post_to_deliver"] == history.spans("post", "deliver")
    assert samples["due_to_deliver"] == history.spans("due", "deliver")
    assert samples["deliver_to_eoi"] == history.spans("deliver", "eoi")
    sent = sorted(history.messages, key=lambda m: m["begin"])
    assert samples["send"] == [m["end"] - m["begin"] for m in sent]
    arrived = [m["arrive"] - m["begin"] for m in sent if "arrive" in m]
    assert samples["notify_to_arrive"] == arrived


@quick
@given(histories)
def test_a_post_to_itself_is_one_by_the_delivering_pcpu_that_was_elided_or_notified(history):
    samples = samples_of(history, history.facts(), history.stream.events())

    def to_itself(post):
        told = post["decision"] in (Event.ELIDE_SAME_VCPU, Event.NOTIFY)
        return told and post["pcpu"] == post["delivered_on"]

    assert samples["self_post_to_deliver"] == history.spans("post", "deliver", to_itself)


@quick
@given(histories, st.integers(0, 60_000), st.integers(1, 60_000))
def test_the_measured_part_holds_the_posts_made_in_it_and_counts_hold_everything(
    history, begin, length
):
    facts = history.facts(measure_from_ns=begin, measure_to_ns=begin + length)
    events = history.stream.events()
    samples = samples_of(history, facts, events)
    truth = history.spans("post", "deliver", lambda p: begin <= p["post"] < begin + length)
    assert samples["post_to_deliver"] == truth
    assert summarise(events, facts)["counts"]["delivered"] == history.counts["delivered"]


@quick
@given(histories, st.integers(0, 2**32))
def test_an_account_with_a_record_missing_is_never_called_balanced(history, at):
    """Any one record of a vector's way: its loss is seen when nobody admits that it was dropped."""
    events = history.stream.events()
    way = (Event.POST, Event.SYNC, Event.DELIVER)
    which = [i for i, kind in enumerate(events["kind"]) if kind in way]
    if not which:
        return
    torn = [i for i in range(len(events)) if i != which[at % len(which)]]
    assert summarise(events[torn], history.facts())["verdict"] == "violated"
    admitted = summarise(events[torn], history.facts(dropped=1))
    assert admitted["verdict"] == "ok"
    assert admitted["account"]["why"] == "1 events dropped"
