"""What a guest has to do, and when: its schedule of timer deadlines and of IPIs.

Pure: time comes in as an argument.  Open loop: due times follow from the rate and the seed alone,
so a guest that falls behind does not slow its own load down, and a late post is late from when it
was due.  One vCPU has one APIC timer; the schedule multiplexes it.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log
from typing import Any, Final

from emulator.hardware.vectors import LOCAL_TIMER_VECTOR, MSR_X2APIC_ICR

MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
TOKEN_VECTOR: Final = 0xFB  # CALL_FUNCTION_SINGLE_VECTOR: what Linux sends for a function call

Ipi = tuple[int, int, tuple[int, int]]
"""(MSR, value, (load, due ns)): a WRMSR and what it is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One load of a guest.  `number` is what events carry: 1 + its index in the config."""

    number: int
    msr: int  # ICR, self-IPI, or 0 for the timer
    vector: int
    targets: tuple[int, ...]  # APIC ids, taken in turn
    period_ns: float
    poisson: bool
    limit: int | None


class DueTimes:
    """The due times of a stream, ns, for ever or up to its limit; an iterator that can be moved.

    The first is one gap after the start, and streams of one rate start at phases of their own, so
    that they do not all fall due together.  `place` is all there is to it besides the stream.
    """

    __slots__ = ("_key", "_stream", "place")

    def __init__(self, stream: Stream, start_ns: int, seed: int) -> None:
        self._stream = stream
        self._key = seed * 1_000_003 + stream.number
        phase = 0.0 if stream.poisson else self._uniform(-1) * stream.period_ns
        self.place = (0, start_ns + phase)  # how many so far, and when the last one was

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        stream = self._stream
        count, at = self.place
        if stream.limit is not None and count >= stream.limit:
            raise StopIteration
        at += -log(self._uniform(count)) * stream.period_ns if stream.poisson else stream.period_ns
        self.place = (count + 1, at)
        return int(at)

    def _uniform(self, n: int) -> float:
        """The n-th number of this stream, in (0, 1]: splitmix64, a function of (seed, load, n)."""
        z = (self._key + 0x9E37_79B9_7F4A_7C15 * (n + 2)) & MASK
        z = (z ^ z >> 30) * 0xBF58_476D_1CE4_E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D0_49BB_1331_11EB & MASK
        return ((z ^ z >> 31) + 1) / (MASK + 1)


class Workload:
    """One vCPU's schedule."""

    __slots__ = (
        "_draining", "_heap", "_sources", "_targets", "_timer", "_timer_due", "_timer_load",
        "neighbour", "number", "timer_vector",
    )  # fmt: skip

    def __init__(
        self,
        *,
        number: int,
        neighbour: int,
        streams: tuple[Stream, ...],
        start_ns: int,
        seed: int,
        draining: Callable[[], bool],
    ) -> None:
        """`number`: the vCPU within its VM; `neighbour`: the APIC id of the next one in the ring.

        `draining` says that the load is over: nothing more falls due.
        """
        self.number = number
        self.neighbour = neighbour
        self._draining = draining
        self.timer_vector = LOCAL_TIMER_VECTOR
        self._timer: DueTimes | None = None
        self._timer_load = 0
        self._heap: list[tuple[int, int]] = []  # (due, position in _sources)
        self._sources: list[tuple[Stream, DueTimes]] = []
        self._targets: list[int] = []
        for stream in streams:
            times = DueTimes(stream, start_ns, seed)
            if stream.msr == 0:
                self._timer = times
                self._timer_load = stream.number
                self.timer_vector = stream.vector
                continue
            self._sources.append((stream, times))
            self._targets.append(0)
            self._push(len(self._sources) - 1)
        self._timer_due = next(self._timer, 0) if self._timer else 0

    def _push(self, i: int) -> None:
        due = next(self._sources[i][1], None)
        if due is not None:
            heapq.heappush(self._heap, (due, i))

    def due_ipi(self, now_ns: int) -> Ipi | None:
        """The IPI that is due, if one is; the schedule moves on."""
        if not self._heap or self._heap[0][0] > now_ns or self._draining():
            return None
        due, i = heapq.heappop(self._heap)
        self._push(i)
        stream = self._sources[i][0]
        turn = self._targets[i]
        self._targets[i] = (turn + 1) % len(stream.targets)
        target = stream.targets[turn]
        value = target << 32 | stream.vector if stream.msr == MSR_X2APIC_ICR else stream.vector
        return stream.msr, value, (stream.number, due)

    def token(self, now_ns: int) -> Ipi | None:
        """The token's IPI to the neighbour; it rests when the load is over."""
        if self._draining():
            return None
        return MSR_X2APIC_ICR, self.neighbour << 32 | TOKEN_VECTOR, (0, now_ns)

    def next_deadline(self, *, halts: bool) -> tuple[int, int]:
        """(deadline ns, load): what to arm the APIC timer for, (0, 0) to leave it disarmed.

        A guest that halts also needs waking for its next IPI: that deadline's interrupt belongs to
        no load.  Called when the last deadline has fired.
        """
        if self._draining():
            return 0, 0
        ipi_due = self._heap[0][0] if halts and self._heap else 0
        if self._timer_due and (not ipi_due or self._timer_due <= ipi_due):
            return self._timer_due, self._timer_load
        return ipi_due, 0

    def timer_fired(self, load: int) -> None:
        """The deadline armed for `load` has been posted: the next one comes up."""
        if load and load == self._timer_load and self._timer:
            self._timer_due = next(self._timer, 0)

    def save(self) -> list[Any]:
        """Where the schedule stands, as plain data."""
        timer = self._timer and self._timer.place
        places = [times.place for _, times in self._sources]
        return [self._heap, self._targets, self._timer_due, timer, places]

    def restore(self, saved: list[Any]) -> None:
        """The inverse of `save()`."""
        heap, self._targets, self._timer_due, timer, places = saved
        self._heap = [tuple(entry) for entry in heap]
        if self._timer:
            self._timer.place = tuple(timer)
        for (_, times), place in zip(self._sources, places, strict=True):
            times.place = tuple(place)
