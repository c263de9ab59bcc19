"""One device process: a source of interrupts outside the vCPUs.

Remapped mode: it raises an ordinary host vector at a pCPU, and the host's handler posts
(`kvm/irq.vfio_msihandler`).  Posted mode: the IOMMU's remapping entry names a descriptor and a
vector, and `hardware/senders.vtd_post` runs here.  An entry may change from one to the other while
the load goes on (`switch`), and a device may be assigned while its vCPUs run or sleep.
Open loop: due times follow from rate and seed.
"""

import os
import time
from time import monotonic_ns
from typing import Final

from emulator.config.model import Cell, Load, Via
from emulator.events import Event
from emulator.guest.workload import DueTimes
from emulator.hardware.senders import vtd_post
from emulator.hardware.vectors import FIRST_DEVICE_VECTOR, POSTED_INTR_NESTED_VECTOR
from emulator.kvm.pid import vmx_pi_start_assignment
from emulator.machine.controls import vcpus_with_pi_sender
from emulator.machine.device_cpu import DeviceCpu
from emulator.machine.errors import HostError, RunBroken
from emulator.machine.fabric import CMD_CONNECT, CMD_QUIT, CMD_RUN, Fabric
from emulator.machine.memory import H_T0, PHASE_LOAD, Memory
from emulator.machine.ordered_senders import OrderedDeviceCpu
from emulator.machine.pcpu import log, stream_of
from emulator.machine.recorder import Recorder
from emulator.machine.steps import wants_order

SPIN_NS: Final = 200_000  # sleep up to here before a due time, then yield: a sleep is that coarse


def host_vectors(cell: Cell) -> dict[int, int]:
    """The host vector of each load that interrupts a pCPU, by the load's index."""
    loads = [load.index for load in cell.loads if load.on_pcpus]
    if len(loads) > POSTED_INTR_NESTED_VECTOR - 8 - FIRST_DEVICE_VECTOR:
        raise HostError(f"{len(loads)} device loads: a host has not that many vectors")
    return {load: FIRST_DEVICE_VECTOR + i for i, load in enumerate(loads)}


class Source:
    """One load of a device: its due times, its turn, whether the VM has the device yet."""

    def __init__(self, load: Load, start: int, seed: int) -> None:
        self.load = load
        self.start = start
        self.turn = 0
        self.assign_at = start + load.assigned_at_ns if load.assigned_at_ns else 0
        self._times = DueTimes(stream_of(load), start + load.assigned_at_ns, seed)
        self.due = next(self._times, 0)

    @property
    def next_ns(self) -> int:
        """When something is to be done for this load; 0: nothing any more."""
        return self.assign_at or self.due

    def advance(self) -> None:
        self.turn += 1
        self.due = next(self._times, 0)

    @property
    def posted(self) -> bool:
        """Does the remapping entry post, when the interrupt now due is raised?"""
        load = self.load
        if load.via is not Via.VT_D:
            return False
        return not load.switch_ns or (self.due - self.start) // load.switch_ns % 2 == 0


class Device:
    """The process of one device, with all the loads that name it."""

    def __init__(self, memory: Memory, cell: Cell, runtime: str, device: int) -> None:
        self._memory = memory
        self._cell = cell
        self._device = device
        self._fabric = Fabric(memory, runtime, cell.fabric.value, f"device{device}")
        self._recorder = Recorder(memory, cell.pcpus + device)
        kind = OrderedDeviceCpu if wants_order(cell) else DeviceCpu
        self._cpu = kind(memory, self._fabric, cell, device, self._recorder)

    def main(self) -> None:
        """Obey the launcher until it says CMD_QUIT."""
        self._fabric.report(["ready", self._cpu.source])
        while True:
            message = self._fabric.receive()
            if message is None:
                self._fabric.wait(1.0)
            elif message[1] == CMD_CONNECT:
                for pcpu in self._peers():
                    self._fabric.connect_now(pcpu)
                self._fabric.report(["connected", self._cpu.source])
            elif message[1] == CMD_RUN:
                self._run()
                self._fabric.report(["stopped", self._cpu.source, []])
            elif message[1] == CMD_QUIT:
                break
        self._fabric.close()

    def _loads(self) -> list[Load]:
        return [load for load in self._cell.loads if load.device == self._device]

    def _peers(self) -> list[int]:
        """The pCPUs that this device will interrupt; NDST may name any that a vCPU floats to."""
        vcpus = [self._cell.vcpus[target] for load in self._loads() for target in load.targets]
        if any(vcpu.floats for vcpu in vcpus):
            return list(range(self._cell.pcpus))
        raised = {pcpu for load in self._loads() for pcpu in load.on_pcpus}
        return sorted(raised | {vcpu.pcpu for vcpu in vcpus})

    def _run(self) -> None:
        """Raise each load's interrupts at their due times until the load is over."""
        start = self._memory.view.load_u64(H_T0)
        vectors = host_vectors(self._cell)
        sources = [Source(load, start, self._cell.run.seed) for load in self._loads()]
        while waiting := [source for source in sources if source.next_ns]:
            source = min(waiting, key=lambda each: each.next_ns)
            if not self._sleep_until(source.next_ns):
                break
            if source.assign_at:
                source.assign_at = 0
                self._assign(source.load)
            else:
                self._raise(source, vectors.get(source.load.index, 0))
                source.advance()
            self._recorder.flush()
        log("load over")

    def _raise(self, source: Source, vector: int) -> None:
        """MSI: a descriptor is posted to, or one host vector goes to one pCPU."""
        load, cpu = source.load, self._cpu
        target = load.targets[source.turn % len(load.targets)]
        cpu.cause = (1 + load.index, source.due)
        if source.posted:
            # ref 0: the IOMMU takes it, no pCPU does.
            record = (monotonic_ns(), source.due, 0, Event.RAISE, load.vector)
            self._recorder.append((*record, cpu.source, target, 1 + load.index))
            cpu.call(vtd_post, target, load.vector, load.urgent)
        else:
            pcpu = load.on_pcpus[source.turn % len(load.on_pcpus)]
            cpu.send(Event.RAISE, pcpu, vector, target)

    def _assign(self, load: Load) -> None:
        """kvm_arch_start_assignment(): the VM has a device from now on, and is told."""
        vcpus = sorted(vcpus_with_pi_sender(self._cell, [load]))
        log(f"{load.name}: assigned")
        self._cpu.cause = (0, 0)
        for vcpu in vcpus:
            self._cpu.store_has_pi_sender(vcpu)
        for vcpu in vcpus:
            self._cpu.call(vmx_pi_start_assignment, vcpu)

    def _sleep_until(self, due: int) -> bool:
        """Wait for a due time; false if the load is over first."""
        while True:
            if self._memory.phase() != PHASE_LOAD:
                return False
            left = due - monotonic_ns()
            if left <= 0:
                return True
            if left > SPIN_NS:
                time.sleep(min((left - SPIN_NS) * 1e-9, 0.05))
            else:
                os.sched_yield()


def device_main(memory: Memory, cell: Cell, runtime: str, device: int) -> int:
    """The whole life of the process; its exit status."""
    try:
        Device(memory, cell, runtime, device).main()
    except RunBroken as error:
        log(f"broken: {error}")
        return 1
    return 0
