"""The event recorder: each process appends to its own ring, the launcher drains it to disk.

Recording an event on the interrupt path is one `append` of a tuple (0.1 us); the tuples are packed
into the ring when the CPU next has nothing better to do (PAUSE, idle), after PENDING_MAX at the
latest.  One producer and one consumer per ring, no lock: the producer owns `head`, the consumer
`tail`, both only grow, and a record is written before `head` says so (a release store).  A full
ring drops and counts: a process never waits for the launcher.
Layout of a record: `emulator/events.py`.
"""

import os
from typing import Any, BinaryIO, Final

from emulator.events import RECORD, RECORD_BYTES
from emulator.machine.memory import H_TICKET, RING_HEADER_BYTES, Memory
from emulator.order import ORDER_BYTES

R_HEAD: Final = 0
R_OPEN: Final = 8  # of a ring of steps: the ticket before the step under way, 0 between two
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

    def __init__(self, memory: Memory, out: BinaryIO, order: BinaryIO | None = None) -> None:
        """The rings of events go to `out`, those of steps (`machine/ordered`) to `order`."""
        self._memory = memory
        self._out = out
        shape = memory.shape
        self._rings = [memory.ring(i) for i in range(shape.processes)]
        self._order = order
        self._order_rings = (
            [memory.order_ring(i) for i in range(shape.processes + 1)] if order else []
        )
        self.events = 0

    def drain(self) -> int:
        """Move what has been published; the number of events.  OSError if the disk is full."""
        shape = self._memory.shape
        moved = sum(
            self._move(ring, self._out, shape.ring_records, RECORD_BYTES) for ring in self._rings
        )
        if self._order is not None:
            for ring in self._order_rings:
                self._move(ring, self._order, shape.order_records, ORDER_BYTES)
        self.events += moved
        return moved

    def _move(self, ring: int, out: BinaryIO, capacity: int, size: int) -> int:
        """Move what one ring has published; the number of records."""
        view, buffer = self._memory.view, self._memory.buffer
        head, tail = view.load_u64(ring + R_HEAD), view.load_u64(ring + R_TAIL)
        moved = head - tail
        while tail < head:
            at = tail % capacity
            n = min(head - tail, capacity - at)
            start = ring + RING_HEADER_BYTES + at * size
            out.write(buffer[start : start + n * size])
            tail += n
        view.store_u64(ring + R_TAIL, tail)
        return moved

    def dropped(self) -> int:
        """Records that did not fit, over all processes."""
        return sum(self._memory.view.load_u64(ring + R_DROPPED) for ring in self._rings)

    def order_end(self) -> dict[str, Any]:
        """How the record of steps ended: what was dropped, the step that each process was in."""
        load = self._memory.view.load_u64
        return {
            "dropped": sum(load(ring + R_DROPPED) for ring in self._order_rings),
            "open": [load(ring + R_OPEN) for ring in self._order_rings],
            "tickets": load(H_TICKET),
        }

    def write(self, record: bytes) -> None:
        """Append a record of the launcher's own."""
        self._out.write(record)
        self.events += 1

    def close(self) -> None:
        for file in (self._out, self._order):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
                file.close()
