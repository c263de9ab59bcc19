"""`GatedCpu`: the live `Cpu` whose every step waits for its turn in a schedule.

The protocol text is the one that runs live, called as plain functions; the steps are `LiveCpu`'s,
on the mapped file.  What a schedule decides is taken from it: when an interrupt arrives, what the
guest does next, who is preempted, where a thread runs, what a timer says.  A plain store goes
through a software store buffer if the schedule has one: Python cannot steer the hardware's.

A thread that leaves its pCPU unwinds, whoever runs there next.  When it comes back, here or in
another pCPU's process, its text is run again over the results that are on record, without touching
anything, up to where it left: Python's stack cannot travel between processes, its history can.
Before: `gate` has the turns.  Next: `gated_run` starts the processes.
"""

import os
from collections import deque
from collections.abc import Callable
from functools import wraps
from time import monotonic_ns
from typing import Any, Final

from emulator.config.model import Cell, Fabric, Run, Vcpu
from emulator.hardware.cpu import KIND_ATTRIBUTE, NOTIFICATION, Control
from emulator.hardware.vectors import (
    LOCAL_TIMER_VECTOR,
    POSTED_INTR_NESTED_VECTOR,
    POSTED_INTR_VECTOR,
    POSTED_INTR_WAKEUP_VECTOR,
    RESCHEDULE_VECTOR,
    ExitReason,
)
from emulator.hardware.vmx import INFO_EXTERNAL_INTERRUPT, INFO_VALID
from emulator.kvm.cpu import Cpu
from emulator.kvm.irq import do_irq
from emulator.kvm.params import TaskState
from emulator.kvm.sched import preempt_schedule
from emulator.kvm.vcpu import vcpu_run
from emulator.machine import fabric
from emulator.machine.gate import DivergedError, Gate, Look, Schedule, Turn, plain, same
from emulator.machine.gated_steps import GatedSteps
from emulator.machine.live import LiveCpu
from emulator.machine.memory import V_SAVE, Memory
from emulator.machine.recorder import Recorder

STEPS: Final = tuple(name for name in dir(Cpu) if hasattr(getattr(Cpu, name), KIND_ATTRIBUTE))
UNTIMED: Final = frozenset({"preempt_disable", "preempt_enable"})  # the model does these late
BY_WIRE: Final = (
    *(POSTED_INTR_NESTED_VECTOR, POSTED_INTR_WAKEUP_VECTOR, POSTED_INTR_VECTOR),
    RESCHEDULE_VECTOR,
)
ARRIVE_NS: Final = 2_000_000_000  # for a message whose doorbell has rung
SLEEPING: Final = int(TaskState.SLEEPING)
PREEMPTED: Final = ("preempted", None)  # in a history: here preempt_schedule() was called

History = deque[tuple[str, Any]]


class SwitchedOut(BaseException):  # noqa: N818  no error: the thread has left its pCPU
    """Unwinds a thread's stack."""


def cell_of(schedule: Schedule) -> Cell:
    """The schedule's machine as a live run would describe it.  Nothing loads it but its turns."""
    vcpus = (
        Vcpu(index=v, vm="vm", number=v, pcpu=pcpu, guest="spin")
        for v, pcpu in enumerate(schedule.pins)
    )
    return Cell(
        name="replay",
        question="",
        pcpus=schedule.hosts + len(schedule.pins),
        fabric=Fabric.IPC,
        vcpus=tuple(vcpus),
        devices=(),
        loads=(),
        kvm=schedule.kvm,
        run=Run(warmup_ns=0, duration_ns=1, repeat=1, seed=0, watchdog_ns=0, drain_ns=0),
        expect=(),
    )


def no_guest(cpu: LiveCpu, vcpu: int) -> Any:
    raise AssertionError("a gated guest is its schedule")


def no_thread(cpu: LiveCpu, vcpu: int) -> None:
    raise AssertionError("a gated thread is run by its turns")


class GatedCpu(GatedSteps):
    """One pCPU, or the CPU that a sender runs on."""

    def __init__(
        self, memory: Memory, net: fabric.Fabric, schedule: Schedule, pcpu: int, gate: Gate
    ) -> None:
        recorder = Recorder(memory, pcpu)
        cell = cell_of(schedule)
        super().__init__(memory, net, cell, pcpu, recorder, 0, no_guest, no_thread)
        self.note = lambda record: None
        self.schedule = schedule
        self.gate = gate
        self.actor = ""
        self.thread = -1  # the vCPU whose thread has this pCPU
        self.in_irq = False
        self.computing = False  # the guest will leave only if it is made to
        self.on_the_wire: set[int] = set()  # vectors that have arrived here and not been taken
        self.buffer = []
        self.deadline_written = 0
        self._turn: Turn | None = None
        self._looks: deque[Look] = deque()
        self._past: History = deque()
        self._freely_done: dict[int, list[tuple[str, Any]]] = {}
        self._coming: Turn | None | bool = False  # True: freely
        self._inside = False
        for vcpu in range(len(schedule.pins)):
            self.add_vcpu(vcpu, None)
            self.vmcs[vcpu].guest.interrupt_flag = True

    # -- every call on cpu -------------------------------------------------------------------------

    def call(self, op: str, args: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        """A call of the text: remembered, or a look that goes with a step, or a step in turn."""
        if self._inside or op in UNTIMED:
            return do(self, *args)
        while self._past:
            done, result = self._past.popleft()
            if (done, result) == PREEMPTED:
                preempt_schedule(self, self.thread)
                continue
            assert done == op, f"{op} in place of {done}: the text is not a function of its steps"
            return result
        if self._looks:
            return self._look(op, args, do)
        if not self.gate.free:
            turn = self._own_turn(op)
            if turn is not None:
                return self._take(turn, op, args, do)
        return self._freely(op, args, do)

    def _do(self, do: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self._inside = True
        try:
            return do(self, *args)
        finally:
            self._inside = False
            if self.page is not None:
                self.page.write_back()

    def _look(self, op: str, args: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        wanted, given, told = self._looks.popleft()
        if (wanted, given) != (op, plain(args)):
            self.diverge(f"{self.actor} calls {op}{args}, the model {wanted}({given})", done=True)
        result = self._do(do, args)
        if not same(plain(result), told):
            self.diverge(f"{self.actor}: {op}{args} = {result!r}, the model {told!r}", done=True)
        self._end_of_turn()
        return result

    def _own_turn(self, op: str) -> Turn | None:
        """This actor's turn; what comes before it on this pCPU is done here.  None: the gate is
        open.
        """
        if op == "context_switch" and self._coming is not False:
            coming, self._coming = self._coming, False
            assert isinstance(coming, Turn)
            return coming
        if op == "context_switch" and not self.buffer:
            raise SwitchedOut
        while True:
            turn = self.gate.wait()
            if turn is None or not self.beside(turn, op):
                return turn

    def _take(self, turn: Turn, op: str, args: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        if (turn.actor, turn.op, turn.args) != (self.actor, op, plain(args)):
            self.diverge(f"{self.actor} is about to do {op}{args}, the schedule says {turn}")
        self._turn = turn
        if op == "context_switch":
            self.begin(turn)
            if turn.result < 0:
                raise SwitchedOut
            return None
        result = self._do(do, args)
        if not same(plain(result), turn.result):
            text = f"{self.actor}: {op}{args} = {result!r}, the model {turn.result!r}"
            self.diverge(text, done=True)
        self.begin(turn)
        return result

    def begin(self, turn: Turn) -> None:
        """The step of `turn` is done; the turn ends with the last of its looks."""
        self._looks = deque(look for look in turn.looks if look[0] not in UNTIMED)
        self._end_of_turn()

    def _end_of_turn(self) -> None:
        if not self._looks:
            self.gate.publish()

    def diverge(self, text: str, *, done: bool = False) -> None:
        raise DivergedError(self.gate.number, text, done=done)

    # -- threads -----------------------------------------------------------------------------------

    def run_thread(self, vcpu: int, coming: Turn | None | bool) -> None:
        """Have the thread of `vcpu` on this pCPU until it leaves.

        `coming`: the turn that brings it, None if it has been here from the start, True: freely.
        """
        self.thread, self.actor, self.irqs_on = vcpu, f"vcpu{vcpu}", coming is None
        self.current, self.loaded = vcpu, self.vmcs[vcpu]
        self.page = self.words[vcpu].page
        self.page.read_back()
        self.loaded.rvi = self.memory.view.load_u32(self.memory.vcpu(vcpu, V_SAVE))
        flag = self.memory.view.load_u32(self.memory.vcpu(vcpu, V_SAVE + 4))
        self.loaded.guest.interrupt_flag = not flag
        self._past = self._history(vcpu, coming)
        self._coming = False if coming is None else coming
        if coming is None:
            self.running = vcpu
        try:
            vcpu_run(self, vcpu)
        except SwitchedOut:
            masked = not self.loaded.guest.interrupt_flag
            self.memory.view.store_u32(self.memory.vcpu(vcpu, V_SAVE), self.loaded.rvi)
            self.memory.view.store_u32(self.memory.vcpu(vcpu, V_SAVE + 4), int(masked))
        self.thread, self.actor, self.current, self.irqs_on = -1, "", -1, True
        self.page = None

    def _history(self, vcpu: int, coming: Turn | None | bool) -> History:
        """What the thread has done so far, call by call."""
        actor, past = f"vcpu{vcpu}", History()
        turns = self.schedule.turns
        if isinstance(coming, Turn):
            turns = turns[: self.gate.number]
        elif coming is None:
            turns = ()
        for turn in (*self.schedule.before[vcpu], *turns):
            if turn.op == "preempt" and turn.args[1] == vcpu:
                past.append(PREEMPTED)
            elif turn.actor != actor or turn.op in ("deliver", "compute"):
                continue
            elif turn.op == "context_switch":
                if turn.result < 0:
                    continue
                past.append((turn.op, None))
            elif turn.op != "start":
                past.append((turn.op, self._back(turn.op, turn.result)))
            past.extend(
                (op, self._back(op, result)) for op, _, result in turn.looks if op not in UNTIMED
            )
        past.extend(self._freely_done.get(vcpu, ()))
        return past

    @staticmethod
    def _back(op: str, result: Any) -> Any:
        """A result as the text expects it."""
        if op in ("pi_read_control", "pi_test_and_set_on_unless_sn"):
            return Control(*result)
        return tuple(result) if isinstance(result, list) else result

    # -- free running ------------------------------------------------------------------------------

    def _freely(self, op: str, args: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        self.gate.check_stop()
        self.empty_buffer()
        if op == "context_switch":
            if self._coming is False:
                raise SwitchedOut
            self._coming, result = False, None
        else:
            result = self._do(do, args)
        if not self.in_irq and self.thread >= 0:
            self._freely_done.setdefault(self.thread, []).append((op, result))
        self.window()
        return result

    def idle_freely(self) -> None:
        """No thread here: interrupts, and whoever of this pCPU's threads can run."""
        self.gate.check_stop()
        self.empty_buffer()
        self.window()
        for vcpu, words in enumerate(self.words):
            here = self.schedule.last_pcpu(vcpu) == self.pcpu
            if here and words.task_state.load() != SLEEPING:
                self.run_thread(vcpu, True)
                return
        os.sched_yield()

def _gated(op: str) -> Callable[..., Any]:
    """The step `op` as the text calls it: through `GatedCpu.call`."""
    do = getattr(GatedCpu, op)

    @wraps(do)
    def method(self: GatedCpu, *args: Any) -> Any:
        return self.call(op, args, do)

    return method


for _op in STEPS:
    setattr(GatedCpu, _op, _gated(_op))
