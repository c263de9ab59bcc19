"""Senders outside the pCPUs, step by step on record: devices, and whoever inhibits APICv.

Nothing interrupts them between two steps, and there is always time to publish what is recorded.
Before: `device_cpu`, `inhibitor` do the steps.  Beside: `steps` records them; `ordered` is a pCPU.
"""

from collections.abc import Callable
from typing import Any

from emulator.events import LAUNCHER, Event
from emulator.machine.device_cpu import DeviceCpu
from emulator.machine.inhibitor import InhibitorCpu
from emulator.machine.memory import Memory
from emulator.machine.steps import Steps, on_record, watch_descriptors
from emulator.order import CALLS, CODES, STEPS


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


class OrderedInhibitorCpu(InhibitorCpu):
    """InhibitorCpu, step by step on record: the launcher's own ring is the last."""

    def __init__(self, memory: Memory, *rest: Any) -> None:
        super().__init__(memory, *rest)
        self.order = Steps(memory, memory.shape.processes, LAUNCHER)
        self.irqs_on = False

    def call(self, text: Callable[..., None], *args: int) -> None:
        self.order.note("call", CALLS.index(text.__name__), *args)
        super().call(text, *args)
        self.order.flush()

    def send_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        super().send_ipi(pcpu, vector, vcpu)
        self.order.sent = (pcpu, 0)


for _name in STEPS:
    for _ordered, _base in ((OrderedDeviceCpu, DeviceCpu), (OrderedInhibitorCpu, InhibitorCpu)):
        if hasattr(_base, _name):
            setattr(_ordered, _name, on_record(_name, getattr(_ordered, _name)))
