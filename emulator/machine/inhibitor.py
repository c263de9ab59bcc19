"""Whoever inhibits APICv, and lifts it again: a thread of the host outside the cluster.

Runs in the launcher, at the phases of `Kvm.apicv_inhibit_ns`, the load's first one active.  Its
kicks are numbered 0: they are host work, and no sender's of the account.
Before: `cluster`.  Next: `kvm/apicv` on each vCPU's own pCPU.
"""

from collections.abc import Callable
from time import monotonic_ns
from typing import cast

from emulator.config.model import Cell
from emulator.events import LAUNCHER
from emulator.hardware.vectors import Mode
from emulator.kvm.apicv import kvm_set_or_clear_apicv_inhibit
from emulator.kvm.cpu import Cpu
from emulator.kvm.params import Request
from emulator.machine.fabric import VERSION, Fabric
from emulator.machine.memory import H_APICV_INHIBITED, Memory
from emulator.machine.words import all_words


class InhibitorCpu:
    """What `kvm_set_or_clear_apicv_inhibit()` calls; nothing interrupts between two steps."""

    def __init__(self, memory: Memory, fabric: Fabric) -> None:
        self._words = all_words(memory)
        self._inhibited = memory.u32(H_APICV_INHIBITED)
        self._fabric = fabric

    def call(self, text: Callable[..., None], *args: int) -> None:
        """Run a function of the protocol text on this CPU."""
        text(cast("Cpu", self), *args)  # what it calls is there; the rest of Cpu is not

    def store_apicv_inhibited(self, inhibited: bool) -> None:
        self._inhibited.store(inhibited)

    def make_request(self, vcpu: int, request: Request) -> None:
        self._words[vcpu].requests.fetch_or(request)

    def cmpxchg_mode(self, vcpu: int, old: Mode, new: Mode) -> int:
        return self._words[vcpu].mode.cas(old, new)

    def load_vcpu_cpu(self, vcpu: int) -> int:
        return self._words[vcpu].cpu.load()

    def send_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        self._fabric.send(pcpu, (VERSION, vector, LAUNCHER, vcpu, 0, monotonic_ns(), 0, 0))


class Inhibitor:
    """Call `look()` regularly: a phase is as exact as that."""

    def __init__(self, cpu: InhibitorCpu, cell: Cell, start: int) -> None:
        """`start`: when the load does, ns."""
        self._cpu = cpu
        self._vcpus = len(cell.vcpus)
        self._phase_ns = cell.kvm.apicv_inhibit_ns
        self._start = start
        self._inhibits = False

    def look(self) -> None:
        """Change over if a phase has ended."""
        wanted = max(0, monotonic_ns() - self._start) // self._phase_ns % 2 == 1
        if wanted != self._inhibits:
            self._inhibits = wanted
            self._cpu.call(kvm_set_or_clear_apicv_inhibit, wanted, self._vcpus)
