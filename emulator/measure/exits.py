"""VM exits by reason: how many, and how long each kept the guest out.

From the EXIT records: from the exit to the next VM entry, so a HLT counts its sleep.  The last
exit of a run has no entry after it and is not timed.
Before: `records`.  Next: `report/kernel`.
"""

from dataclasses import dataclass

from emulator.events import Event
from emulator.hardware.vectors import ExitReason
from emulator.measure.records import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitTimes:
    """One exit reason.  Times in ns."""

    reason: str
    samples: int
    total_ns: int
    min_ns: int
    max_ns: int

    @property
    def mean_ns(self) -> float:
        return self.total_ns / self.samples


def exit_times(events: Records) -> list[ExitTimes]:
    """Every reason that occurred, the most frequent first."""
    exits = events[events["kind"] == Event.EXIT]
    spans = exits["arg"].astype("int64") - exits["ts"].astype("int64")
    found = []
    for reason in sorted({int(r) for r in exits["ref"]}):
        mine = spans[exits["ref"] == reason]
        name = ExitReason(reason).name if reason in set(ExitReason) else str(reason)
        found.append(
            ExitTimes(
                reason=name,
                samples=len(mine),
                total_ns=int(mine.sum()),
                min_ns=int(mine.min()),
                max_ns=int(mine.max()),
            )
        )
    return sorted(found, key=lambda each: -each.samples)
