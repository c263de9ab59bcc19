"""Hand-made streams: exact counts and legs, coalescing, percentiles, loads, the contract's keys."""

import json

import numpy as np
import pytest
from measure_stream import PIN, Stream, facts, whole_way

from emulator.events import DEVICE_BASE, NO_VCPU, Event, Met
from emulator.measure.facts import RunFacts, read_facts, write_facts
from emulator.measure.records import read_events
from emulator.measure.stages import STAGES, latencies, quantiles
from emulator.measure.summary import judge, load_run, matrix, summarise


def one_way(**changes):
    stream = Stream()
    whole_way(stream, 1_000, **changes)
    return stream


def test_every_leg_of_one_interrupt_is_measured_exactly():
    samples = latencies(one_way().events(), facts())
    assert {stage: of.tolist() for stage, of in samples.items()} == {
        "due_to_post": [5],
        "post_to_notify": [10],
        "send": [20],
        "notify_to_arrive": [40],
        "arrive_to_accept": [80],
        "post_to_sync": [290],
        "sync_to_deliver": [320],
        "deliver_to_eoi": [1000],
        "post_to_deliver": [610],
        "due_to_deliver": [615],
        "remote_post_to_deliver": [610],
        "wake_to_deliver": [],
        "self_post_to_sync": [],
        "self_sync_to_deliver": [],
        "self_post_to_deliver": [],
    }


def test_every_stage_of_the_table_is_in_every_summary_and_nothing_else():
    assert list(summarise(Stream().events(), facts())["latency"]) == list(STAGES)


def test_an_empty_run_has_every_key_of_the_contract():
    summary = json.loads(json.dumps(summarise(Stream().events(), facts(floor_ns=()))))
    assert summary.keys() >= {
        "schema", "name", "run_dir", "status", "verdict", "seconds", "seed", "rule", "host",
        "counts", "latency", "floor", "loads", "expect", "recorder",
    }  # fmt: skip
    counts = summary["counts"]
    assert counts.keys() == {
        "posted", "delivered", "coalesced", "pending", "lost", "notify", "arrive", "exits",
        "halts", "wakeups", "halt_poll", "syncs", "fastpath_reenter", "host_irqs",
    }  # fmt: skip
    assert counts["notify"].keys() >= {
        "sent", "elided_pir", "elided_on", "elided_same_vcpu", "elided_sn", "woke", "not_blocked",
    }  # fmt: skip
    assert counts["arrive"].keys() == {
        "in_guest", "root_runnable", "root_blocked", "other_vcpu", "merged",
    }  # fmt: skip
    assert summary["floor"] == {"notify_p50_ns": None, "notify_p99_ns": None, "n": 0}
    assert summary["recorder"] == {"events": 0, "dropped": 0}
    assert summary["loads"]["timer"]["rate_wanted"] == 2000.0


def test_a_post_of_a_set_pir_bit_is_coalesced_and_the_latency_is_the_first_posts():
    stream = one_way()
    stream.add(Event.POST_PIR_SET, 1_100, pcpu=2, vcpu=1, vector=0x31, arg=1_090)
    summary = summarise(stream.events(), facts())
    assert summary["verdict"] == "ok"
    assert summary["counts"]["posted"] == 2
    assert summary["counts"]["coalesced"] == summary["counts"]["notify"]["elided_pir"] == 1
    assert summary["latency"]["post_to_deliver"] | {"n": 1} == quantiles(np.array([610]))


def test_a_harvest_into_a_set_virr_bit_is_coalesced_into_the_earlier_delivery():
    stream = Stream()
    own = {"vcpu": 1, "vector": 0x31}
    for ts, arg in ((1_000, 0), (1_200, 2)):
        stream.add(Event.POST, ts, pcpu=0, arg=ts - 1, **own)
        stream.add(Event.ELIDE_ON, ts + 1, pcpu=0, **own)
        stream.add(Event.SYNC, ts + 100, pcpu=1, arg=arg, **own)
    stream.add(Event.DELIVER, 1_900, pcpu=1, **own)
    stream.add(Event.EOI, 1_950, pcpu=1, **own)
    summary = summarise(stream.events(), facts())
    assert summary["verdict"] == "ok"
    assert (summary["counts"]["posted"], summary["counts"]["coalesced"]) == (2, 1)
    assert latencies(stream.events(), facts())["post_to_deliver"].tolist() == [900]
    assert latencies(stream.events(), facts())["post_to_sync"].tolist() == [100, 100]


def test_a_post_stamped_after_its_own_harvest_costs_nothing_and_is_counted():
    """The poster lost its CPU between the locked instruction and its look at the clock."""
    stream = Stream()
    own = {"vcpu": 1, "vector": 0x31}
    stream.add(Event.POST, 5_000, pcpu=0, arg=900, **own)
    stream.add(Event.ELIDE_ON, 5_001, pcpu=0, **own)
    stream.add(Event.SYNC, 1_100, pcpu=1, **own)
    stream.add(Event.DELIVER, 1_200, pcpu=1, **own)
    stream.add(Event.EOI, 1_300, pcpu=1, **own)
    summary = summarise(stream.events(), facts())
    assert summary["verdict"] == "ok"
    assert summary["account"]["inverted"] == 1
    samples = latencies(stream.events(), facts())
    assert samples["post_to_sync"].tolist() == [0]
    assert samples["due_to_deliver"].tolist() == [300]


def test_posts_and_decisions_of_an_interrupted_poster_match_like_brackets():
    stream = Stream()
    stream.add(Event.POST, 100, vcpu=1, vector=0x31)  # interrupted before it decides
    stream.add(Event.POST, 110, vcpu=1, vector=0x41)
    stream.add(Event.NOTIFY, 120, vcpu=1, vector=PIN, arg=130, ref=1)
    stream.add(Event.ELIDE_ON, 150, vcpu=1, vector=0x31)
    pending = [{}, {"pir_pending": [0x31, 0x41]}]
    samples = latencies(stream.events(), facts())
    assert samples["post_to_notify"].tolist() == [10]
    assert summarise(stream.events(), facts(vcpus=pending, in_flight=1))["verdict"] == "ok"


def test_a_woken_vcpus_delivery_is_timed_from_the_wake():
    stream = Stream()
    own = {"vcpu": 1, "vector": 0x31}
    stream.add(Event.POST, 100, **own)
    stream.add(Event.WAKE, 110, **own)
    stream.add(Event.SYNC, 200, pcpu=1, **own)
    stream.add(Event.DELIVER, 310, pcpu=1, **own)
    assert latencies(stream.events(), facts())["wake_to_deliver"].tolist() == [200]
    counts = summarise(stream.events(), facts())["counts"]
    assert counts["notify"]["woke"] == counts["wakeups"] == 1


def test_a_reschedule_vector_is_no_notification_and_a_kick_is_no_decision():
    stream = Stream()
    wire = {"vcpu": 1, "vector": 0xFD, "ref": 1}
    stream.add(Event.POST, 100, vcpu=1, vector=0x31)
    stream.add(Event.NOTIFY, 110, arg=120, **wire)
    stream.add(Event.KICK, 125, vcpu=1, ref=1)
    stream.add(Event.NOT_BLOCKED, 130, vcpu=1, vector=0x31)
    stream.add(Event.ARRIVE, 140, pcpu=1, arg=110, **wire)
    stream.add(Event.ARRIVE_MERGED, 150, pcpu=1, arg=111, **(wire | {"ref": 2}))
    stream.add(Event.NOTIFY, 111, arg=121, **(wire | {"ref": 2}))
    summary = summarise(stream.events(), facts(vcpus=[{}, {"pir_pending": [0x31]}]))
    assert summary["verdict"] == "ok"
    notify = summary["counts"]["notify"]
    assert notify == dict.fromkeys(notify, 0) | {
        "not_blocked": 1, "kicked": 1, "reschedule_ipis": 2,
    }  # fmt: skip
    assert sum(summary["counts"]["arrive"].values()) == 0
    assert summary["latency"]["send"]["n"] == 0


def test_a_refused_message_is_neither_sent_nor_timed():
    stream = Stream()
    stream.add(Event.NOTIFY, 100, vcpu=1, vector=PIN, arg=110, ref=1)
    stream.add(Event.NOTIFY_DROPPED, 111, vcpu=1, vector=PIN, ref=1)
    summary = summarise(stream.events(), facts())
    notify = summary["counts"]["notify"]
    assert notify == dict.fromkeys(notify, 0) | {"dropped": 1}
    assert summary["latency"]["send"]["n"] == 0


@pytest.mark.parametrize(
    ("begin", "end", "n"), [(1005, 1006, 1), (1006, 2000, 0), (900, 1005, 0), (0, 0, 1)]
)
def test_the_whole_way_belongs_to_the_moment_of_its_post(begin, end, n):
    """`[from, to)`, and the message that was sent for a post goes with the post."""
    samples = latencies(one_way().events(), facts(measure_from_ns=begin, measure_to_ns=end))
    assert [len(samples[stage]) for stage in ("send", "notify_to_arrive", "post_to_deliver")] == [
        n,
    ] * 3


def test_a_wakeup_vector_sent_at_sched_out_belongs_to_no_post():
    stream = one_way()
    stream.add(Event.NOTIFY, 9_000, pcpu=1, vcpu=1, vector=0xF1, arg=9_010, ref=7)
    notify = summarise(stream.events(), facts(in_flight=1))["counts"]["notify"]
    assert (notify["sent"], notify["sent_without_post"]) == (2, 1)


@pytest.mark.parametrize(
    ("met", "name"),
    [
        (Met.IN_GUEST, "in_guest"),
        (Met.ROOT_RUNNABLE, "root_runnable"),
        (Met.ROOT_BLOCKED, "root_blocked"),
        (Met.OTHER_VCPU, "other_vcpu"),
    ],
)
def test_an_arrival_is_counted_by_what_it_met(met, name):
    stream = Stream()
    stream.add(Event.ACCEPT, 10, pcpu=1, vcpu=1, vector=PIN, arg=met, ref=1)
    arrive = summarise(stream.events(), facts())["counts"]["arrive"]
    assert arrive == dict.fromkeys(arrive, 0) | {name: 1}


@pytest.mark.parametrize(
    ("n", "shown"),
    [(19, 0), (20, 1), (99, 1), (100, 2), (999, 2), (1000, 3), (9999, 3), (10000, 4)],
)
def test_a_percentile_is_shown_when_ten_samples_lie_beyond_it(n, shown):
    found = quantiles(np.arange(1, n + 1))
    values = [found[name] for name in ("p50_ns", "p90_ns", "p99_ns", "p999_ns")]
    assert [value is not None for value in values] == [i < shown for i in range(4)]
    assert (found["n"], found["max_ns"]) == (n, n)


def test_percentiles_are_samples_by_the_nearest_rank():
    found = quantiles(np.arange(10_000, 0, -1))
    assert [found[k] for k in ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")] == [
        5000, 9000, 9900, 9990, 10_000,
    ]  # fmt: skip


def test_a_load_is_accounted_under_its_name_in_the_config():
    stream = Stream()
    for i in range(4):  # two by each child; the last after the measured part
        whole_way(stream, 10_000 * i, message=i + 1, load=1 + i % 2)
    stream.add(Event.LATE, 35_000, load=2, arg=1, vcpu=NO_VCPU)
    for ts in (100, 200, 300):  # a device: three raised, one post came of them
        stream.add(Event.RAISE, ts, pcpu=DEVICE_BASE, vector=0x22, load=3, ref=100 + ts)
    stream.add(Event.POST, 320, pcpu=1, vcpu=0, vector=0x41, load=3)
    facts_ = facts(measure_to_ns=30_000)
    loads = summarise(stream.events(), facts_)["loads"]
    assert list(loads) == ["timer", "nic"]
    timer, nic = loads["timer"], loads["nic"]
    assert (timer["posted"], timer["late"], timer["rate_wanted"]) == (4, 1, 2000.0)
    assert timer["rate_reached"] == pytest.approx(3 / 30e-6)
    assert timer["latency"]["post_to_deliver"]["n"] == 3
    assert (nic["posted"], nic["raised"], nic["rate_wanted"]) == (1, 3, None)
    assert nic["rate_reached"] == pytest.approx(3 / 30e-6)


def test_exits_carry_the_manuals_names_whether_counted_or_recorded():
    counters = {"pcpus": [{"exits": {"12": 3, "HLT": 1, "99": 2}}, {"exits": {"52": 5}}]}
    counted = summarise(Stream().events(), facts(counters=counters))["counts"]["exits"]
    assert counted == {"EXIT_99": 2, "HLT": 4, "PREEMPTION_TIMER": 5}
    stream = Stream()
    stream.add(Event.EXIT, 10, vcpu=0, arg=20, ref=32)
    assert summarise(stream.events(), facts())["counts"]["exits"] == {"MSR_WRITE": 1}


def test_statistics_of_the_pcpus_are_added_up():
    pcpu = {
        "syncs_on": 1, "syncs_off": 2, "fastpath_reenter": 3,
        "halt_attempted_poll": 4, "halt_successful_poll": 5, "halt_poll_success_ns": 6,
        "halt_poll_fail_ns": 7, "halt_wait_ns": 8, "irq_piw": 9, "irq_device": 10,
    }  # fmt: skip
    counts = summarise(Stream().events(), facts(counters={"pcpus": [pcpu, pcpu]}))["counts"]
    assert counts["syncs"] == {"on": 2, "off": 4}
    assert counts["fastpath_reenter"] == 6
    assert counts["halt_poll"] == {
        "attempted": 8, "successful": 10, "success_ns": 12, "fail_ns": 14, "wait_ns": 16,
    }  # fmt: skip
    assert counts["host_irqs"] == {
        "pin": 0, "npi": 0, "piw": 18, "res": 0, "loc": 0, "device": 20,
    }  # fmt: skip


def test_wakeups_are_kvms_statistic_where_it_was_kept():
    counters = {"pcpus": [{"halt_wakeup": 4}, {"halt_wakeup": 5}]}
    assert summarise(Stream().events(), facts(counters=counters))["counts"]["wakeups"] == 9


def test_the_verdict_is_the_worst_of_what_was_found():
    fine = summarise(one_way().events(), facts())
    held, failed = (
        {"check": "a", "held": True, "value": 1},
        {"check": "b", "held": False, "value": 2},
    )
    assert judge(fine, [held])["verdict"] == "ok"
    assert judge(fine, [held, failed])["verdict"] == "expect-failed"
    broken = summarise(one_way().events(), facts(vcpus=[{}, {"pir_pending": [0x31]}]))
    assert judge(broken, [held])["verdict"] == "violated"
    assert fine["expect"] == []


def test_what_the_launcher_found_is_a_violation_too():
    found = {"invariant": "sn-while-running", "vcpu": "db/0", "vector": 0, "text": "SN was set"}
    summary = summarise(one_way().events(), facts(violations=(found,)))
    assert summary["verdict"] == "violated"
    assert summary["violations"] == [found]


def test_a_cell_of_a_matrix_is_a_run_and_what_it_sets():
    runs = [summarise(one_way().events(), facts(cell={"kvm.rule": r})) for r in ("a", "b")]
    table = matrix(runs)
    assert table["schema"] == "pirlab-matrix/1"
    assert [cell["set"] for cell in table["cells"]] == [{"kvm.rule": "a"}, {"kvm.rule": "b"}]
    assert table["cells"][0]["counts"]["posted"] == 1


def test_a_saved_run_says_the_same_later(tmp_path):
    stream = one_way(load=1)
    (tmp_path / "events.bin").write_bytes(stream.bytes())
    run = facts(floor_ns=(1, 2, 3), expect=({"check": "c", "held": True, "value": 1},))
    write_facts(tmp_path, run)
    assert read_facts(tmp_path) == run
    assert summarise(*load_run(tmp_path)) == summarise(stream.events(), run)


def test_facts_with_an_unknown_key_are_refused():
    with pytest.raises(TypeError):
        RunFacts.from_dict(facts().to_dict() | {"surprise": 1})


def test_a_torn_last_record_is_left_out(tmp_path):
    path = tmp_path / "events.bin"
    path.write_bytes(one_way().bytes() + b"torn")
    assert len(read_events(path)) == 7
