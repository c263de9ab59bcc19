"""Hand-made runs: each process's records in its own order, interleaved in chunks as rings are.

`Stream` writes records; `History` is a small simulator that plays valid random histories and
keeps the truth beside the records, without using any of the code under test.
"""

import random
from dataclasses import dataclass, field

import numpy as np

from emulator.events import NO_VCPU, RECORD, Event, Met
from emulator.measure.facts import LoadFacts, RunFacts
from emulator.measure.records import RECORD_DTYPE

PIN = 0xF2
LOADS = (
    LoadFacts(name="timer.0", parent="timer", rate_wanted_per_s=1000.0),
    LoadFacts(name="timer.1", parent="timer", rate_wanted_per_s=1000.0),
    LoadFacts(name="nic", parent="nic", rate_wanted_per_s=None),
)


@dataclass
class Stream:
    """Records by process: the order of the calls of `add` is the order in a ring."""

    rings: dict[int, list[bytes]] = field(default_factory=dict)

    def add(self, kind, ts, *, pcpu=0, vcpu=0, vector=0, arg=0, ref=0, load=0):
        record = RECORD.pack(ts, arg, ref, kind, vector, pcpu, vcpu, load)
        self.rings.setdefault(pcpu, []).append(record)

    def bytes(self, chunk=None):
        """The file: ring after ring, or in chunks of `chunk()` records taken by turns."""
        left = {pcpu: list(ring) for pcpu, ring in self.rings.items()}
        out = []
        while any(left.values()):
            for ring in left.values():
                n = chunk() if chunk else len(ring)
                out += ring[:n]
                del ring[:n]
        return b"".join(out)

    def events(self, chunk=None):
        return np.frombuffer(self.bytes(chunk), dtype=RECORD_DTYPE)


def facts(*, vcpus=(), in_flight=0, **changes):
    """Facts of a run on two pCPUs.  `vcpus`: states at the end, empty ones where none is given."""
    states = [{"pir_pending": [], "virr_pending": [], "on": 0, "blocked": False} for _ in range(2)]
    for vcpu, state in enumerate(vcpus):
        states[vcpu] |= state
    known = {
        "name": "by-hand",
        "rule": "kvm-v5.18",
        "seed": 1,
        "seconds": 1.0,
        "status": "complete",
        "vcpus": ("db/0", "db/1"),
        "loads": LOADS,
        "counters": {"vcpus": states, "in_flight": in_flight},
    }
    return RunFacts(**(known | changes))


def whole_way(stream, start, *, vcpu=1, vector=0x31, message=1, poster=0, target=1, load=0):
    """One interrupt from due to EOI, notified: legs of 5, 10, 20, 40, 80, 160 and 320 ns."""
    way = {"vcpu": vcpu, "vector": vector, "load": load}
    wire = {"vcpu": vcpu, "vector": PIN, "ref": message, "load": load}
    post = start + 5
    notify = post + 10
    stream.add(Event.POST, post, pcpu=poster, arg=start, **way)
    stream.add(Event.NOTIFY, notify, pcpu=poster, arg=notify + 20, **wire)
    stream.add(Event.ARRIVE, notify + 40, pcpu=target, arg=notify, **wire)
    stream.add(Event.ACCEPT, notify + 120, pcpu=target, **(wire | {"arg": Met.IN_GUEST}))
    stream.add(Event.SYNC, notify + 280, pcpu=target, arg=1, **way)
    stream.add(Event.DELIVER, notify + 600, pcpu=target, **way)
    stream.add(Event.EOI, notify + 1600, pcpu=target, **way)


@dataclass
class Bit:
    """One vCPU's vector: which post each of its bits stands for."""

    pir: int | None = None
    virr: int | None = None
    visr: int | None = None


class History:
    """Random valid play of two vCPUs on three pCPUs and a device, with the truth beside it."""

    VECTORS = (0x31, 0x41, 0x42, 0xEC)
    PCPUS = (0, 1, 2, 0x8000)

    def __init__(self, rng: random.Random, steps: int):
        self.rng = rng
        self.now = 1_000
        self.stream = Stream()
        self.bits = {(v, x): Bit() for v in (0, 1) for x in self.VECTORS}
        self.on = [False, False]
        self.home = [0, 1]
        self.wire = []  # (message, vcpu, pcpu, begin)
        self.irr = {}  # pcpu -> (message, vcpu)
        self.posts = []  # truth, one dict a POST
        self.counts = dict.fromkeys(
            (
                "pir_set",
                "merged_syncs",
                "self_ipis",
                "self_merged",
                "sent",
                "merged",
                "stray_wakes",
                "delivered",
            ),
            0,
        )
        self.messages = []  # truth, one dict a NOTIFY
        self.decisions = {}
        moves = (
            self.self_ipi,
            self.post,
            self.arrive,
            self.accept,
            self.sync,
            self.deliver,
            self.eoi,
        )
        for _ in range(steps):
            rng.choices((*moves, self.migrate, self.stray_wake), (1, 4, 3, 3, 2, 4, 4, 1, 1))[0]()

    def tick(self):
        self.now += self.rng.randint(1, 1000)
        return self.now

    def add(self, kind, **fields):
        ts = self.tick()
        self.stream.add(kind, ts, **fields)
        return ts

    def post(self, depth=0, pcpu=None):
        pcpu = self.rng.choice(self.PCPUS) if pcpu is None else pcpu
        vcpu, vector = self.rng.choice(list(self.bits))
        due, load = self.tick(), self.rng.randint(0, 3)
        where = {"pcpu": pcpu, "vcpu": vcpu, "load": load}
        bit = self.bits[vcpu, vector]
        if bit.pir is not None:
            self.counts["pir_set"] += 1
            self.add(Event.POST_PIR_SET, vector=vector, arg=due, **where)
            return
        bit.pir = len(self.posts)
        truth = {"due": due, "pcpu": pcpu, "vcpu": vcpu, "vector": vector, "load": load}
        self.posts.append(truth)
        truth["post"] = self.add(Event.POST, vector=vector, arg=due, **where)
        while depth < 3 and self.rng.random() < 0.3:  # an interrupt handler posts in between
            self.post(depth + 1, pcpu)
        decision = self.decide(pcpu, vcpu, vector, where)
        truth["decision"] = decision
        self.decisions[decision] = self.decisions.get(decision, 0) + 1

    def decide(self, pcpu, vcpu, vector, where):
        if self.on[vcpu]:
            self.add(Event.ELIDE_ON, vector=vector, **where)
            return Event.ELIDE_ON
        self.on[vcpu] = True
        if pcpu == self.home[vcpu] and self.rng.random() < 0.5:
            self.add(Event.ELIDE_SAME_VCPU, vector=vector, **where)
            return Event.ELIDE_SAME_VCPU
        quiet = self.rng.choice((Event.NOTIFY, Event.WAKE, Event.NOT_BLOCKED))
        if quiet is not Event.NOTIFY:
            self.add(quiet, vector=vector, **where)
            return quiet
        message = len(self.messages) + 1
        begin, end = self.tick(), self.tick()
        self.stream.add(Event.NOTIFY, begin, vector=PIN, arg=end, ref=message, **where)
        self.messages.append({"begin": begin, "end": end})
        self.wire.append((message, vcpu, self.home[vcpu], begin))
        return Event.NOTIFY

    def arrive(self):
        if not self.wire:
            return
        message, vcpu, pcpu, begin = self.wire.pop(self.rng.randrange(len(self.wire)))
        merged = pcpu in self.irr
        kind = Event.ARRIVE_MERGED if merged else Event.ARRIVE
        ts = self.add(kind, pcpu=pcpu, vcpu=vcpu, vector=PIN, arg=begin, ref=message)
        self.messages[message - 1] |= {"arrive": ts}
        self.counts["merged"] += merged
        if not merged:
            self.irr[pcpu] = (message, vcpu)

    def accept(self):
        if not self.irr:
            return
        pcpu = self.rng.choice(list(self.irr))
        message, vcpu = self.irr.pop(pcpu)
        met = self.rng.choice(list(Met))
        self.add(Event.ACCEPT, pcpu=pcpu, vcpu=vcpu, vector=PIN, arg=met, ref=message)

    def sync(self):
        vcpu = self.rng.randint(0, 1)
        self.on[vcpu] = False
        for (owner, vector), bit in self.bits.items():
            if owner != vcpu or bit.pir is None:
                continue
            merged = bit.virr is not None
            where = {"pcpu": self.home[vcpu], "vcpu": vcpu, "vector": vector}
            self.posts[bit.pir]["sync"] = self.add(Event.SYNC, arg=merged << 1, **where)
            self.counts["merged_syncs"] += merged
            if not merged:
                bit.virr = bit.pir
            bit.pir = None

    def deliver(self):
        ready = [k for k, bit in self.bits.items() if bit.virr is not None and bit.visr is None]
        if ready:
            vcpu, vector = key = self.rng.choice(ready)
            bit = self.bits[key]
            bit.visr, bit.virr = bit.virr, None
            truth = self.posts[bit.visr] if bit.visr >= 0 else {}  # -1: a self-IPI's
            truth["delivered_on"] = self.home[vcpu]
            truth["deliver"] = self.add(
                Event.DELIVER, pcpu=self.home[vcpu], vcpu=vcpu, vector=vector
            )
            self.counts["delivered"] += 1

    def eoi(self):
        serving = [k for k, bit in self.bits.items() if bit.visr is not None]
        if serving:
            vcpu, vector = key = self.rng.choice(serving)
            post, self.bits[key].visr = self.bits[key].visr, None
            truth = self.posts[post] if post >= 0 else {}
            truth["eoi"] = self.add(Event.EOI, pcpu=self.home[vcpu], vcpu=vcpu, vector=vector)

    def self_ipi(self):
        """The processor sets the running guest's VIRR bit: no descriptor, nobody to notify."""
        vcpu, vector = key = self.rng.choice(list(self.bits))
        was_set = self.bits[key].virr is not None
        self.counts["self_ipis"] += 1
        self.counts["self_merged"] += was_set
        if not was_set:
            self.bits[key].virr = -1
        where = {"pcpu": self.home[vcpu], "vcpu": vcpu, "vector": vector}
        self.add(Event.SELF_IPI, arg=self.now, ref=int(was_set), **where)

    def migrate(self):
        self.home[self.rng.randint(0, 1)] = self.rng.choice((0, 1, 2))

    def stray_wake(self):
        """A timer wakes a vCPU: a decision that belongs to no post."""
        self.counts["stray_wakes"] += 1
        self.add(Event.WAKE, pcpu=self.rng.choice(self.PCPUS), vcpu=self.rng.randint(0, 1))

    def facts(self, **changes):
        pending = [
            {
                "pir_pending": [x for x in self.VECTORS if self.bits[v, x].pir is not None],
                "virr_pending": [x for x in self.VECTORS if self.bits[v, x].virr is not None],
            }
            for v in (0, 1)
        ]
        return facts(vcpus=pending, in_flight=len(self.wire), **changes)

    def spans(self, begin, end, only=lambda _: True):
        """Durations of all posts that have both stamps, in the order of posting."""
        return [
            p[end] - p[begin]
            for p in sorted(self.posts, key=lambda p: p["post"])
            if begin in p and end in p and only(p)
        ]


__all__ = ["LOADS", "NO_VCPU", "PIN", "History", "Stream", "facts", "whole_way"]
