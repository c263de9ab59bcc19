"""One pCPU process: start-up, the floor, the run, the report.

Forked by `nursery`, which has preloaded every import; single-threaded apart from ZeroMQ's I/O
thread.  It waits for the launcher's commands, and during the run it is a physical CPU: with a vCPU
to run it runs KVM's run loop, without one it idles and takes interrupts.
"""

import os
import sys
from time import monotonic_ns
from typing import Final

from emulator.config.model import Cell, Load, Via
from emulator.events import Event
from emulator.guest import PROGRAMS
from emulator.guest.program import Guest
from emulator.guest.workload import Stream, Workload
from emulator.hardware.vectors import MSR_X2APIC_ICR, MSR_X2APIC_SELF_IPI
from emulator.kvm.sched import kvm_sched_in, kvm_sched_out
from emulator.machine.audit import AuditedCpu, wants_audit
from emulator.machine.errors import RunBroken
from emulator.machine.fabric import (
    CMD_CONNECT,
    CMD_FLOOR,
    CMD_QUIT,
    CMD_RUN,
    PING,
    Fabric,
    Message,
)
from emulator.machine.linker import link_text
from emulator.machine.live import LiveCpu
from emulator.machine.memory import H_T0, P_ARRIVED, P_RUNG, PHASE_LOAD, Memory
from emulator.machine.ordered import OrderedCpu
from emulator.machine.recorder import Recorder
from emulator.machine.steps import wants_order

PING_DEADLINE_NS: Final = 2_000_000_000
BUSY_NS: Final = 18_000  # from an arrival to the answer, and from a send to the next PAUSE
MSR_OF_VIA: Final = {
    Via.TSC_DEADLINE: 0,
    Via.ICR: MSR_X2APIC_ICR,
    Via.SELF_IPI: MSR_X2APIC_SELF_IPI,
}


def log(text: str) -> None:
    """A line of this process's log."""
    sys.stderr.write(f"{monotonic_ns() / 1e9:.6f} {text}\n")
    sys.stderr.flush()


class Pcpu:
    """The process around the CPU."""

    def __init__(self, memory: Memory, cell: Cell, runtime: str, pcpu: int) -> None:
        self._memory = memory
        self._cell = cell
        self._pcpu = pcpu
        self._rung = memory.u64(memory.pcpu(pcpu, P_RUNG)).load
        self._store_arrived = memory.u64(memory.pcpu(pcpu, P_ARRIVED)).store
        self._arrived = 0
        self._recorder: Recorder | None = None
        self._fabric = Fabric(memory, runtime, cell.fabric.value, f"pcpu{pcpu}")

    def main(self) -> None:
        """Obey the launcher until it says CMD_QUIT."""
        self._fabric.report(["ready", self._pcpu])
        log("ready")
        while True:
            message = self._next()
            match message[1]:
                case command if command == CMD_CONNECT:
                    self._connect(message[3])
                case command if command == CMD_FLOOR:
                    self._floor(*message[3])
                case command if command == CMD_RUN:
                    self._run()
                case command if command == CMD_QUIT:
                    break
                case vector if vector > 0:
                    self._came_late(message)
                case _:  # a hello
                    pass
        log("quit")
        self._fabric.close()

    def _next(self) -> Message:
        """Block for the next message."""
        while True:
            message = self._fabric.receive()
            if message is not None:
                self._arrived += 1
                self._store_arrived(self._arrived)
                return message
            self._fabric.wait(1.0)

    def _came_late(self, message: Message) -> None:
        """A reschedule interrupt of a pCPU that stopped after this one: put it on record."""
        _, vector, _, vcpu, ref, begin, load, _ = message
        if self._recorder is not None:
            now = monotonic_ns()
            self._recorder.append((now, begin, ref, Event.ARRIVE, vector, self._pcpu, vcpu, load))
            self._recorder.flush()

    def _connect(self, peers: list[int]) -> None:
        """Make the connections that the run will use, so that none is made during it."""
        for peer in peers:
            self._fabric.connect_now(peer)
        self._fabric.report(["connected", self._pcpu])

    # -- the floor ---------------------------------------------------------------------------------

    def _floor(self, peer: int, rounds: int, serve: bool) -> None:
        """The bare transport: ping-pong with `peer`, waiting as a guest's spin loop waits.

        Same sockets, messages and doorbell as the run, no protocol.  Reports one-way times, ns.
        """
        samples = []
        if serve:
            self._ping(peer)
        else:
            self._fabric.report(["serving", self._pcpu])  # a ball served earlier would be missed
        for i in range(rounds):
            began = self._wait_ping()
            if began < 0:
                break
            samples.append(monotonic_ns() - began)
            if not serve or i + 1 < rounds:
                self._ping(peer)
        self._fabric.report(["floor", self._pcpu, samples])

    def _ping(self, peer: int) -> None:
        """Send the ball, and be as busy around it as a CPU that handles an interrupt.

        An answer that comes at once, from a process that then yields, finds the I/O threads awake
        and leaves them both cores: it shows the transport a quarter faster than any run sees it.
        """
        compute(BUSY_NS)
        self._fabric.send(peer, (1, PING, self._pcpu, 0, 0, monotonic_ns(), 0, 0))
        compute(BUSY_NS)

    def _wait_ping(self) -> int:
        """When the next ball was sent, -1 if none comes."""
        deadline = monotonic_ns() + PING_DEADLINE_NS
        while monotonic_ns() < deadline:
            message = self._fabric.receive() if self._rung() != self._arrived else None
            if message is None:
                os.sched_yield()
                continue
            self._arrived += 1
            self._store_arrived(self._arrived)
            if message[1] == PING:
                began: int = message[5]
                return began
        return -1

    # -- the run -----------------------------------------------------------------------------------

    def _run(self) -> None:
        """Be a physical CPU until the launcher stops it."""
        recorder = self._recorder = Recorder(self._memory, self._pcpu)
        cpu = cpu_class(self._cell)(
            self._memory, self._fabric, self._cell, self._pcpu, recorder, self._arrived,
            self._guest, vcpu_thread,
        )  # fmt: skip
        cpu.text = link_text(type(cpu), self._cell.kvm)
        mine = [v.index for v in self._cell.vcpus if v.pcpu == self._pcpu]
        log(f"running vCPUs {mine}")
        cpu.scheduler.run()
        self._arrived = cpu.arrived
        cpu.flush()
        log("stopped")
        pending = [v for v in range(256) if cpu.lapic.irr >> v & 1]
        self._fabric.report(["stopped", self._pcpu, pending])

    def _guest(self, cpu: LiveCpu, vcpu: int) -> Guest:
        """The guest of a vCPU: its program and what it has to do."""
        cell = self._cell
        me = cell.vcpus[vcpu]
        peers = [v.index for v in cell.vcpus if v.vm == me.vm]
        phase = self._memory.phase
        workload = Workload(
            number=me.number,
            neighbour=peers[(me.number + 1) % len(peers)],
            streams=tuple(stream_of(load) for load in cell.loads if load.vcpu == vcpu),
            start_ns=self._memory.view.load_u64(H_T0),
            seed=cell.run.seed,
            draining=lambda: phase() != PHASE_LOAD,
        )
        guest = Guest(PROGRAMS[me.guest], workload, cpu.lp, cpu)
        guest.execute_by(cpu.text.instructions)
        return guest


def cpu_class(cell: Cell) -> type[LiveCpu]:
    """Which pCPUs a run has."""
    if wants_order(cell):
        return OrderedCpu
    return AuditedCpu if wants_audit(cell) else LiveCpu


def compute(ns: int) -> None:
    """Keep the core for that long."""
    end = monotonic_ns() + ns
    while monotonic_ns() < end:
        pass


def vcpu_thread(cpu: LiveCpu, vcpu: int) -> None:
    """The thread behind a vCPU: ioctl(KVM_RUN) once, until a signal.

    A thread that has moved here begins again at the head of the run loop; it may have slept.
    """
    cpu.local_irq_disable()
    kvm_sched_in(cpu, vcpu)
    cpu.local_irq_enable()
    if cpu.vcpu_is_blocking(vcpu):
        cpu.finish_rcuwait(vcpu)
    cpu.text.vcpu_run(cpu, vcpu)
    cpu.local_irq_disable()
    kvm_sched_out(cpu, vcpu, preempted=False)


def stream_of(load: Load) -> Stream:
    """A load of the config as the guest's workload sees it."""
    return Stream(
        number=1 + load.index,
        msr=MSR_OF_VIA.get(load.via, 0),
        vector=load.vector,
        targets=load.targets,
        period_ns=1e9 / load.rate_per_s,
        poisson=load.arrival.value == "poisson",
        limit=load.count,
    )


def pcpu_main(memory: Memory, cell: Cell, runtime: str, pcpu: int) -> int:
    """The whole life of the process; its exit status."""
    try:
        Pcpu(memory, cell, runtime, pcpu).main()
    except RunBroken as error:
        log(f"broken: {error}")
        return 1
    return 0
