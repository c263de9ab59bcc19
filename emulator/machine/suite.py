"""Two pCPU processes that share one PI descriptor and do what they are asked, an order at a time.

`Pair` is the launcher's end: it starts a target (pCPU 0, which owns the vCPU) and a sender
(pCPU 1), asks them, and ends them.  `SuiteCpu` is a process's end: the live pCPU's own classes,
with the host's interrupts off.  What an order means is the caller's business: nothing here knows
of cases.
Between two orders a process is a CPU: a vector that comes is taken at once, by a spinning guest
through the doorbell word, by a halted one through the socket it sleeps on.

Nothing stays behind: both processes die with their launcher, and the runtime directory goes as
soon as everybody is connected, for mappings and connections outlive their names.
Next: `emulator/suite` puts golden cases to a pair.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from types import TracebackType
from typing import IO, Any, Final, Self

import setproctitle

from emulator.config.model import Cell, Run, Vcpu
from emulator.config.model import Fabric as Transport
from emulator.events import Event
from emulator.hardware.bare import Sent
from emulator.hardware.vmcs import Activity
from emulator.kvm.params import Kvm
from emulator.machine.descriptors import Descriptors
from emulator.machine.errors import LOG_TAIL_LINES, RunBroken, describe_exit
from emulator.machine.fabric import CMD_CONNECT, CMD_QUIT, CMD_RUN, VERSION, Fabric, Message
from emulator.machine.host import RUNTIME_PREFIX, runtime_root
from emulator.machine.memory import Memory, Shape
from emulator.machine.nursery import die_with
from emulator.machine.processor import DELIVER, IDLE_MAX_S
from emulator.machine.recorder import Recorder

TARGET: Final = 0  # pCPUs
SENDER: Final = 1
ROLES: Final = ("target", "sender")
VCPU: Final = 0

START_DEADLINE_S: Final = 30.0
ANSWER_DEADLINE_S: Final = 15.0
ARRIVAL_DEADLINE_NS: Final = 5_000_000_000  # shorter: whoever waits for a vector says so itself
QUIT_DEADLINE_S: Final = 5.0
TICK_S: Final = 0.02

SHAPE: Final = Shape(pcpus=len(ROLES), vcpus=1, devices=0, ring_records=64)
CELL: Final = Cell(
    name="suite",
    question="Do two processes do what one does?",
    pcpus=len(ROLES),
    fabric=Transport.IPC,
    vcpus=(Vcpu(index=VCPU, vm="suite", number=0, pcpu=TARGET, guest="spin"),),
    devices=(),
    loads=(),
    kvm=Kvm(),
    run=Run(warmup_ns=0, duration_ns=1, repeat=1, seed=0, watchdog_ns=0, drain_ns=0),
    expect=(),
)
"""What a pCPU must know of its run; here hardly anything depends on it."""


class SuiteCpu(Descriptors):
    """One of the two pCPUs.  `Cpu` for hardware text; `idt` is where the guest's interrupts go.

    An IPI that a text sends is noted in `sent` and leaves with `let_out()`, so that a wire can be
    as long as somebody needs it to be.  `taken` holds the vectors that have come.
    """

    def __init__(self, memory: Memory, fabric: Fabric, pcpu: int, arrived: int = 0) -> None:
        super().__init__(memory, fabric, CELL, pcpu, Recorder(memory, pcpu), arrived)
        self.irqs_on = False  # as around VM entry: only the guest takes vectors, or nobody
        self.current = VCPU
        self.idt: Callable[[int], None] = ignore
        self.orders: deque[Any] = deque()
        self.sent: list[Sent] = []
        self.taken: list[int] = []
        self.physical_eois = 0

    def renewed(self) -> "SuiteCpu":
        """The pCPU after a reset, on the same memory and the same wires."""
        return SuiteCpu(self.memory, self.fabric, self.pcpu, self.arrived)

    # -- what text does ----------------------------------------------------------------------------

    def lapic_eoi(self) -> None:
        self.physical_eois += 1
        super().lapic_eoi()

    def send_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        self.sent.append(Sent(pcpu, vector, vcpu))

    def let_out(self, vector: int) -> None:
        """The ICR write: ring the target's doorbell, send it `vector`."""
        self.post_ipi(TARGET, vector, VCPU)

    def trace(self, event: Event, vcpu: int, vector: int = 0, arg: int = 0) -> None:
        self.note((monotonic_ns(), arg, 0, event, vector, self.pcpu, vcpu, 0))

    def interrupt(self, vector: int) -> None:
        self.note((monotonic_ns(), 0, 0, DELIVER, vector, self.pcpu, VCPU, 0))
        self.idt(vector)

    # -- what comes over the fabric ----------------------------------------------------------------

    def _take(self, message: Message) -> None:
        super()._take(message)
        if message[1] >= 0:
            self.taken.append(message[1])

    def command(self, message: Message) -> None:
        match message[1]:
            case command if command == CMD_RUN:
                self.orders.append(message[3])
            case command if command == CMD_CONNECT:
                self.fabric.connect_now(TARGET)
                self.fabric.report(["connected", self.pcpu, None])
            case command if command == CMD_QUIT:
                self.stopping = True
            case _:  # a hello
                pass

    def next_order(self, take: Callable[[], None]) -> Any:
        """The launcher's next order, None if it has no more.  `take()` after each arrival."""
        self._run_until(lambda: self.orders or self.stopping, take)
        return self.orders.popleft() if self.orders else None

    def await_vector(self, vector: int, take: Callable[[], None]) -> None:
        """Until `vector` has come.  RunBroken if it does not."""
        deadline = monotonic_ns() + ARRIVAL_DEADLINE_NS
        self._run_until(lambda: vector in self.taken or monotonic_ns() > deadline, take)
        if vector not in self.taken:
            raise RunBroken(f"vector {vector:#x} was sent and has not come")
        self.taken.remove(vector)

    def await_quiet(self) -> None:
        """Until the doorbell has rung for nothing that has not come.  RunBroken if that fails."""
        deadline = monotonic_ns() + ARRIVAL_DEADLINE_NS
        self._run_until(
            lambda: self._rung() == self.arrived or monotonic_ns() > deadline, lambda: None
        )
        if self._rung() != self.arrived:
            raise RunBroken("the doorbell rang for a message that has not come")

    def _run_until(self, over: Callable[[], object], take: Callable[[], None]) -> None:
        """Be a CPU: spin at the doorbell while the guest is active, else sleep at the socket."""
        while not over():
            if not self.lp.in_root and self.lp.guest.activity is Activity.ACTIVE:
                if self._rung() == self.arrived:
                    os.sched_yield()
                elif self.look():
                    take()
            elif self.look():
                take()
            else:
                self.fabric.wait(IDLE_MAX_S)


def ignore(_vector: int) -> None:
    """The IDT of a pCPU without a guest."""


def enlist(runtime: str, pcpu: int, launcher: int) -> SuiteCpu:
    """Become one of a pair, that lives no longer than process `launcher`; report for duty."""
    die_with(launcher)
    setproctitle.setproctitle(f"pirlab pcpu {pcpu} (suite, {ROLES[pcpu]})")
    memory = Memory.open(Path(runtime, "memory"))
    cpu = SuiteCpu(memory, Fabric(memory, runtime, CELL.fabric.value, f"pcpu{pcpu}"), pcpu)
    cpu.fabric.report(["ready", pcpu, None])
    return cpu


class Pair:
    """The two processes, from the launcher's side.  Use as a context manager."""

    def __init__(self, module: str) -> None:
        """Each process is `python -m MODULE RUNTIME PCPU LAUNCHER`, for `enlist` to be given."""
        self._module = module
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[IO[bytes]] = []
        self._fabric: Fabric | None = None
        self._reports: list[list[Any]] = []

    @property
    def pids(self) -> dict[str, int]:
        """By role."""
        return {role: process.pid for role, process in zip(ROLES, self._processes, strict=True)}

    def __enter__(self) -> Self:
        """RunBroken if the processes do not come up; HostError without room for their memory."""
        self._runtime = runtime_root() / f"{RUNTIME_PREFIX}{os.getuid()}-{secrets.token_hex(4)}"
        self._runtime.mkdir(mode=0o700)
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        (self._runtime / "owner").write_text(f"{os.getpid()}\n", encoding="utf-8")
        memory = Memory.create(self._runtime / "memory", SHAPE)
        self._fabric = Fabric(memory, str(self._runtime), CELL.fabric.value, "launcher")
        for pcpu in range(len(ROLES)):
            log = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
            self._logs.append(log)
            command = [sys.executable, "-m", self._module, str(self._runtime), str(pcpu)]
            self._processes.append(
                subprocess.Popen(
                    [*command, str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is the launcher's business
                )
            )
        for pcpu in range(len(ROLES)):
            self._await("ready", pcpu, START_DEADLINE_S)
        for pcpu in range(len(ROLES)):
            self._send(pcpu, CMD_CONNECT, None)
            self._await("connected", pcpu, START_DEADLINE_S)
        shutil.rmtree(self._runtime)

    def ask(self, pcpu: int, order: Any) -> Any:
        """Its answer.  RunBroken, with role, pid and last log lines, if there is none in time."""
        self._send(pcpu, CMD_RUN, order)
        return self._await("answer", pcpu, ANSWER_DEADLINE_S)

    def _send(self, pcpu: int, command: int, argument: Any) -> None:
        assert self._fabric is not None
        try:
            self._fabric.send(pcpu, (VERSION, command, 0, argument, 0, 0, 0, 0))
        except RunBroken:
            self._watch()  # the reason, if it is that the process has died
            raise

    def _await(self, what: str, pcpu: int, within_s: float) -> Any:
        assert self._fabric is not None
        deadline = time.monotonic() + within_s
        while True:
            message = self._fabric.receive()
            if message is not None:
                self._reports.append(message[1:])
                continue
            for report in self._reports:
                if report[:2] == [what, pcpu]:
                    self._reports.remove(report)
                    return report[2]
            self._watch()
            if time.monotonic() > deadline:
                raise RunBroken(f"{self._name(pcpu)} did not report {what!r} within {within_s:g} s")
            self._fabric.wait(TICK_S)

    def _name(self, pcpu: int) -> str:
        return f"the {ROLES[pcpu]} (pid {self._processes[pcpu].pid})"

    def _watch(self) -> None:
        """RunBroken if one of the two has ended."""
        for pcpu, process in enumerate(self._processes):
            status = process.poll()
            if status is not None:
                log = os.pread(self._logs[pcpu].fileno(), 1 << 16, 0).decode(errors="replace")
                tail = "".join(f"\n    {line}" for line in log.splitlines()[-LOG_TAIL_LINES:])
                tail = f"; last lines of its log:{tail}" if tail else ""
                raise RunBroken(f"{self._name(pcpu)} {describe_exit(status)}{tail}")

    def close(self) -> None:
        """End both, whatever they do, and leave nothing behind."""
        for process in self._processes:
            process.kill()
            process.wait(QUIT_DEADLINE_S)
        if self._fabric is not None:
            self._fabric.close()
        for log in self._logs:
            log.close()
        shutil.rmtree(self._runtime, ignore_errors=True)

    def quit(self) -> None:
        """The orderly end.  RunBroken if a process does not come to it."""
        for pcpu, process in enumerate(self._processes):
            self._send(pcpu, CMD_QUIT, None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(QUIT_DEADLINE_S)
            if process.poll() != 0:
                self._watch()
                raise RunBroken(f"{self._name(pcpu)} did not end within {QUIT_DEADLINE_S:g} s")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.quit()
        finally:
            self.close()
