"""A run of two vCPUs for the reports: posts of db/0 to itself, elided or not, and to db/1."""

import numpy as np

from emulator.events import Event, Met
from emulator.measure.facts import LoadFacts, RunFacts
from emulator.measure.records import RECORD_DTYPE
from emulator.measure.summary import summarise

PIN = 0xF2


def example(*, rule="kvm-v5.18", own=40, remote=30, **changes):
    """Legs of the own posts: 1000 and 2000 ns; of the remote ones 50 us in all; a send is 20 us."""
    rows = []
    for i in range(own):
        ts = 1_000_000 * i
        vector = {"vcpu": 0, "vector": 0xEC, "pcpu": 0, "load": 1}
        rows.append({"kind": Event.POST, "ts": ts + 100, "arg": ts + 50, **vector})
        if rule == "kvm-v5.18":
            rows.append({"kind": Event.ELIDE_SAME_VCPU, "ts": ts + 200, **vector})
        else:
            rows += message(ts + 200, own + remote + i + 1, target=0)
        rows.append({"kind": Event.SYNC, "ts": ts + 1_100, **vector})
        rows += handler(ts + 3_100, vector)
    for i in range(remote):
        ts = 1_000_000 * i + 500_000
        vector = {"vcpu": 1, "vector": 0x31, "load": 2}
        rows.append({"kind": Event.POST, "ts": ts, "arg": ts - 10, "pcpu": 0, **vector})
        rows += message(ts + 10, i + 1, target=1)
        rows.append({"kind": Event.SYNC, "ts": ts + 45_000, "pcpu": 1, **vector})
        rows += handler(ts + 50_000, vector | {"pcpu": 1})
    return summarise(records(rows), run_facts(rule, changes))


def message(ts, ref, target):
    wire = {"vcpu": target, "vector": PIN, "ref": ref}
    return [
        {"kind": Event.NOTIFY, "ts": ts, "arg": ts + 20_000, "pcpu": 0, **wire},
        {"kind": Event.ARRIVE, "ts": ts + 40_000, "arg": ts, "pcpu": target, **wire},
        {"kind": Event.ACCEPT, "ts": ts + 41_000, "arg": Met.IN_GUEST, "pcpu": target, **wire},
    ]


def handler(ts, vector):
    return [
        {"kind": Event.DELIVER, "ts": ts, **vector},
        {"kind": Event.EOI, "ts": ts + 9, **vector},
    ]


def records(rows):
    events = np.zeros(len(rows), dtype=RECORD_DTYPE)
    for i, row in enumerate(rows):
        for name, value in row.items():
            events[name][i] = value
    return events


def run_facts(rule, changes):
    known = {
        "name": "same-vcpu-shortcut",
        "question": "May KVM skip the notification when a vCPU posts to itself?",
        "rule": rule,
        "seed": 42,
        "seconds": 5.0,
        "status": "complete",
        "vcpus": ("db/0", "db/1"),
        "host": {"cores": 2},
        "loads": (
            LoadFacts(name="timer.0", parent="timer", rate_wanted_per_s=2000.0),
            LoadFacts(name="ipi", parent="ipi", rate_wanted_per_s=None),
        ),
        "counters": {"vcpus": [{}, {}], "pcpus": [{"exits": {"12": 7, "32": 90}}]},
        "floor_ns": (40_000,) * 30,
        "cell": {"kvm.rule": rule},
    }
    return RunFacts(**(known | changes))


def asleep():
    """One vCPU sleeps over a posted vector: its wake-up was elided."""
    rows = [
        {"kind": Event.HALT, "ts": 50, "arg": 60, "pcpu": 1, "vcpu": 1},
        {"kind": Event.POST, "ts": 100, "pcpu": 1, "vcpu": 1, "vector": 0x41},
        {"kind": Event.ELIDE_SAME_VCPU, "ts": 110, "pcpu": 1, "vcpu": 1, "vector": 0x41},
    ]
    state = {"pir_pending": [0x41], "on": 1, "blocked": True}
    changes = {"counters": {"vcpus": [{}, state]}}
    return summarise(records(rows), run_facts("kvm-v5.8", changes))
