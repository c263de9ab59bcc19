"""The launcher's side of one run: start the processes, watch them, stop them, collect.

    create      runtime directory (0700, shared-memory file system), mapped file, sockets
    start       nursery -> every pCPU and device; each says ready
    connect     every connection that the run will use
    floor       the bare transport between two of the pCPUs; again after the load
    load        warm-up and measured part; rings are drained, the watchdog looks
    drain       the load is over; wait until nothing is under way
    stop        every pCPU stops; the state at the end is read

Every wait has a deadline.  Whatever happens, `close()` leaves no process, socket or shared-memory
file; what was measured until then is on disk.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic_ns
from types import TracebackType
from typing import Any, Final, Self

import msgpack

from emulator.config.model import Cell, to_plain
from emulator.machine.controls import vcpus_with_pi_sender
from emulator.machine.end_state import end_state
from emulator.machine.errors import RunBroken, describe_exit, log_tail
from emulator.machine.fabric import (
    CMD_CONNECT,
    CMD_FLOOR,
    CMD_QUIT,
    CMD_RUN,
    CMD_STOP,
    VERSION,
    Fabric,
)
from emulator.machine.host import RUNTIME_PREFIX, check_host, runtime_root, traffic
from emulator.machine.inhibitor import Inhibitor, InhibitorCpu
from emulator.machine.memory import (
    H_T0,
    P_ARRIVED,
    P_RUNG,
    PHASE_DRAIN,
    PHASE_LOAD,
    Memory,
    Shape,
)
from emulator.machine.ordered_senders import OrderedInhibitorCpu
from emulator.machine.recorder import Drain
from emulator.machine.steps import order_records, wants_order
from emulator.machine.watchdog import Loss, Watchdog
from emulator.machine.words import all_words
from emulator.order import ORDER_FILE

START_DEADLINE_S: Final = 30.0
STOP_DEADLINE_S: Final = 10.0
FLOOR_DEADLINE_S: Final = 10.0
FLOOR_ROUNDS: Final = 500  # before the load and after it: 2000 one-way samples, enough for a p99
TICK_S: Final = 0.02
LOAD_LEAD_NS: Final = 20_000_000  # from the start signal to the first due time
SOCKET_PATH_MAX: Final = 107  # sizeof(sockaddr_un.sun_path) - 1


@dataclass(slots=True, kw_only=True)
class RunResult:
    """What a run leaves in memory; the events are on disk.  Times in ns, CLOCK_MONOTONIC."""

    status: str = "died"  # "complete" | "interrupted" | "died"
    reason: str = ""  # one sentence, for a run that died
    measure_from_ns: int = 0
    measure_to_ns: int = 0
    started_s: float = 0.0
    floor_ns: list[int] = field(default_factory=list)
    counters: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0
    order_end: dict[str, Any] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    start_s: float = 0.0  # how long start-up and stop took
    stop_s: float = 0.0


class Cluster:
    """The processes of one run.  Use as a context manager."""

    def __init__(
        self, cell: Cell, run_dir: Path, progress: Callable[[str, float, int], None]
    ) -> None:
        """`progress(phase, fraction, events)` is called a few times a second."""
        self._cell = cell
        self._run_dir = run_dir
        self._progress = progress
        self.result = RunResult()
        self._pids: dict[str, int] = {}
        self._exited: dict[str, int] = {}
        self._finishing = False  # a second Ctrl-C must not cut the orderly end short
        self._quitting = False
        self._loaded = False  # the pCPUs run: there is something to stop in order
        self.interrupted = False  # set by a signal handler
        self._nursery: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._fabric: Fabric | None = None
        self._drain: Drain | None = None
        self._reports: list[list[Any]] = []

    # -- start -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        began = time.monotonic()
        cell = self._cell
        check_host(cell)
        self.runtime = runtime_root() / f"{RUNTIME_PREFIX}{os.getuid()}-{secrets.token_hex(4)}"
        self.runtime.mkdir(mode=0o700)
        try:
            self._start(cell)
        except BaseException:
            self.close()
            raise
        self.result.start_s = time.monotonic() - began
        return self

    def _start(self, cell: Cell) -> None:
        (self.runtime / "owner").write_text(f"{os.getpid()}\n{self._run_dir}\n", encoding="utf-8")
        (self.runtime / "cell").write_bytes(msgpack.packb(to_plain(cell)))
        processes = cell.pcpus + len(cell.devices)
        shape = Shape(
            pcpus=cell.pcpus,
            vcpus=len(cell.vcpus),
            devices=len(cell.devices),
            ring_records=1 << (16 if processes <= 16 else 14),
            order_records=order_records(processes) if wants_order(cell) else 0,
        )
        self._memory = Memory.create(self.runtime / "memory", shape)
        self._words = all_words(self._memory)
        assigned = [load for load in cell.loads if not load.assigned_at_ns]
        hardware_posts_to = vcpus_with_pi_sender(cell, assigned)
        for vcpu in cell.vcpus:
            words = self._words[vcpu.index]
            # SN = 1 until the first load.
            posted_to = vcpu.index in hardware_posts_to
            words.reset(vcpu.pcpu, has_pi_sender=posted_to, suppressed=True)
            words.claim.store(1)
        order = (self._run_dir / ORDER_FILE).open("wb") if shape.order_records else None
        self._drain = Drain(self._memory, (self._run_dir / "events.bin").open("wb"), order)
        self._watchdog = Watchdog(self._memory, cell)
        self._fabric = Fabric(self._memory, str(self.runtime), cell.fabric.value, "launcher")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link = ours
        os.set_inheritable(theirs.fileno(), True)
        command = [sys.executable, "-m", "emulator.machine.nursery"]
        with (self._run_dir / "log" / "nursery.log").open("wb") as log:
            self._nursery = subprocess.Popen(
                [*command, str(self.runtime), str(self._run_dir), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        theirs.close()
        self._await("ready", processes, START_DEADLINE_S)

    # -- the run -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Connect, floor, load, drain, stop.

        KeyboardInterrupt, once `interrupted` is set, leaves a run that `finish()` can stop.
        """
        cell = self._cell
        self._connect()
        self._measure_floor()
        start = monotonic_ns() + LOAD_LEAD_NS
        self._memory.view.store_u64(H_T0, start)
        self._memory.set_phase(PHASE_LOAD)
        self._tell_all(CMD_RUN)
        self._loaded = True
        result = self.result
        result.measure_from_ns = start + cell.run.warmup_ns
        end = result.measure_from_ns + cell.run.duration_ns
        result.started_s = time.time() + (result.measure_from_ns - monotonic_ns()) * 1e-9
        total = end - start
        assert self._fabric is not None
        inhibits = cell.kvm.apicv_inhibit_ns
        host = OrderedInhibitorCpu if wants_order(cell) else InhibitorCpu
        inhibitor = Inhibitor(host(self._memory, self._fabric), cell, start) if inhibits else None
        while (now := monotonic_ns()) < end and not result.losses:
            fraction = max(0.0, (now - start) / total)
            self._progress(
                "warm-up" if now < result.measure_from_ns else "load", fraction, self.events
            )
            self._tick()
            if inhibitor is not None:
                inhibitor.look()
            self._lose(self._watchdog.look())
        self.finish("complete")

    def finish(self, status: str) -> None:
        """End the load, let it settle, stop every pCPU, read the state at the end."""
        result = self.result
        if status == "interrupted" and not self._loaded:
            result.status = status
            return
        self._finishing = True
        now = monotonic_ns()
        if not result.measure_to_ns:
            result.measure_to_ns = max(now, result.measure_from_ns)
        self._memory.set_phase(PHASE_DRAIN)
        deadline = now + self._cell.run.drain_ns
        while monotonic_ns() < deadline and not result.losses and not self._quiet(deadline):
            self._progress("drain", 1.0, self.events)
            self._tick()
            self._lose(self._watchdog.look())
        if not result.losses and not self._quiet(deadline):
            self._lose(self._watchdog.overdue())
        began = time.monotonic()
        blocked = [self._watchdog.asleep(v.index) for v in self._cell.vcpus]
        self._tell_all(CMD_STOP, pcpus_only=True)
        stopped = self._await("stopped", self._shape.processes, STOP_DEADLINE_S)
        stop_s = time.monotonic() - began
        if status == "complete":
            self._measure_floor()  # again: a host's noise drifts, and both ends of the run count
        began = time.monotonic() - stop_s
        self._tell_all(CMD_QUIT)
        self._quitting = True
        self._await_exits()
        result.stop_s = time.monotonic() - began
        irr = {report[0]: report[1] for report in stopped}
        self._collect(blocked, irr)
        result.status = status

    def _lose(self, losses: list[Loss]) -> None:
        """Put what the watchdog found on record."""
        assert self._drain is not None
        for loss in losses:
            for record in loss.records():
                self._drain.write(record)
        self.result.losses += losses

    @property
    def events(self) -> int:
        return self._drain.events if self._drain else 0

    @property
    def _shape(self) -> Shape:
        return self._memory.shape

    def _connect(self) -> None:
        pairs = traffic(self._cell)
        assert self._fabric is not None
        for pcpu, peers in pairs.items():
            self._command(f"pcpu{pcpu}", CMD_CONNECT, sorted(peers))
        for device in range(self._shape.devices):
            self._command(f"device{device}", CMD_CONNECT, [])
        self._await("connected", self._shape.processes, START_DEADLINE_S)

    def _measure_floor(self) -> None:
        """Between the first two pCPUs that will talk; within one, if no two do."""
        pairs = traffic(self._cell)
        talking = [(a, b) for a, peers in pairs.items() for b in sorted(peers) if a != b]
        a, b = talking[0] if talking else (0, min(1, self._cell.pcpus - 1))
        if a != b:
            self._command(f"pcpu{b}", CMD_FLOOR, [a, FLOOR_ROUNDS, False])
            self._await("serving", 1, FLOOR_DEADLINE_S)
        self._command(f"pcpu{a}", CMD_FLOOR, [b, FLOOR_ROUNDS, True])
        self._progress("floor", 0.0, 0)
        for report in self._await("floor", 1 + (a != b), FLOOR_DEADLINE_S):
            self.result.floor_ns += report[1]

    def _quiet(self, deadline: int) -> bool:
        """Nothing is under way: no message, no PIR or VIRR bit, no timer that will fire in time."""
        load = self._memory.view.load_u64
        for pcpu in range(self._cell.pcpus):
            rung = load(self._memory.pcpu(pcpu, P_RUNG))
            if rung != load(self._memory.pcpu(pcpu, P_ARRIVED)):
                return False
        return not any(
            self._watchdog.pending(v.index)
            or 0 < self._words[v.index].tscdeadline.load() < deadline
            for v in self._cell.vcpus
        )

    # -- talking to processes ----------------------------------------------------------------------

    def _command(self, name: str, command: int, argument: Any = None) -> None:
        assert self._fabric is not None
        message = (VERSION, command, 0, argument, 0, 0, 0, 0)
        if name.startswith("pcpu"):
            self._fabric.send(int(name[4:]), message)
        else:
            self._fabric.tell(name, message)

    def _tell_all(self, command: int, *, pcpus_only: bool = False) -> None:
        for name in self._names():
            if name.startswith("pcpu") or not pcpus_only:
                self._command(name, command)

    def _names(self) -> Iterator[str]:
        yield from (f"pcpu{i}" for i in range(self._shape.pcpus))
        yield from (f"device{i}" for i in range(self._shape.devices))

    def _await(self, what: str, count: int, within_s: float) -> list[list[Any]]:
        """Collect `count` reports of one kind.  RunBroken names who is missing."""
        deadline = time.monotonic() + within_s
        found: list[list[Any]] = []
        while len(found) < count:
            self._tick()
            found += [r[1:] for r in self._reports if r[0] == what]
            self._reports = [r for r in self._reports if r[0] != what]
            if time.monotonic() > deadline:
                raise RunBroken(
                    f"{count - len(found)} of {count} processes did not report "
                    f"{what!r} within {within_s:g} s"
                )
        return found

    def _await_exits(self) -> None:
        deadline = time.monotonic() + STOP_DEADLINE_S
        while len(self._exited) < self._shape.processes:
            self._tick()
            if time.monotonic() > deadline:
                raise RunBroken(f"processes did not end within {STOP_DEADLINE_S:g} s")

    def _tick(self) -> None:
        """A moment of the launcher: reports, exits, rings."""
        assert self._fabric is not None
        assert self._drain is not None
        if self.interrupted and not self._finishing:
            raise KeyboardInterrupt
        message = self._fabric.receive()
        if message is None:
            self._fabric.wait(TICK_S)
            message = self._fabric.receive()
        while message is not None:
            self._reports.append(message[1:])
            message = self._fabric.receive()
        self._watch_nursery()
        self._drain.drain()

    def _watch_nursery(self) -> None:
        assert self._link is not None
        assert self._nursery is not None
        while True:
            try:
                data = self._link.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                if self._quitting and len(self._exited) >= self._shape.processes:
                    return
                raise RunBroken(
                    f"the nursery died (exit status {self._nursery.wait(5)})"
                    f"{log_tail(self._run_dir, 'nursery')}"
                )
            message = msgpack.unpackb(data)
            if message[0] == "started":
                self._pids = dict(message[1])
            else:
                _, name, pid, status = message
                self._exited[name] = status
                if not self._quitting or status:
                    raise RunBroken(
                        f"{name} (pid {pid}) {describe_exit(status)}{log_tail(self._run_dir, name)}"
                    )

    # -- the end -----------------------------------------------------------------------------------

    def _collect(self, blocked: list[bool], irr: dict[int, list[int]]) -> None:
        """The state at the end, when nobody writes any more."""
        assert self._drain is not None
        self._drain.drain()
        self.result.counters = end_state(self._memory, self._words, blocked, irr)
        self.result.dropped = self._drain.dropped()
        self.result.order_end = self._drain.order_end()

    def salvage(self, reason: str) -> None:
        """A process died: keep what its ring and everybody else's holds."""
        self.result.status = "died"
        self.result.reason = reason
        self.result.measure_to_ns = self.result.measure_to_ns or monotonic_ns()
        self._kill()
        with contextlib.suppress(OSError):  # the disk may be what broke the run
            self._collect([], {})
        self.result.counters.pop("vcpus", None)  # a state in mid-step: no account can be drawn

    def _kill(self) -> None:
        """End every process now: the nursery does it when its link closes."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._nursery is None:
            return
        try:
            self._nursery.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._nursery.kill()
            self._nursery.wait()
        for pid in self._pids.values():  # its children die with it; this is for a nursery killed
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._nursery = None

    def close(self) -> None:
        """Leave nothing behind but the run directory."""
        if not self._quitting:
            self._kill()
        elif self._nursery is not None:
            self._nursery.wait(STOP_DEADLINE_S)
        if self._link is not None:
            self._link.close()
        if self._fabric is not None:
            self._fabric.close()
        if self._drain is not None:
            with contextlib.suppress(OSError):
                self._drain.close()
        shutil.rmtree(self.runtime, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
