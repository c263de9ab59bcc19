"""The event recorder: each process appends to its own ring, the launcher drains it to disk.

Recording an event on the interrupt path is one `append` of a tuple (0.1 us); the tuples are packed
into the ring when the CPU next has nothing better to do (PAUSE, idle), after PENDING_MAX at the
latest.  One producer and one consumer per ring, no lock: the producer owns `head`, the consumer
`tail`, both only grow, and a record is written before `head` says so (a release store).  A full
ring drops and counts: a process never waits for the launcher.
Layout of a record: `emulator/events.py`.
"""

import os
from typing import BinaryIO, Final

from emulator.events import RECORD, RECORD_BYTES
from emulator.machine.memory import RING_HEADER_BYTES, Memory

R_HEAD: Final = 0
R_TAIL: Final = 64
R_DROPPED: Final = 72
PENDING_MAX: Final = 128

Record = tuple[int, int, int, int, int, int, int, int]
"""(ts, arg, ref, kind, vector, pcpu, vcpu, load), as `emulator.events` lays them out."""


class Recorder:
    """The producer's end: `append(record)`, and `flush()` when there is time."""

    def __init__(self, memory: Memory, process: int) -> None:
        """`process` chooses the ring: pCPUs first, then devices."""
        ring = memory.ring(process)
        self.pending: list[Record] = []
        self.append = self.pending.append
        self._capacity = memory.shape.ring_records
        self._base = ring + RING_HEADER_BYTES
        self._buffer = memory.buffer
        head = memory.u64(ring + R_HEAD)
        self._publish = head.store
        self._tail = memory.u64(ring + R_TAIL).load
        self._dropped = memory.u64(ring + R_DROPPED).fetch_add
        self._head = head.load()

    def flush(self) -> None:
        """Pack what is pending into the ring and publish it."""
        pack, buffer, base = RECORD.pack_into, self._buffer, self._base
        mask = self._capacity - 1
        head = self._head
        room = self._tail() + self._capacity - head
        for record in self.pending[:room]:
            pack(buffer, base + (head & mask) * RECORD_BYTES, *record)
            head += 1
        if len(self.pending) > room:
            self._dropped(len(self.pending) - room)
        self.pending.clear()
        self._head = head
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
