"""Each equation of the conservation law, broken on purpose, is named, and its twin is quiet."""

import numpy as np
import pytest
from measure_stream import PIN, Stream, facts, whole_way

from emulator.events import NO_VCPU, Event, Met
from emulator.measure.stages import latencies
from emulator.measure.summary import summarise


def without(stream, kind):
    """The run as if the first record of this kind had never been."""
    events = stream.events()
    at = int(np.flatnonzero(events["kind"] == kind)[0])
    return np.delete(events, at)


def two_ways():
    stream = Stream()
    whole_way(stream, 1_000, message=1)
    whole_way(stream, 9_000, message=2)
    return stream


def invariants(summary):
    return [v["invariant"] for v in summary["violations"]]


def test_the_twin_balances():
    summary = summarise(two_ways().events(), facts())
    assert (summary["verdict"], invariants(summary)) == ("ok", [])
    assert summary["account"]["checked"]


@pytest.mark.parametrize(
    ("missing", "broken"),
    [
        (Event.POST, ["posted-harvested"]),
        (Event.SYNC, ["posted-harvested", "harvested-delivered"]),
        (Event.DELIVER, ["harvested-delivered", "delivered-eoi"]),
        (Event.NOTIFY, ["post-decided", "sent-arrived"]),
        (Event.ARRIVE, ["sent-arrived", "arrived-accepted"]),
    ],
)
def test_a_record_that_never_was_breaks_the_legs_it_joins(missing, broken):
    summary = summarise(without(two_ways(), missing), facts())
    assert summary["verdict"] == "violated"
    assert invariants(summary) == broken


def test_a_second_delivery_of_one_post_is_a_violation():
    stream = two_ways()
    for kind, ts in ((Event.DELIVER, 20_000), (Event.EOI, 20_100)):
        stream.add(kind, ts, pcpu=1, vcpu=1, vector=0x31)
    summary = summarise(stream.events(), facts())
    assert invariants(summary) == ["harvested-delivered"]
    assert "2 put into VIRR, 3 delivered" in summary["violations"][0]["text"]


def test_an_eoi_without_a_delivery_is_a_violation():
    stream = two_ways()
    stream.add(Event.EOI, 20_000, pcpu=1, vcpu=1, vector=0x31)
    assert invariants(summarise(stream.events(), facts())) == ["delivered-eoi"]


def test_one_handler_may_be_in_service_at_the_end_and_two_of_a_vector_may_not():
    one = np.flatnonzero(two_ways().events()["kind"] == Event.EOI)
    assert invariants(summarise(np.delete(two_ways().events(), one[:1]), facts())) == []
    broken = summarise(np.delete(two_ways().events(), one), facts())
    assert invariants(broken) == ["delivered-eoi"]


@pytest.mark.parametrize("where", ["pir_pending", "virr_pending"])
def test_a_bit_at_the_end_that_nobody_posted_is_a_violation_and_a_posted_one_is_pending(where):
    stream = two_ways()
    leg = {"pir_pending": "posted-harvested", "virr_pending": "harvested-delivered"}[where]
    state = [{}, {where: [0x31]}]
    assert invariants(summarise(stream.events(), facts(vcpus=state))) == [leg]
    stream.add(Event.POST, 20_000, vcpu=1, vector=0x31)
    stream.add(Event.ELIDE_ON, 20_001, vcpu=1, vector=0x31)
    if where == "virr_pending":
        stream.add(Event.SYNC, 20_002, pcpu=1, vcpu=1, vector=0x31)
    summary = summarise(stream.events(), facts(vcpus=state))
    assert invariants(summary) == []
    assert summary["counts"]["pending"] == 1
    assert summarise(stream.events(), facts())["verdict"] == "violated"


def test_the_row_that_does_not_balance_says_by_how_much():
    rows = summarise(without(two_ways(), Event.SYNC), facts())["account"]["rows"]
    row = next(row for row in rows if row["vector"] == 0x31)
    assert (row["vcpu"], row["posted"], row["synced"], row["delivered"]) == ("db/1", 2, 1, 2)
    assert row["difference"] == 0  # the sum hides it: that is why each leg is checked


def test_a_message_under_way_at_the_end_is_no_loss():
    stream = Stream()
    stream.add(Event.NOTIFY, 100, vcpu=1, vector=PIN, arg=110, ref=1)
    assert invariants(summarise(stream.events(), facts())) == ["sent-arrived"]
    assert invariants(summarise(stream.events(), facts(in_flight=1))) == []


def test_what_was_sent_and_not_taken_off_the_transport_is_under_way():
    stream = Stream()
    stream.add(Event.NOTIFY, 100, vcpu=1, vector=PIN, arg=110, ref=1)
    counters = {"vcpus": [{}, {}], "sent": 8, "arrived": 7, "in_flight": 0}
    assert invariants(summarise(stream.events(), facts(counters=counters))) == []


def test_a_message_that_the_transport_refused_is_no_loss():
    stream = Stream()
    stream.add(Event.NOTIFY, 100, vcpu=1, vector=PIN, arg=110, ref=1)
    assert invariants(summarise(stream.events(), facts())) == ["sent-arrived"]
    stream.add(Event.NOTIFY_DROPPED, 111, vcpu=1, vector=PIN, ref=1)
    assert invariants(summarise(stream.events(), facts())) == []


def test_a_timer_of_the_pcpus_own_is_no_message():
    stream = Stream()
    stream.add(Event.ARRIVE, 100, pcpu=1, vcpu=NO_VCPU, vector=0xEC)
    stream.add(Event.ARRIVE, 200, pcpu=1, vcpu=NO_VCPU, vector=0xEC)
    assert invariants(summarise(stream.events(), facts())) == []


def test_host_vectors_are_taken_by_handlers_that_leave_no_accept():
    stream = Stream()
    for message in (1, 2, 3):
        wire = {"vcpu": 1, "vector": 0x22, "ref": message}
        stream.add(Event.RAISE, 100 * message, pcpu=0x8000, arg=1, **wire)
        stream.add(Event.ARRIVE, 100 * message + 50, pcpu=1, arg=1, **wire)
    assert invariants(summarise(stream.events(), facts())) == []
    torn = np.delete(stream.events(), 1)
    assert invariants(summarise(torn, facts())) == ["sent-arrived"]


def test_a_message_that_arrives_twice_is_a_violation():
    stream = two_ways()
    arrival = {"pcpu": 1, "vcpu": 1, "vector": PIN, "ref": 1}
    stream.add(Event.ARRIVE_MERGED, 5_000, arg=1, **arrival)
    summary = summarise(stream.events(), facts())
    assert invariants(summary) == ["sent-arrived"]
    assert "more than once" in summary["violations"][0]["text"]


def test_a_local_apic_holds_one_vector_once():
    stream = Stream()
    for message in (1, 2):
        wire = {"vcpu": 1, "vector": PIN, "ref": message}
        stream.add(Event.NOTIFY, 100 * message, arg=110 * message, **wire)
        stream.add(Event.ARRIVE, 500 * message, pcpu=1, **wire)
    assert invariants(summarise(stream.events(), facts())) == ["arrived-accepted"]
    stream.add(Event.ACCEPT, 700, pcpu=1, vcpu=1, vector=PIN, arg=Met.IN_GUEST, ref=1)
    assert invariants(summarise(stream.events(), facts())) == []


def lost_wakeup():
    """kvm-v5.8, an interrupt of the vCPU's own pCPU: ON is set and nobody wakes."""
    stream = Stream()
    whole_way(stream, 1_000)
    stream.add(Event.POST, 20_000, pcpu=1, vcpu=1, vector=0x31, arg=19_999, load=3)
    stream.add(Event.ELIDE_SAME_VCPU, 20_010, pcpu=1, vcpu=1, vector=0x31)
    for ts in range(30_000, 90_000, 1_000):  # it is posted again and again, all coalesced
        stream.add(Event.POST_PIR_SET, ts, pcpu=1, vcpu=1, vector=0x31, arg=ts - 1)
    return stream


ASLEEP = [{}, {"pir_pending": [0x31], "on": 1, "blocked": True}]


def test_a_vcpu_that_sleeps_over_announced_work_at_the_end_has_lost_a_wakeup():
    summary = summarise(lost_wakeup().events(), facts(vcpus=ASLEEP))
    assert invariants(summary) == ["lost-wakeup"]
    assert summary["counts"]["lost"] == 1
    assert summary["counts"]["pending"] == 1
    assert summary["violations"][0]["vcpu"] == "db/1"
    assert summary["violations"][0]["vector"] == 0x31


def test_the_story_of_a_lost_wakeup_is_about_the_post_that_was_not_told():
    story = summarise(lost_wakeup().events(), facts(vcpus=ASLEEP))["violations"][0]["story"]
    at = next(i for i, line in enumerate(story) if "elide: same vCPU" in line)
    assert "post 0x31 [db/1] (nic)" in story[at - 1]
    assert "eoi" in story[at - 2]
    assert len(story) < 15
    assert max(map(len, story)) <= 72


@pytest.mark.parametrize(
    "change", [{"on": 0}, {"blocked": False}, {"pir_pending": []}], ids=["on", "blocked", "pir"]
)
def test_a_vcpu_that_is_awake_or_has_nothing_announced_has_lost_nothing(change):
    state = [{}, ASLEEP[1] | change]
    summary = summarise(lost_wakeup().events(), facts(vcpus=state))
    assert "lost-wakeup" not in invariants(summary)
    assert summary["counts"]["lost"] == 0


def test_a_sleeper_with_a_notification_on_the_way_has_lost_nothing():
    stream = lost_wakeup()
    stream.add(Event.NOTIFY, 95_000, pcpu=0, vcpu=1, vector=0xF1, arg=95_010, ref=9)
    summary = summarise(stream.events(), facts(vcpus=ASLEEP, in_flight=1))
    assert invariants(summary) == []


def test_whom_a_lost_record_was_meant_for_is_not_guessed():
    about = facts(vcpus=ASLEEP, dropped=1)
    assert invariants(summarise(lost_wakeup().events(), about)) == ["lost-wakeup"]
    about = facts(vcpus=ASLEEP, dropped=1, in_flight=1)
    assert invariants(summarise(lost_wakeup().events(), about)) == []


def test_sleepers_of_a_run_that_died_are_not_blamed():
    about = facts(vcpus=ASLEEP, status="died")
    assert invariants(summarise(lost_wakeup().events(), about)) == []


def test_a_vcpu_that_runs_on_past_its_work_has_lost_an_interrupt():
    stream = lost_wakeup()
    stream.add(Event.LOST, 90_000, pcpu=0xFFFE, vcpu=1, vector=0x31, arg=70_000)
    awake = [{}, ASLEEP[1] | {"blocked": False}]
    summary = summarise(stream.events(), facts(vcpus=awake))
    assert invariants(summary) == ["lost-interrupt"]
    assert summary["counts"]["lost"] == 1


def test_a_loss_that_the_launcher_names_too_is_told_once_and_with_its_story():
    named = {"invariant": "lost-wakeup", "vcpu": "db/1", "vector": 0x31, "text": "asleep"}
    about = facts(vcpus=ASLEEP, violations=(named,))
    violations = summarise(lost_wakeup().events(), about)["violations"]
    assert [v["invariant"] for v in violations] == ["lost-wakeup"]
    assert violations[0]["story"]


def test_one_stall_that_the_watchdog_sees_often_is_one_loss_even_if_it_ends():
    stream = lost_wakeup()
    for ts in (40_000, 50_000, 60_000):
        stream.add(Event.LOST, ts, pcpu=0xFFFE, vcpu=1, vector=0x31, arg=ts - 20_000)
    for kind, ts in ((Event.SYNC, 91_000), (Event.DELIVER, 92_000), (Event.EOI, 93_000)):
        stream.add(kind, ts, pcpu=1, vcpu=1, vector=0x31)
    summary = summarise(stream.events(), facts())
    assert invariants(summary) == ["lost-wakeup"]
    assert (summary["counts"]["lost"], summary["counts"]["pending"]) == (1, 0)


def test_the_watchdog_may_name_the_vcpu_alone():
    stream = lost_wakeup()
    stream.add(Event.LOST, 40_000, pcpu=0xFFFE, vcpu=1, arg=20_000)
    summary = summarise(stream.events(), facts(vcpus=[{}, ASLEEP[1] | {"blocked": False}]))
    assert [v["vector"] for v in summary["violations"]] == [0x31]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dropped": 5}, "5 events dropped"),
        ({"status": "died"}, "a process died"),
        ({"counters": {}}, "the state at the end is not known"),
    ],
)
def test_an_account_that_cannot_be_checked_says_why_and_claims_nothing(change, why):
    summary = summarise(without(two_ways(), Event.SYNC), facts(**change))
    assert summary["verdict"] == "ok"
    assert summary["account"]["checked"] is False
    assert summary["account"]["why"] == why


def test_a_gap_in_the_records_spoils_no_latency_but_its_own():
    stream = Stream()
    for i in range(5):
        whole_way(stream, 1_000 + 10_000 * i, message=i + 1)
    events = without(stream, Event.POST)
    assert latencies(events, facts(dropped=1))["post_to_deliver"].tolist() == [610] * 4
    # Counting in turn, as where nothing is missing, would shift all that follow:
    assert latencies(events, facts())["post_to_deliver"].tolist() != [610] * 4
