"""A pCPU that puts every step on record, with its place in an order that all processes share.

A step ends before its interrupt window opens: what a handler does there is recorded behind it.
Interrupts, messages, threads and what the guest does by itself are on record, too.
Before: `live` does the steps.  Beside: `steps` records them; `ordered_senders` are the others.
"""

from collections.abc import Callable
from typing import Any, Final, cast

from emulator.config.model import Cell
from emulator.guest.program import Guest
from emulator.machine.fabric import CMD_STOP, Fabric, Message
from emulator.machine.live import LiveCpu
from emulator.machine.memory import Memory
from emulator.machine.recorder import Recorder
from emulator.machine.steps import Steps, WatchedWord, on_record, watch_descriptors
from emulator.order import CALLS, CODES, STEPS

WRITTEN_OUT: Final = frozenset({"non_root_event", "context_switch"})


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
        self._soft_virr = [
            [cast("Any", WatchedWord(word, self.order, i)) for i, word in enumerate(words)]
            for words in self._soft_virr
        ]

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


for _name in STEPS:
    if _name not in WRITTEN_OUT:
        setattr(OrderedCpu, _name, on_record(_name, getattr(LiveCpu, _name)))
