"""The event recorder: each process appends to its own ring, the launcher drains it to disk.

One producer and one consumer per ring, no lock.  The producer owns `head`, the consumer `tail`;
both only grow.  A record is written before `head` says so (a release store).  A full ring drops
and counts: a process never waits for the launcher.  About 0.4 us a record.
Layout of a record: `emulator/events.py`.
"""

import os
from typing import BinaryIO, Final

from emulator.events import RECORD, RECORD_BYTES
from emulator.machine.memory import RING_HEADER_BYTES, Memory

R_HEAD: Final = 0
R_TAIL: Final = 64
R_DROPPED: Final = 72


class Recorder:
    """The producer's end."""

    __slots__ = (
        "_base", "_buffer", "_capacity", "_dropped", "_head", "_limit", "_mask", "_pack",
        "_publish", "_tail", "source",
    )  # fmt: skip

    def __init__(self, memory: Memory, process: int, source: int) -> None:
        """`process` chooses the ring, `source` is what records name as pcpu."""
        ring = memory.ring(process)
        self.source = source
        self._capacity = memory.shape.ring_records
        self._mask = self._capacity - 1
        self._base = ring + RING_HEADER_BYTES
        self._buffer = memory.buffer
        self._pack = RECORD.pack_into
        head = memory.u64(ring + R_HEAD)
        self._publish = head.store
        self._tail = memory.u64(ring + R_TAIL).load
        self._dropped = memory.u64(ring + R_DROPPED).fetch_add
        self._head = head.load()
        self._limit = self._tail() + self._capacity

    def record(
        self, ts: int, kind: int, vcpu: int, vector: int, arg: int, ref: int, load: int
    ) -> None:
        """Append one event.  Positions as in `emulator.events`; `ts` in ns."""
        head = self._head
        if head >= self._limit:
            self._limit = self._tail() + self._capacity
            if head >= self._limit:
                self._dropped(1)
                return
        self._pack(
            self._buffer,
            self._base + (head & self._mask) * RECORD_BYTES,
            ts, arg, ref, kind, vector, self.source, vcpu, load,
        )  # fmt: skip
        self._head = head = head + 1
        self._publish(head)


class Drain:
    """The consumer's end: every ring of a run into one file."""

    def __init__(self, memory: Memory, out: BinaryIO) -> None:
        self._memory = memory
        self._out = out
        self._rings = [memory.ring(i) for i in range(memory.shape.processes)]
        self.events = 0

    def drain(self) -> int:
        """Move what has been published; the number of records.  OSError if the disk is full."""
        moved = 0
        view, buffer = self._memory.view, self._memory.buffer
        capacity = self._memory.shape.ring_records
        for ring in self._rings:
            head, tail = view.load_u64(ring + R_HEAD), view.load_u64(ring + R_TAIL)
            while tail < head:
                at = tail % capacity
                n = min(head - tail, capacity - at)
                start = ring + RING_HEADER_BYTES + at * RECORD_BYTES
                self._out.write(buffer[start : start + n * RECORD_BYTES])
                tail += n
                moved += n
            view.store_u64(ring + R_TAIL, tail)
        self.events += moved
        return moved

    def dropped(self) -> int:
        """Records that did not fit, over all processes."""
        return sum(self._memory.view.load_u64(ring + R_DROPPED) for ring in self._rings)

    def write(self, record: bytes) -> None:
        """Append a record of the launcher's own."""
        self._out.write(record)
        self.events += 1

    def close(self) -> None:
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
