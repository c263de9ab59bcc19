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
    EXTRA_AT,
    KINDS,
    MASK,
    ORDER,
    ORDER_BYTES,
    SHARED,
    STEPS,
    pack_result,
)

OF_PIR: Final = frozenset({"pi_harvest", "pi_is_pir_empty"})  # one step for each word of PIR
NO_STEPS: Final = (0, 0)

_Cpu = Any  # an OrderedCpu or an OrderedDeviceCpu: what a step is done on


class Steps:
    """The producer's end of one ring, and this process's hand on the ticket counter."""

    __slots__ = (
        "_base", "_buffer", "_capacity", "_drop", "_head", "_publish", "_source", "_tail", "leave",
        "sent", "shut", "ticket", "words",
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
        self._source = source
        self.leave = memory.u64(ring + R_OPEN).store
        self.ticket = memory.u64(H_TICKET).fetch_add  # (1) -> how many have been taken before
        self.shut = False  # a step is under way: no interrupt window, no step of its own inside
        self.sent: tuple[int, ...] = ()  # (pCPU, id) of the message that the step sends
        self.words: tuple[int, ...] = ()  # what the step found in each word of PIR

    def enter(self) -> int:
        """Open a step: the ticket before it."""
        begin = self.ticket(1) + 1
        self.leave(begin)
        self.shut = True
        return begin

    def close(
        self, code: int, begin: int, args: tuple[Any, ...], result: Any, extra: tuple[int, ...] = ()
    ) -> None:
        """Put the open step on record, with the ticket after it."""
        end = self.ticket(1) + 1
        self.put(code, args, result, extra, (begin, end))
        self.shut = False
        self.leave(0)

    def put(
        self,
        code: int,
        args: tuple[Any, ...] = (),
        result: Any = None,
        extra: tuple[int, ...] = (),
        tickets: tuple[int, int] = NO_STEPS,
    ) -> None:
        """One record into the ring; a full ring drops it and counts."""
        head = self._head
        if head - self._tail() >= self._capacity:
            self._drop(1)
            return
        rest = [arg & MASK for arg in args[1:]]
        rest += [0] * (3 - len(rest))
        rest += pack_result(result)
        for at, word in zip(EXTRA_AT[len(extra)], extra, strict=True):
            rest[at] = word
        ORDER.pack_into(
            self._buffer, self._base + (head & self._capacity - 1) * ORDER_BYTES,
            *tickets, code, len(args) | len(extra) << 4, self._source, args[0] if args else 0,
            *rest,
        )  # fmt: skip
        self._head = head + 1
        self._publish(head + 1)


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
        self.order.put(CODES["interrupt"], (vector,))
        super().handle_irq(vector)
        self.order.put(CODES["iret"])

    def preempt(self) -> None:
        self.order.put(CODES["call"], (CALLS.index("preempt_schedule"), self.running))
        super().preempt()

    # -- messages ----------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        _, vector, sender, _, ref, *_ = message
        if vector < 0 and vector != CMD_STOP:
            super()._take(message)
            return
        begin = self.order.enter()
        super()._take(message)
        if vector < 0:
            self._signal = begin
            self.order.close(CODES["stop"], begin, (), None)
        else:
            self.order.close(CODES["arrive"], begin, (vector, sender, ref), None)

    def post_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        order = self.order
        begin = 0 if order.shut else order.enter()
        super().post_ipi(pcpu, vector, vcpu)
        if begin:
            order.close(CODES["raise_irq"], begin, (pcpu, vector, self._ids), None)
        else:
            order.sent = (pcpu, self._ids)

    # -- the guest ---------------------------------------------------------------------------------

    def non_root_event(self, vcpu: int) -> int:
        event = super().non_root_event(vcpu)
        vector = self.lp.exit_interruption_info & 0xFF
        self.order.put(CODES["non_root_event"], (vcpu,), event, (vector,))
        return event

    def interrupt(self, vector: int) -> None:
        self.order.put(CODES["deliver"], (vector,))
        super().interrupt(vector)

    def on_eoi(self, vector: int) -> None:
        self.order.put(CODES["eoi"], (vector,))
        super().on_eoi(vector)

    def on_self_ipi(self, vector: int, load: int, due: int) -> None:
        self.order.put(CODES["self_ipi"], (vector,))
        super().on_self_ipi(vector, load, due)

    def send_virtual_ipi(self) -> None:
        call = CALLS.index("ipi_virtualization")
        self.order.put(CODES["call"], (call, *self.lp.ipi))
        super().send_virtual_ipi()

    # -- threads -----------------------------------------------------------------------------------

    def context_switch(self, vcpu: int) -> None:
        self.order.put(CODES["context_switch"], (vcpu,))
        super().context_switch(vcpu)
        # Whoever runs again finds itself runnable, and nobody but itself ends that: a look now is
        # as good as the scheduler's.  The signal that ends the run may have roused it long ago.
        begin, roused = self.order.enter(), (1,) if self._signal else ()
        self.order.close(CODES["switch_in"], self._signal or begin, (vcpu,), None, roused)


def _on_record(thread: Callable[[LiveCpu, int], None]) -> Callable[[LiveCpu, int], None]:
    """The thread behind a vCPU, with its beginning and its end on record."""

    def body(cpu: LiveCpu, vcpu: int) -> None:
        assert isinstance(cpu, OrderedCpu)
        order = cpu.order
        order.close(CODES["thread"], order.enter(), (vcpu,), None)
        thread(cpu, vcpu)
        order.put(CODES["thread_end"], (vcpu,))

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
        self.order.put(CODES["call"], (CALLS.index(text.__name__), *args))
        super().call(text, *args)

    def store_has_pi_sender(self, vcpu: int) -> None:
        begin = self.order.enter()
        super().store_has_pi_sender(vcpu)
        self.order.close(CODES["assign"], begin, (vcpu,), None)

    def send(self, kind: Event, pcpu: int, vector: int, vcpu: int) -> None:
        order = self.order
        begin = 0 if order.shut else order.enter()
        super().send(kind, pcpu, vector, vcpu)
        if begin:
            order.close(CODES["raise_irq"], begin, (pcpu, vector, self._ids), None)
        else:
            order.sent = (pcpu, self._ids)


# -- the steps ------------------------------------------------------------------------------------

WRITTEN_OUT: Final = frozenset({"non_root_event", "context_switch"})
OPENING: Final = frozenset({"local_irq_enable", "halt_poll_open"})  # besides what others can see


def _wrap(cls: type, name: str) -> Callable[..., Any]:
    """The method `name` of `cls`, on record."""
    do = getattr(cls, name)
    code, shared, of_pir = CODES[name], name in SHARED, name in OF_PIR
    opens = KINDS[name] in (Kind.LOCKED, Kind.STORE, Kind.LOAD) or name in OPENING

    def step(cpu: _Cpu, *args: Any) -> Any:
        order = cpu.order
        if order.shut:  # a step that is made of steps: what others see is the one
            return do(cpu, *args)
        begin = order.enter() if shared else 0
        order.shut = True
        result = do(cpu, *args)
        if shared:
            extra = order.words if of_pir else order.sent
            order.close(code, begin, args, result, extra)
            order.sent = ()
        else:
            order.put(code, args, result)
            order.shut = False
        if opens and cpu.irqs_on:
            cpu._step()  # noqa: SLF001  its own method: the wrapper stands beside the class
        return result

    return step


for _name in STEPS:
    if _name not in WRITTEN_OUT:
        setattr(OrderedCpu, _name, _wrap(LiveCpu, _name))
    if hasattr(DeviceCpu, _name):
        setattr(OrderedDeviceCpu, _name, _wrap(DeviceCpu, _name))


def wants_order(cell: Cell) -> bool:
    """Is this run's order to be put on record?"""
    return cell.order is Order.TOTAL
