"""A gated run: real processes over ZeroMQ and the mapped file, one schedule, then freedom.

This is the side from which the processes are started, watched and read.  Every wait has a
deadline; whatever happens, no process, socket or shared-memory file stays behind.
Before: `live_replay` made the schedule.  The processes: `gated_process`.
"""

import contextlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

from emulator.hardware.vectors import Mode
from emulator.kvm.params import TaskState
from emulator.machine.descriptors import control_of
from emulator.machine.errors import RunBroken
from emulator.machine.gate import (
    FREE,
    H_TURN,
    NOT_STARTED,
    REPORT,
    STOP,
    Schedule,
)
from emulator.machine.gated import V_SAVED_MASKED
from emulator.machine.gated_process import State, nursery_main
from emulator.machine.host import runtime_root
from emulator.machine.memory import P_LIST, P_RUNG, V_SW_TIMER, Memory, Shape
from emulator.machine.words import all_words

RUN_DEADLINE_S: Final = 30.0  # for start-up, for the schedule, for the end: each
PREFIX: Final = "pirlab-replay-"
TICK_S: Final = 0.002
RING_RECORDS: Final = 8  # nothing is recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Diverged:
    """Where live and model part: turn `at` (from 0), done or about to be."""

    at: int
    process: str
    text: str
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the processes left: `at_end` of the schedule (or where it broke), `after` running free.

    States have the form of a counterexample's `final`.
    """

    diverged: Diverged | None
    at_end: State
    after: State
    timers: tuple[int, ...]  # vCPUs with an expiry still owed, after the free running
    masked: tuple[int, ...]  # vCPUs that sleep with interrupts off: they wait for none
    messages: int  # vectors that went over ZeroMQ
    schedule_s: float
    pids: dict[str, int]


def run_schedule(schedule: Schedule, free_s: float) -> Outcome:
    """Drive the processes through `schedule`, then let them run freely for `free_s` seconds.

    RunBroken if a process dies or a deadline passes.  Nothing stays behind.
    """
    with contextlib.ExitStack() as at_exit:
        processes = Processes(schedule)
        at_exit.callback(processes.close)
        return processes.run(free_s)


class Processes:
    """The processes of one gated run, from outside."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._runtime = runtime_root() / f"{PREFIX}{os.getuid()}-{secrets.token_hex(4)}"
        self._runtime.mkdir(mode=0o700)
        self._nursery = 0
        self._pids: dict[str, int] = {}
        try:
            (self._runtime / "owner").write_text(f"{os.getpid()}\n", encoding="utf-8")
            self._memory = create_memory(self._runtime / "memory", schedule)
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self._link, theirs = Pipe()
        pipes = {name: Pipe() for name in self._schedule.processes}
        sys.stdout.flush()
        sys.stderr.flush()
        self._nursery = os.fork()
        if self._nursery == 0:
            self._link.close()
            for ours, _ in pipes.values():
                ours.close()
            ends = {name: end for name, (_, end) in pipes.items()}
            os._exit(nursery_main(theirs, ends, self._memory, self._schedule, self._runtime))
        theirs.close()
        for _, end in pipes.values():
            end.close()
        self._pipes = {ours: name for name, (ours, _) in pipes.items()}
        self._open = list(self._pipes)

    # -- the run -----------------------------------------------------------------------------------

    def run(self, free_s: float) -> Outcome:
        """Start, schedule, report, freedom, stop."""
        memory, turns = self._memory, len(self._schedule.turns)
        turn = memory.u64(H_TURN)
        self._collect("ready")
        began = time.perf_counter()
        turn.store(0)
        diverged = self._watch(lambda: turn.load() >= turns, RUN_DEADLINE_S)
        schedule_s = time.perf_counter() - began
        if diverged is None:
            memory.set_phase(REPORT)
            at_end = read_state(memory, self._schedule, self._collect("state"))
            memory.set_phase(FREE)
            freed = time.monotonic()
            diverged = self._watch(lambda: time.monotonic() > freed + free_s, free_s + 1)
        memory.set_phase(STOP)
        after = read_state(memory, self._schedule, self._collect("final"))
        rung = (memory.view.load_u64(memory.pcpu(p, P_RUNG)) for p in range(self._schedule.hosts))
        return Outcome(
            diverged=diverged,
            at_end=after if diverged else at_end,
            after=after,
            timers=tuple(timers_owed(memory)),
            masked=tuple(masked(memory)),
            messages=sum(rung),
            schedule_s=schedule_s,
            pids=self._pids,
        )

    def _watch(self, over: Callable[[], bool], within_s: float) -> Diverged | None:
        """Until it is over, or a process says that it has diverged."""
        deadline = time.monotonic() + within_s
        while not over():
            for name, message in self._messages():
                if message[0] == "diverged":
                    at, text, done = message[1:]
                    return Diverged(at=at, process=name, text=text, done=done)
            if time.monotonic() > deadline:
                raise RunBroken(f"the schedule was not over within {within_s:g} s")
        return None

    def _collect(self, what: str) -> dict[str, State]:
        """One message of this kind from each process."""
        deadline = time.monotonic() + RUN_DEADLINE_S
        found: dict[str, State] = {}
        while len(found) < len(self._pipes):
            for name, message in self._messages():
                if message[0] == what:
                    found[name] = message[1]
            if time.monotonic() > deadline:
                raise RunBroken(f"{len(found)} of {len(self._pipes)} processes said {what!r}")
        return found

    def _messages(self) -> list[tuple[str, Any]]:
        """What the processes have said in the last moment.  RunBroken if one has died."""
        found: list[tuple[str, Any]] = []
        for ready in wait([*self._open, self._link], TICK_S):
            assert isinstance(ready, Connection)
            try:
                message = ready.recv()
            except EOFError as error:
                if ready is self._link:
                    raise RunBroken("the nursery of the replay has died") from error
                self._open.remove(ready)  # it has ended; the nursery says how
                continue
            if ready is not self._link:
                found.append((self._pipes[ready], message))
            elif message[0] == "started":
                self._pids = message[1]
            elif message[2]:
                raise RunBroken(f"{message[1]} died with status {message[2]}")
        return found

    def close(self) -> None:
        """The nursery kills what is left and clears up when the link is gone; make sure of it."""
        if self._nursery:
            self._link.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._nursery, 0)
            for pipe in self._pipes:
                pipe.close()
        shutil.rmtree(self._runtime, ignore_errors=True)


# -- the mapped file -------------------------------------------------------------------------------


def create_memory(path: Path, schedule: Schedule) -> Memory:
    """The file as the model's initial state has it: each first vCPU of a pCPU is loaded there."""
    count = len(schedule.pins)
    shape = Shape(pcpus=schedule.hosts + count, vcpus=count, devices=0, ring_records=RING_RECORDS)
    memory = Memory.create(path, shape)
    for words in all_words(memory):
        words.reset(
            schedule.pins[words.index],
            has_pi_sender=schedule.assigned,
            suppressed=words.index in schedule.queued,
        )
    memory.view.store_u64(H_TURN, NOT_STARTED)
    return memory


def read_state(memory: Memory, schedule: Schedule, told: dict[str, State]) -> State:
    """The state as the model tells it: from the file, and what each pCPU keeps for itself."""
    pcpus = []
    for p in range(schedule.hosts):
        base = memory.pcpu(p, P_LIST)
        listed = int.from_bytes(memory.buffer[base : base + 8], "little")
        wakeup_list = [v for v in range(8) if listed >> v & 1]
        pcpus.append({**told[f"pcpu{p}"], "wakeup_list": wakeup_list})
    where = {pcpu.pop("current"): p for p, pcpu in enumerate(pcpus)}
    vcpus = []
    for words in all_words(memory):
        control = control_of(words.desc.control())
        vcpus.append(
            {
                "pir": bits(words.desc.pir()),
                "on": int(control.on),
                "sn": int(control.sn),
                "nv": control.nv,
                "ndst": control.ndst,
                "mode": Mode(words.mode.load()).name,
                "virr": bits(memory.virr(words.index)),
                "state": TaskState(words.task_state.load()).name,
                "on_cpu": where.get(words.index, -1),
            }
        )
    return {"vcpus": vcpus, "pcpus": pcpus}


def bits(value: int) -> list[int]:
    """The vectors in a 256-bit number."""
    return [vector for vector in range(256) if value >> vector & 1]


def timers_owed(memory: Memory) -> list[int]:
    """The vCPUs whose guest waits for a timer that has been armed, or noted and not posted."""
    return [
        words.index
        for words in all_words(memory)
        if words.tscdeadline.load()
        or words.timer_pending.load()
        or memory.view.load_u64(memory.vcpu(words.index, V_SW_TIMER))
    ]


def masked(memory: Memory) -> list[int]:
    """The vCPUs that are on no pCPU, their guest's IF clear: see `GatedCpu.run_thread`."""
    vcpus = range(memory.shape.vcpus)
    return [v for v in vcpus if memory.view.load_u32(memory.vcpu(v, V_SAVED_MASKED))]
