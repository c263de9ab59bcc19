"""Which post was decided how, harvested, delivered and ended by which record.

What makes the matching exact, and free of clocks of different processes:

- For one vCPU and vector, a PIR bit goes 0 -> 1 (POST) and 1 -> 0 (SYNC) in turn: the i-th POST
  belongs to the i-th SYNC.  Likewise a VIRR bit (a SYNC that did not find it set, and DELIVER) and
  a VISR bit (DELIVER and EOI: a vector does not nest in itself, PPR forbids it).
- A SYNC that found VIRR set already is coalesced: the delivery is the earlier post's.
- A poster decides after it has posted.  An interrupt between the two may post as well, to its end:
  in one process, posts and decisions for one vCPU nest like brackets.
- Self-IPI virtualization sets VIRR itself: a delivery without a POST.
- A message carries its number from NOTIFY to ARRIVE to ACCEPT.

Where the rings dropped records, the counting breaks: then only records that stand next to each
other in time are paired.  A gap costs the chains around it and no others.
Before: `records`.  Next: `account`, `stages`.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from emulator.events import Event
from emulator.measure.records import Flags, Indices, Records, is_notification, positions

DECISIONS: Final = (
    Event.ELIDE_ON,
    Event.ELIDE_SAME_VCPU,
    Event.ELIDE_SN,
    Event.NOTIFY,
    Event.WAKE,
    Event.NOT_BLOCKED,
    Event.NOTIFY_DROPPED,
)
SYNC_FOUND_VIRR_SET: Final = 2  # bit 1 of SYNC's arg


@dataclass(frozen=True, slots=True)
class Chains:
    """One entry a POST, in the order of posting; positions in the records, -1: none."""

    post: Indices
    decision: Indices
    sync: Indices
    merged: Flags  # its harvest found VIRR set: no delivery of its own
    deliver: Indices
    eoi: Indices

    def pick(self, which: Flags | Indices) -> "Chains":
        """Some of them, or all in another order."""
        return Chains(
            post=self.post[which],
            decision=self.decision[which],
            sync=self.sync[which],
            merged=self.merged[which],
            deliver=self.deliver[which],
            eoi=self.eoi[which],
        )


@dataclass(frozen=True, slots=True)
class Messages:
    """One entry a NOTIFY, in the order of sending; positions in the records, -1: none."""

    notify: Indices
    post: Indices  # the POST it was sent for; a wake-up vector at sched-out has none
    arrive: Indices  # ARRIVE or ARRIVE_MERGED
    accept: Indices  # merged messages have none
    dropped: Flags  # the transport refused it


def match_chains(events: Records, *, whole: bool) -> Chains:
    """Follow every POST to its EOI.  `whole`: no record is missing."""
    posts = _sorted_by_bit(events, positions(events, Event.POST))
    syncs = _sorted_by_bit(events, positions(events, Event.SYNC))
    found_virr_set = (events["arg"][syncs] & SYNC_FOUND_VIRR_SET) != 0
    # Whoever sets the VIRR bit owns the next delivery: a harvest, or the guest's self-IPI.
    self_ipis = positions(events, Event.SELF_IPI)
    new = self_ipis[events["ref"][self_ipis] == 0]
    own = _sorted_by_bit(events, np.concatenate([syncs[~found_virr_set], new]))
    delivers = _sorted_by_bit(events, positions(events, Event.DELIVER))
    eois = _sorted_by_bit(events, positions(events, Event.EOI))

    pair = _pair_in_turn if whole else _pair_neighbours
    sync = pair(events, posts, syncs)
    deliver = _follow(events, own, pair(events, own, delivers))[sync]
    eoi = _follow(events, delivers, pair(events, delivers, eois))[deliver]
    merged = _marked(events, syncs[found_virr_set])[sync]

    openers, decisions = match_decisions(events)
    decision = _follow(events, openers, decisions)[posts]
    # The order of posting: what looks at drift over a run needs it.
    order = np.argsort(events["ts"][posts], kind="stable")
    return Chains(posts, decision, sync, merged, deliver, eoi).pick(order)


def match_decisions(events: Records) -> tuple[Indices, Indices]:
    """(POST, its decision) in parallel.  A POST without a decision is in neither."""
    index = positions(events, Event.POST, *DECISIONS)
    kind = events["kind"][index]
    # A reschedule vector travels as a NOTIFY too, on the way to WAKE or NOT_BLOCKED (a kick).
    index = index[(kind != Event.NOTIFY) | is_notification(events[index])]
    owner = events["pcpu"][index].astype(np.int64) << 16 | events["vcpu"][index]
    order = np.argsort(owner, kind="stable")  # stable: the process's own order is kept
    index, owner = index[order], owner[order]
    bounds = np.flatnonzero(np.diff(owner)) + 1
    pairs = [_match_brackets(events, part) for part in np.split(index, bounds)]
    return (
        np.concatenate([posts for posts, _ in pairs]),
        np.concatenate([decisions for _, decisions in pairs]),
    )


def match_messages(events: Records, chains: Chains) -> Messages:
    """Follow every message of the run by its number."""
    notify = positions(events, Event.NOTIFY)
    notify = notify[np.argsort(events["ts"][notify], kind="stable")]
    arrive = _pair_by_ref(events, notify, positions(events, Event.ARRIVE, Event.ARRIVE_MERGED))
    accept = _pair_by_ref(events, notify, positions(events, Event.ACCEPT))
    refused = positions(events, Event.NOTIFY_DROPPED)
    decided = chains.decision >= 0
    return Messages(
        notify=notify,
        post=_follow(events, chains.decision[decided], chains.post[decided])[notify],
        arrive=arrive,
        accept=accept,
        dropped=np.isin(events["ref"][notify], events["ref"][refused]),
    )


def bit_key(events: Records, index: Indices) -> Indices:
    """Whose bit of PIR, VIRR or VISR it is: vCPU and vector as one number."""
    key: Indices = events["vcpu"][index].astype(np.int64) << 8 | events["vector"][index]
    return key


def _sorted_by_bit(events: Records, index: Indices) -> Indices:
    # lexsort is stable: equal stamps keep the file's order.
    return index[np.lexsort((events["ts"][index], bit_key(events, index)))]


def _pair_in_turn(events: Records, first: Indices, then: Indices) -> Indices:
    """For each of `first` the record of `then` with the same place in the row of its bit."""
    key, keys = bit_key(events, first), bit_key(events, then)
    place = np.arange(len(first)) - np.searchsorted(key, key)
    at = np.searchsorted(keys, key) + place
    there = at < np.searchsorted(keys, key, side="right")
    return np.where(there, then[np.where(there, at, 0)], -1) if len(then) else _none(first)


def _pair_neighbours(events: Records, first: Indices, then: Indices) -> Indices:
    """Only pairs with nothing of the same bit between them: a missing record shifts no others."""
    both = np.concatenate([first, then])
    opens = np.arange(len(both)) < len(first)
    order = np.lexsort((~opens, events["ts"][both], bit_key(events, both)))
    key = bit_key(events, both)[order]
    beside = opens[order][:-1] & ~opens[order][1:] & (key[:-1] == key[1:])
    at = np.flatnonzero(beside)
    pairs = _none(first)
    pairs[order[at]] = both[order[at + 1]]
    return pairs


def _pair_by_ref(events: Records, first: Indices, then: Indices) -> Indices:
    if not len(then):
        return _none(first)
    then = then[np.argsort(events["ref"][then], kind="stable")]
    refs, ref = events["ref"][then], events["ref"][first]
    at = np.minimum(np.searchsorted(refs, ref), len(then) - 1)
    return np.where(refs[at] == ref, then[at], -1)


def _match_brackets(events: Records, index: Indices) -> tuple[Indices, Indices]:
    """One process's posts and decisions for one vCPU, in its order; a decision closes the last
    open post.  Decisions that close nothing (a wake-up by a timer, say) belong to no post.
    """
    opens = events["kind"][index] == Event.POST
    height = np.cumsum(np.where(opens, 1, -1))
    lowest = np.minimum(np.minimum.accumulate(height), 0)
    closes_nothing = np.diff(lowest, prepend=0) < 0
    level = np.where(closes_nothing, 0, height - lowest + ~opens)
    order = np.argsort(level, kind="stable")  # on one level, brackets open and close in turn
    index, opens, level = index[order], opens[order], level[order]
    at = np.flatnonzero(opens[:-1] & ~opens[1:] & (level[:-1] == level[1:]))
    return index[at], index[at + 1]


def _follow(events: Records, first: Indices, then: Indices) -> Indices:
    """A table from position to position.  One longer than the records, so that -1 stays -1."""
    table = np.full(len(events) + 1, -1, dtype=np.int64)
    table[first] = then
    return table


def _marked(events: Records, index: Indices) -> Flags:
    table = np.zeros(len(events) + 1, dtype=np.bool_)
    table[index] = True
    return table


def _none(first: Indices) -> Indices:
    return np.full(len(first), -1, dtype=np.int64)
