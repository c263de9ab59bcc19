"""One device process: a source of interrupts outside the vCPUs.

Remapped mode: it raises an ordinary host vector at a pCPU, and the host's handler posts
(`kvm/irq.vfio_msihandler`).  Open loop: due times follow from rate and seed; a device that is
late says so.
"""

import os
import time
from time import monotonic_ns
from typing import Final

from emulator.config.model import Cell, Load
from emulator.events import DEVICE_BASE, Event
from emulator.guest.workload import DueTimes
from emulator.hardware.vectors import FIRST_DEVICE_VECTOR, POSTED_INTR_NESTED_VECTOR
from emulator.machine.errors import HostError, RunBroken
from emulator.machine.fabric import CMD_CONNECT, CMD_QUIT, CMD_RUN, Fabric
from emulator.machine.memory import H_T0, PHASE_LOAD, Memory
from emulator.machine.pcpu import log, stream_of
from emulator.machine.recorder import Recorder

SPIN_NS: Final = 200_000  # sleep up to here before a due time, then yield: a sleep is that coarse


def host_vectors(cell: Cell) -> dict[int, int]:
    """The host vector of each load that interrupts a pCPU, by the load's index."""
    loads = [load.index for load in cell.loads if load.on_pcpu is not None]
    if len(loads) > POSTED_INTR_NESTED_VECTOR - 8 - FIRST_DEVICE_VECTOR:
        raise HostError(f"{len(loads)} device loads: a host has not that many vectors")
    return {load: FIRST_DEVICE_VECTOR + i for i, load in enumerate(loads)}


class Device:
    """The process of one device, with all the loads that name it."""

    def __init__(self, memory: Memory, cell: Cell, runtime: str, device: int) -> None:
        self._memory = memory
        self._cell = cell
        self._device = device
        self._fabric = Fabric(memory, runtime, cell.fabric.value, f"device{device}")
        self._source = DEVICE_BASE + device
        self._ids = self._source << 40

    def main(self) -> None:
        """Obey the launcher until it says CMD_QUIT."""
        self._fabric.report(["ready", self._source])
        while True:
            message = self._fabric.receive()
            if message is None:
                self._fabric.wait(1.0)
            elif message[1] == CMD_CONNECT:
                for load in self._loads():
                    if load.on_pcpu is not None:
                        self._fabric.connect_now(load.on_pcpu)
                self._fabric.report(["connected", self._source])
            elif message[1] == CMD_RUN:
                self._run()
                self._fabric.report(["stopped", self._source, []])
            elif message[1] == CMD_QUIT:
                break
        self._fabric.close()

    def _loads(self) -> list[Load]:
        return [load for load in self._cell.loads if load.device == self._device]

    def _run(self) -> None:
        """Raise each load's interrupts at their due times until the load is over."""
        start = self._memory.view.load_u64(H_T0)
        recorder = Recorder(self._memory, self._cell.pcpus + self._device)
        vectors = host_vectors(self._cell)
        streams = [
            (load, DueTimes(stream_of(load), start, self._cell.run.seed), [0])
            for load in self._loads()
        ]
        upcoming = [(next(times, None), load, times, turn) for load, times, turn in streams]
        while True:
            upcoming = [item for item in upcoming if item[0] is not None]
            if not upcoming:
                break
            item = min(upcoming, key=lambda each: each[0] or 0)
            due, load, times, turn = item
            assert due is not None
            if not self._sleep_until(due):
                break
            target = load.targets[turn[0] % len(load.targets)]
            turn[0] += 1
            self._raise(recorder, load, vectors[load.index], target, due)
            upcoming[upcoming.index(item)] = (next(times, None), load, times, turn)
        log("load over")

    def _raise(self, recorder: Recorder, load: Load, vector: int, target: int, due: int) -> None:
        """MSI: one host vector to one pCPU."""
        assert load.on_pcpu is not None
        self._ids += 1
        begin = monotonic_ns()
        number = 1 + load.index
        recorder.append((begin, due, self._ids, Event.RAISE, vector, self._source, target, number))
        recorder.flush()
        message = (1, vector, self._source, target, self._ids, begin, 1 + load.index, due)
        self._fabric.send(load.on_pcpu, message)

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
