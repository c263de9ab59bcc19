"""The processes of a gated run: a nursery, one process per pCPU, one per sender.

The nursery outlives its caller: when he is gone, however he went, it kills the processes and
removes the run's sockets and shared memory; when it is killed itself, the kernel kills them
(PR_SET_PDEATHSIG).  It holds no ZeroMQ context: contexts do not survive a fork.
Before: `gated_run` forked the nursery.  The steps: `gated`.
"""

import contextlib
import ctypes
import gc
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import setproctitle

from emulator.hardware.senders import vtd_post
from emulator.kvm.deliver import vmx_deliver_posted_interrupt
from emulator.kvm.pid import vmx_pi_start_assignment
from emulator.machine.fabric import Fabric
from emulator.machine.gate import DivergedError, Gate, Schedule, Stopped
from emulator.machine.gated import GatedCpu
from emulator.machine.memory import Memory
from emulator.machine.nursery import PR_SET_TIMERSLACK, bury, die_with

TICK_S: Final = 0.005
CALLS: Final[dict[str, Callable[..., None]]] = {
    "vmx_deliver_posted_interrupt": vmx_deliver_posted_interrupt,
    "vtd_post": vtd_post,
    "vmx_pi_start_assignment": vmx_pi_start_assignment,
}

State = dict[str, Any]


def nursery_main(
    link: Connection, ends: dict[str, Connection], memory: Memory, schedule: Schedule, runtime: Path
) -> int:
    """The nursery's life; whatever goes wrong, nobody returns from here into the caller's text."""
    try:
        return nursery(link, ends, memory, schedule, runtime)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        sys.stderr.flush()
        return 1


def nursery(
    link: Connection, ends: dict[str, Connection], memory: Memory, schedule: Schedule, runtime: Path
) -> int:
    """Fork the processes, report their exits, clear up when the caller is gone."""
    os.setsid()  # Ctrl-C is the caller's business
    setproctitle.setproctitle("pirlab nursery (replay)")
    libc = ctypes.CDLL(None)
    gc.freeze()
    gc.disable()
    children: dict[int, str] = {}
    parent = os.getpid()
    for name, end in ends.items():
        pid = os.fork()
        if pid == 0:
            die_with(parent)
            link.close()
            libc.prctl(PR_SET_TIMERSLACK, 1)
            setproctitle.setproctitle(f"pirlab {name} (replay)")
            os._exit(process_main(name, end, memory, schedule, str(runtime)))
        children[pid] = name
    for end in ends.values():
        end.close()
    with contextlib.suppress(OSError):
        link.send(("started", {name: pid for pid, name in children.items()}))
        while not link.poll(TICK_S):  # it is only ever closed
            for pid in list(children):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    link.send(("exit", children.pop(pid), os.waitstatus_to_exitcode(status)))
    bury(children)
    shutil.rmtree(runtime, ignore_errors=True)
    return 0


def process_main(
    name: str, end: Connection, memory: Memory, schedule: Schedule, runtime: str
) -> int:
    """The whole life of a process; its exit status."""
    try:
        Process(name, end, memory, schedule, runtime).main()
    except BaseException:  # noqa: BLE001  the last line of defence: the caller hears of the exit
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


class Process:
    """A pCPU's process, or a sender's."""

    def __init__(
        self, name: str, end: Connection, memory: Memory, schedule: Schedule, runtime: str
    ) -> None:
        self._name = name
        self._end = end
        self._schedule = schedule
        self._net = Fabric(memory, runtime, "ipc", name)
        self._gate = Gate(memory, schedule, name, self._report)
        number = int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
        self._hosts_vcpus = name.startswith("pcpu")
        pcpu = number if self._hosts_vcpus else schedule.hosts + number
        self._cpu = GatedCpu(memory, self._net, schedule, pcpu, self._gate)

    def main(self) -> None:
        """Do the turns, run freely, stop."""
        self._end.send(("ready", {}))
        try:
            if self._hosts_vcpus:
                self._host()
            else:
                self._send()
        except Stopped:
            pass
        except DivergedError as error:
            self._end.send(("diverged", error.at, str(error), error.done))
        self._end.send(("final", self._state()))
        self._net.close()

    def _host(self) -> None:
        """A pCPU: its first vCPU's thread, then whatever its turns say."""
        schedule, cpu, gate = self._schedule, self._cpu, self._gate
        for vcpu, pin in enumerate(schedule.pins):
            if pin == cpu.pcpu and vcpu not in schedule.queued:
                cpu.run_thread(vcpu, returning=False)
        while True:
            turn = None if gate.free else gate.wait()
            if turn is None:
                cpu.idle_freely()
            elif turn.op == "context_switch":
                cpu.run_thread(turn.args[0], returning=True, turn=turn)
            elif not cpu.beside(turn):
                cpu.diverge(f"no thread is on pcpu {cpu.pcpu}, the schedule says {turn}")

    def _send(self) -> None:
        """A task elsewhere, or a device: one call after the other."""
        cpu, gate = self._cpu, self._gate
        cpu.actor = self._name
        while True:
            turn = gate.wait()
            while turn is None:
                gate.check_stop()
                time.sleep(TICK_S)
            match turn.op:
                case "call" | "assign":
                    if turn.op == "assign":
                        cpu.assign(True)
                    cpu.begin(turn)
                    CALLS[turn.args[0]](cpu, *turn.args[1:])
                case "unassign":
                    cpu.assign(False)
                    gate.publish()
                case "return" | "retire":
                    gate.publish()
                case _:
                    cpu.diverge(f"{self._name} is between two calls, the schedule says {turn}")

    def _report(self) -> None:
        self._end.send(("state", self._state()))

    def _state(self) -> State:
        """What this pCPU keeps for itself, as the model tells it."""
        cpu = self._cpu
        if not self._hosts_vcpus:
            return {}
        with contextlib.suppress(DivergedError):
            cpu.listen()
        return {
            "running": cpu.running,
            "irqs_off": int(not cpu.irqs_on),
            "non_root": int(not cpu.lp.in_root),
            "pending": sorted(cpu.on_the_wire),
            "current": cpu.thread,
        }
