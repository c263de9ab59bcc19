"""The `Cpu` of a device process: what the IOMMU does to a descriptor, and the host that owns it.

Only the steps that `hardware/senders` takes, and those of `vmx_pi_start_assignment()` (`kvm/pid`),
which the host's VFIO runs on a CPU outside the cluster.  There is no local APIC here: nothing
interrupts between two steps.  Events are those of `live`, recorded under the device's own number.
"""

import os
from collections.abc import Callable
from time import monotonic_ns
from typing import Final, cast

from emulator.config.model import Cell
from emulator.events import DEVICE_BASE, Event
from emulator.hardware.cpu import Control
from emulator.hardware.vectors import RESCHEDULE_VECTOR, Mode
from emulator.kvm.cpu import Cpu
from emulator.kvm.params import Request, TaskState
from emulator.machine.descriptors import control_of
from emulator.machine.fabric import VERSION, Fabric
from emulator.machine.memory import Memory, smp_mb
from emulator.machine.recorder import Recorder
from emulator.machine.words import all_words

NOT_A_PCPU: Final = -1
RUNNING: Final = int(TaskState.RUNNING)
INTERRUPTIBLE: Final = int(TaskState.INTERRUPTIBLE)
SLEEPING: Final = int(TaskState.SLEEPING)


class DeviceCpu:
    """What protocol text may do from a device's process."""

    def __init__(
        self, memory: Memory, fabric: Fabric, cell: Cell, device: int, recorder: Recorder
    ) -> None:
        self.kvm = cell.kvm
        self.process = cell.pcpus + device  # among those of the run, for its rings
        self.source = DEVICE_BASE + device
        self.words = all_words(memory)
        self.cause = (0, 0)  # what the post under way is for: (load, due ns)
        self._fabric = fabric
        self._note = recorder.append
        self._ids = self.source << 40

    def send(self, kind: Event, pcpu: int, vector: int, vcpu: int) -> None:
        """An interrupt message to a pCPU's local APIC, recorded as `kind`: NOTIFY or RAISE."""
        self._ids += 1
        ref = self._ids
        load, due = self.cause
        begin = monotonic_ns()
        self._fabric.send(pcpu, (VERSION, vector, self.source, vcpu, ref, begin, load, due))
        arg = monotonic_ns() if kind is Event.NOTIFY else due
        self._note((begin, arg, ref, kind, vector, self.source, vcpu, load))
        # The I/O thread that carries the message may be waiting for this very core.
        os.sched_yield()

    def call(self, text: Callable[..., None], *args: int) -> None:
        """Run a function of the protocol text on this CPU."""
        text(cast("Cpu", self), *args)  # what it calls is there; the rest of Cpu is not

    def store_has_pi_sender(self, vcpu: int) -> None:
        """The VM of `vcpu` has been given a device."""
        self.words[vcpu].has_pi_sender.store(1)

    # -- hardware/cpu.py ---------------------------------------------------------------------------

    def pi_test_and_set_pir(self, vcpu: int, vector: int) -> bool:
        mask = 1 << (vector & 63)
        was = self.words[vcpu].desc.set_pir[vector >> 6](mask) & mask
        load, due = self.cause
        kind = Event.POST_PIR_SET if was else Event.POST
        self._note((monotonic_ns(), due, 0, kind, vector, self.source, vcpu, load))
        return was != 0

    def pi_test_and_set_on_unless_sn(self, vcpu: int, urgent: bool) -> Control:
        return control_of(self.words[vcpu].desc.set_on_unless_sn(urgent))

    def send_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        self.send(Event.NOTIFY, pcpu, vector, vcpu)

    def trace(self, event: Event, vcpu: int, vector: int = 0, arg: int = 0) -> None:
        self._note((monotonic_ns(), arg, 0, event, vector, self.source, vcpu, self.cause[0]))

    # -- kvm/cpu.py --------------------------------------------------------------------------------

    def smp_processor_id(self) -> int:
        return NOT_A_PCPU

    def running_vcpu(self) -> int:
        return -1

    def make_request(self, vcpu: int, request: Request) -> None:
        self.words[vcpu].requests.fetch_or(request)

    def load_vcpu_cpu(self, vcpu: int) -> int:
        return self.words[vcpu].cpu.load()

    def cmpxchg_mode(self, vcpu: int, old: Mode, new: Mode) -> int:
        return self.words[vcpu].mode.cas(old, new)

    def rcuwait_wake_up(self, vcpu: int) -> bool:
        """As `live` does it; the thread goes where it last ran, and that pCPU is told."""
        smp_mb()
        words = self.words[vcpu]
        if not words.waiter.load():
            return False
        state = words.task_state
        if state.cas(INTERRUPTIBLE, RUNNING) == INTERRUPTIBLE:
            return True
        if state.load() != SLEEPING:
            return False
        pcpu = words.cpu.load()
        words.task_cpu.store(pcpu)
        if state.cas(SLEEPING, RUNNING) != SLEEPING:
            return False
        self.send_ipi(pcpu, RESCHEDULE_VECTOR, vcpu)
        return True
