"""The producer's end of the ordered record: tickets, one process's ring, a step put on record.

Used only where a config says `record: {order: total}`.  A step that others can see takes a ticket
from one shared counter before it and one after it; no lock is held across processes, so a process
that is killed in mid-step stops nobody.  Its ring says from which ticket on it may have done steps
that are not on record (`R_OPEN`).

A ticket is a locked instruction, and drains the store buffer of its CPU: what a recorded run shows
is sequentially consistent, whatever the hardware could have done without the record.
Next: `ordered` and `ordered_senders` wrap the steps of each kind of CPU; the launcher drains the
rings into `order.bin`; `checker/path` reads it.  Layout of a record: `emulator/order.py`.
"""

from collections.abc import Callable
from typing import Any, Final

from atomicshm import AtomicU64

from emulator.config.model import Cell, Order
from emulator.hardware.cpu import Kind
from emulator.machine.memory import H_TICKET, RING_HEADER_BYTES, Memory, PiDesc
from emulator.machine.recorder import R_DROPPED, R_HEAD, R_OPEN, R_TAIL
from emulator.machine.words import VcpuWords
from emulator.order import CODES, KINDS, MASK, ORDER, ORDER_BYTES, SHARED, to_fields

OF_WORDS: Final = frozenset({"pi_harvest", "pi_is_pir_empty", "lapic_merge_irr"})
"""One step for each word of PIR, or of the software VIRR."""
PENDING_MAX: Final = 512  # records kept back from the ring
RINGS_BYTES: Final = 32 << 20  # of shared memory, for all processes

_Cpu = Any  # what a step is done on: an OrderedCpu or one of `ordered_senders`
Record = tuple[int, int, int, tuple[int, ...], Any, tuple[int, ...]]
"""(begin, end, code, arguments, result, extra), as `emulator.order` lays them out."""


class Steps:
    """The producer's end of one ring, and this process's hand on the ticket counter.

    As for events, a record on the interrupt path is one `append`; it is packed into the ring when
    the CPU next has nothing better to do, after PENDING_MAX at the latest.
    """

    __slots__ = (
        "_base", "_buffer", "_capacity", "_drop", "_full", "_head", "_leave", "_open", "_publish",
        "_source", "_tail", "pending", "put", "sent", "shut", "ticket", "words",
    )  # fmt: skip

    def __init__(self, memory: Memory, process: int, source: int) -> None:
        """`process` chooses the ring: pCPUs first, then devices."""
        ring = memory.order_ring(process)
        self._base = ring + RING_HEADER_BYTES
        self._buffer = memory.buffer
        self._capacity = memory.shape.order_records
        self._head = 0
        self._publish = memory.u64(ring + R_HEAD).store
        self._tail = memory.u64(ring + R_TAIL).load
        self._drop = memory.u64(ring + R_DROPPED).fetch_add
        self._leave = memory.u64(ring + R_OPEN).store
        self._open = self._full = False
        self._source = source
        self.pending: list[Record] = []
        self.put = self.pending.append
        self.ticket = memory.u64(H_TICKET).fetch_add  # (1) -> how many have been taken before
        self.shut = False  # a step is under way: no interrupt window, no step of its own inside
        self.sent: tuple[int, ...] = ()  # (pCPU, id) of the message that the step sends
        self.words: tuple[int, ...] = ()  # what the step found in each of four words

    def enter(self) -> int:
        """Open a step that others can see: the ticket before it."""
        begin = self.ticket(1) + 1
        if not self._open:
            self._open = True
            self._leave(begin)
        self.shut = True
        return begin

    def close(
        self, code: int, begin: int, args: tuple[int, ...], result: Any, extra: tuple[int, ...]
    ) -> None:
        """Put the open step on record, with the ticket after it."""
        self.put((begin, self.ticket(1) + 1, code, args, result, extra))
        self.shut = False
        if len(self.pending) > PENDING_MAX:
            self.flush()

    def note(self, op: str, *args: int) -> None:
        """Put on record what nobody else can see."""
        self.put((0, 0, CODES[op], args, None, ()))

    def flush(self) -> None:
        """Pack what is pending into the ring and publish it.

        The first record that does not fit is the end of this process's record: what follows is
        only counted, and the step stays open.
        """
        head, mask = self._head, self._capacity - 1
        room = 0 if self._full else self._tail() + self._capacity - head
        for begin, end, code, args, result, extra in self.pending[:room]:
            at = self._base + (head & mask) * ORDER_BYTES
            fields = to_fields(args, result, extra)
            ORDER.pack_into(
                self._buffer, at, begin, end, code, fields[0], self._source, *fields[1:]
            )
            head += 1
        self._head = head
        self._publish(head)
        if len(self.pending) > room:
            self._drop(len(self.pending) - room)
            begins = [record[0] for record in self.pending[room:] if record[0]]
            if begins and not (self._full and self._open):
                self._open = True
                self._leave(begins[0])
            elif not self._full:
                self._open = False  # the next step that others can see is the one
            self._full = True
        self.pending.clear()
        if not self.shut and not self._full:
            self._open = False
            self._leave(0)


class _WatchedDesc(PiDesc):
    """A descriptor that says what a step found in each word of PIR."""

    __slots__ = ("_steps",)

    def __init__(self, memory: Memory, vcpu: int, steps: Steps) -> None:
        super().__init__(memory, vcpu)
        self._steps = steps

    def harvest(self) -> int:
        return self._found(super().harvest())

    def pir(self) -> int:
        return self._found(super().pir())

    def _found(self, bits: int) -> int:
        self._steps.words = tuple(bits >> 64 * i & MASK for i in range(4))
        return bits


class WatchedWord:
    """A word of the software VIRR that says what a merge found in it."""

    __slots__ = ("_exchange", "_i", "_load", "_steps", "fetch_or")

    def __init__(self, word: AtomicU64, steps: Steps, i: int) -> None:
        self._load, self._exchange, self.fetch_or = word.load, word.exchange, word.fetch_or
        self._steps, self._i = steps, i

    def load(self) -> int:
        return self._found(self._load())

    def exchange(self, value: int) -> int:
        return self._found(self._exchange(value))

    def _found(self, bits: int) -> int:
        words, i = self._steps.words or (0, 0, 0, 0), self._i
        self._steps.words = (*words[:i], bits, *words[i + 1 :])
        return bits


def watch_descriptors(memory: Memory, words: list[VcpuWords], steps: Steps) -> None:
    for of_vcpu in words:
        of_vcpu.desc = _WatchedDesc(memory, of_vcpu.index, steps)


# -- the steps ------------------------------------------------------------------------------------

OPENING: Final = frozenset({"local_irq_enable", "halt_poll_open"})  # besides what others can see


def shared(do: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The step `do`, which others can see, on record with its tickets."""
    code, of_words = CODES[name], name in OF_WORDS
    opens = KINDS[name] in (Kind.LOCKED, Kind.STORE, Kind.LOAD)

    def step(cpu: _Cpu, *args: Any) -> Any:
        order = cpu.order
        if order.shut:  # a step that is made of steps: what others see is the one
            return do(cpu, *args)
        begin = order.enter()
        result = do(cpu, *args)
        order.close(code, begin, args, result, order.words if of_words else order.sent)
        if order.sent:
            order.sent = ()
        if opens and cpu.irqs_on:
            cpu._step()  # noqa: SLF001  its own method: the wrapper stands beside the class
        return result

    return step


def own(do: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The step `do`, which only this CPU can see, on record."""
    code, opens = CODES[name], name in OPENING

    def step(cpu: _Cpu, *args: Any) -> Any:
        order = cpu.order
        if order.shut:
            return do(cpu, *args)
        order.shut = True
        result = do(cpu, *args)
        order.shut = False
        order.put((0, 0, code, args, result, ()))
        if opens and cpu.irqs_on:
            cpu._step()  # noqa: SLF001
        return result

    return step


def on_record(name: str, do: Callable[..., Any]) -> Callable[..., Any]:
    """The step `name`, as `do` does it, on record."""
    return shared(do, name) if name in SHARED else own(do, name)


def wants_order(cell: Cell) -> bool:
    """Is this run's order to be put on record?"""
    return cell.order is Order.TOTAL


def order_records(processes: int) -> int:
    """How many steps a ring holds: a launcher without a core may be half a second late."""
    return 1 << (RINGS_BYTES // (ORDER_BYTES * (processes + 1))).bit_length() - 1
