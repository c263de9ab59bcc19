"""CPUs that put every step on record, with its place in an order that all of them share.

Used only where a config says `record: {order: total}`.  A step that others can see takes a ticket
from one shared counter before it and one after it; no lock is held across processes, so a process
that is killed in mid-step stops nobody.  Its ring says that a step was open (`R_OPEN`): what came
after that ticket may rest on a step that is not on record.

A ticket is a locked instruction, and drains the store buffer of its CPU: what a recorded run shows
is sequentially consistent, whatever the hardware could have done without the record.

A step ends before its interrupt window opens: what a handler does there is recorded behind it.
Before: `live`, `device_cpu` do the steps.  Next: the launcher drains the rings into `order.bin`;
`checker/path` reads it.  Layout of a record: `emulator/order.py`.
"""

from collections.abc import Callable
from typing import Any, Final

from emulator.config.model import Cell, Order
from emulator.events import Event
from emulator.guest.program import Guest
from emulator.hardware.cpu import Kind
from emulator.machine.device_cpu import DeviceCpu
from emulator.machine.fabric import CMD_STOP, Fabric, Message
from emulator.machine.live import LiveCpu
from emulator.machine.memory import H_TICKET, RING_HEADER_BYTES, Memory, PiDesc
from emulator.machine.recorder import R_DROPPED, R_HEAD, R_OPEN, R_TAIL, Recorder
from emulator.machine.words import VcpuWords
from emulator.order import (
    CALLS,
    CODES,
    KINDS,
    MASK,
    ORDER,
    ORDER_BYTES,
    SHARED,
    STEPS,
    to_fields,
)

OF_PIR: Final = frozenset({"pi_harvest", "pi_is_pir_empty"})  # one step for each word of PIR
PENDING_MAX: Final = 512  # records kept back from the ring
RINGS_BYTES: Final = 32 << 20  # of shared memory, for all processes

_Cpu = Any  # an OrderedCpu or an OrderedDeviceCpu: what a step is done on
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
        self.words: tuple[int, ...] = ()  # what the step found in each word of PIR

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


def watch_descriptors(memory: Memory, words: list[VcpuWords], steps: Steps) -> None:
    for of_vcpu in words:
        of_vcpu.desc = _WatchedDesc(memory, of_vcpu.index, steps)


# -- pCPUs ----------------------------------------------------------------------------------------


class OrderedCpu(LiveCpu):
    """LiveCpu, step by step on record.  Its steps are wrapped below, one by one."""

    __slots__ = ("_signal", "order")

    def __init__(
        self,
        memory: Memory,
        fabric: Fabric,
        cell: Cell,
        pcpu: int,
        recorder: Recorder,
        arrived: int,
        make_guest: Callable[[LiveCpu, int], Guest],
        thread: Callable[[LiveCpu, int], None],
    ) -> None:
        self._signal = 0  # the ticket before the launcher's signal
        body = _on_record(thread)
        super().__init__(memory, fabric, cell, pcpu, recorder, arrived, make_guest, body)
        self.order = Steps(memory, pcpu, pcpu)
        watch_descriptors(memory, self.words, self.order)

    # -- the interrupt window: after the step, not in it -------------------------------------------

    def _step(self) -> None:
        if not self.order.shut:
            super()._step()

    def window(self) -> None:
        if not self.order.shut:
            super().window()

    def handle_irq(self, vector: int) -> None:
        self.order.note("interrupt", vector)
        super().handle_irq(vector)
        self.order.note("iret")

    def preempt(self) -> None:
        self.order.note("call", CALLS.index("preempt_schedule"), self.running)
        super().preempt()

    # -- messages, and when there is time ----------------------------------------------------------

    def flush(self) -> None:
        self.order.flush()
        super().flush()

    def _take(self, message: Message) -> None:
        _, vector, sender, _, ref, *_ = message
        if vector < 0 and vector != CMD_STOP:
            super()._take(message)
            return
        begin = self.order.enter()
        super()._take(message)
        if vector < 0:
            self._signal = begin
            self.order.close(CODES["stop"], begin, (), None, ())
        else:
            self.order.close(CODES["arrive"], begin, (vector, sender, ref), None, ())

    def post_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        order = self.order
        begin = 0 if order.shut else order.enter()
        super().post_ipi(pcpu, vector, vcpu)
        if begin:
            order.close(CODES["raise_irq"], begin, (pcpu, vector, self._ids), None, ())
        else:
            order.sent = (pcpu, self._ids)

    # -- the guest ---------------------------------------------------------------------------------

    def non_root_event(self, vcpu: int) -> int:
        event = super().non_root_event(vcpu)
        vector = self.lp.exit_interruption_info & 0xFF
        self.order.put((0, 0, CODES["non_root_event"], (vcpu,), event, (vector,)))
        return event

    def interrupt(self, vector: int) -> None:
        self.order.note("deliver", vector)
        super().interrupt(vector)

    def on_eoi(self, vector: int) -> None:
        self.order.note("eoi", vector)
        super().on_eoi(vector)

    def on_self_ipi(self, vector: int, load: int, due: int) -> None:
        self.order.note("self_ipi", vector)
        super().on_self_ipi(vector, load, due)

    def send_virtual_ipi(self) -> None:
        call = CALLS.index("ipi_virtualization")
        self.order.note("call", call, *self.lp.ipi)
        super().send_virtual_ipi()

    # -- threads -----------------------------------------------------------------------------------

    def context_switch(self, vcpu: int) -> None:
        self.order.note("context_switch", vcpu)
        super().context_switch(vcpu)
        # Whoever runs again finds itself runnable, and nobody but itself ends that: a look now is
        # as good as the scheduler's.  The signal that ends the run may have roused it long ago.
        signal = (self._signal,) if self._signal else ()
        self.order.close(CODES["switch_in"], self.order.enter(), (vcpu,), None, signal)


def _on_record(thread: Callable[[LiveCpu, int], None]) -> Callable[[LiveCpu, int], None]:
    """The thread behind a vCPU, with its beginning and its end on record."""

    def body(cpu: LiveCpu, vcpu: int) -> None:
        assert isinstance(cpu, OrderedCpu)
        order = cpu.order
        order.close(CODES["thread"], order.enter(), (vcpu,), None, ())
        thread(cpu, vcpu)
        order.note("thread_end", vcpu)

    return body


# -- devices --------------------------------------------------------------------------------------


class OrderedDeviceCpu(DeviceCpu):
    """DeviceCpu, step by step on record."""

    def __init__(self, memory: Memory, *rest: Any) -> None:
        super().__init__(memory, *rest)
        self.order = Steps(memory, self.process, self.source)
        watch_descriptors(memory, self.words, self.order)
        self.irqs_on = False  # nothing interrupts between two steps

    def call(self, text: Callable[..., None], *args: int) -> None:
        self.order.note("call", CALLS.index(text.__name__), *args)
        super().call(text, *args)
        self.order.flush()

    def store_has_pi_sender(self, vcpu: int) -> None:
        begin = self.order.enter()
        super().store_has_pi_sender(vcpu)
        self.order.close(CODES["assign"], begin, (vcpu,), None, ())

    def send(self, kind: Event, pcpu: int, vector: int, vcpu: int) -> None:
        order = self.order
        begin = 0 if order.shut else order.enter()
        super().send(kind, pcpu, vector, vcpu)
        if begin:
            order.close(CODES["raise_irq"], begin, (pcpu, vector, self._ids), None, ())
            order.flush()
        else:
            order.sent = (pcpu, self._ids)


# -- the steps ------------------------------------------------------------------------------------

WRITTEN_OUT: Final = frozenset({"non_root_event", "context_switch"})
OPENING: Final = frozenset({"local_irq_enable", "halt_poll_open"})  # besides what others can see


def _shared(do: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The step `do`, which others can see, on record with its tickets."""
    code, of_pir = CODES[name], name in OF_PIR
    opens = KINDS[name] in (Kind.LOCKED, Kind.STORE, Kind.LOAD)

    def step(cpu: _Cpu, *args: Any) -> Any:
        order = cpu.order
        if order.shut:  # a step that is made of steps: what others see is the one
            return do(cpu, *args)
        begin = order.enter()
        result = do(cpu, *args)
        order.close(code, begin, args, result, order.words if of_pir else order.sent)
        if order.sent:
            order.sent = ()
        if opens and cpu.irqs_on:
            cpu._step()  # noqa: SLF001  its own method: the wrapper stands beside the class
        return result

    return step


def _own(do: Callable[..., Any], name: str) -> Callable[..., Any]:
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


for _name in STEPS:
    _wrap = _shared if _name in SHARED else _own
    if _name not in WRITTEN_OUT:
        setattr(OrderedCpu, _name, _wrap(getattr(LiveCpu, _name), _name))
    if hasattr(DeviceCpu, _name):
        setattr(OrderedDeviceCpu, _name, _wrap(getattr(DeviceCpu, _name), _name))


def wants_order(cell: Cell) -> bool:
    """Is this run's order to be put on record?"""
    return cell.order is Order.TOTAL


def order_records(processes: int) -> int:
    """How many steps a ring holds: a launcher without a core may be half a second late."""
    return 1 << (RINGS_BYTES // (ORDER_BYTES * processes)).bit_length() - 1
