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
from emulator.events import Event
from emulator.hardware.cpu import KIND_ATTRIBUTE, NOTIFICATION
from emulator.hardware.vectors import (
    FIRST_DEVICE_VECTOR,
    LOCAL_TIMER_VECTOR,
    MSR_TSC_DEADLINE,
    POSTED_INTR_NESTED_VECTOR,
    POSTED_INTR_VECTOR,
    POSTED_INTR_WAKEUP_VECTOR,
    RESCHEDULE_VECTOR,
    ExitReason,
    Mode,
)
from emulator.hardware.vmx import INFO_EXTERNAL_INTERRUPT, INFO_VALID
from emulator.kvm.cpu import Cpu
from emulator.kvm.irq import do_irq
from emulator.kvm.params import TaskState
from emulator.kvm.sched import preempt_schedule
from emulator.kvm.vcpu import vcpu_run
from emulator.machine import fabric
from emulator.machine.gate import DivergedError, Gate, Look, Schedule, Turn, plain, same
from emulator.machine.live import LiveCpu
from emulator.machine.memory import V_SAVE, V_SW_TIMER, Memory
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


class GatedCpu(LiveCpu):
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
        self.buffer: list[tuple[int, str, int]] = []  # plain stores, the oldest first
        self._turn: Turn | None = None
        self._looks: deque[Look] = deque()
        self._past: History = deque()
        self._freely_done: dict[int, list[tuple[str, Any]]] = {}
        self._coming: Turn | None | bool = False  # True: freely
        self._inside = False
        self._msr = 0
        for vcpu in range(len(schedule.pins)):
            self.add_vcpu(vcpu, None)
            self.vmcs[vcpu].guest.interrupt_flag = True

    def _step(self) -> None:
        """Interrupts come when the schedule says so."""

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

    # -- what is not a step of the text ------------------------------------------------------------

    def beside(self, turn: Turn, op: str = "") -> bool:
        """Do what the schedule has between two steps of this pCPU's text; false: a step of it."""
        match turn.op:
            case "interrupt" if not self.in_irq:
                vector = turn.args[1]
                self._accept(vector, turn.actor.startswith("host"))
                self._handle(vector, turn)
            case "drain":
                self._drain(turn)
            case "preempt" if self.thread == turn.args[1]:
                self.begin(turn)
                preempt_schedule(self, self.thread)
            case "deliver" if op == "non_root_event":
                self._deliver(turn)
            case "compute" if op == "non_root_event":
                self.computing = True
                self.gate.publish()
            case "retire":
                self.gate.publish()
            case _:
                return False
        return True

    def _handle(self, vector: int, turn: Turn | None) -> None:
        """An interrupt in root mode, between two steps: run its handler."""
        outer, self.actor, self.in_irq = self.actor, f"irq{self.pcpu}", True
        if turn is not None:
            self.begin(turn)
        do_irq(self, vector)
        if not self.gate.free:
            back = self.gate.wait()
            if back is not None and (back.op, back.actor) != ("iret", self.actor):
                self.diverge(f"{self.actor} has returned, the schedule says {back}")
            if back is not None:
                self.gate.publish()
        self.lapic.eoi()
        self.actor, self.in_irq = outer, False

    def _accept(self, vector: int, by_wire: bool) -> None:
        """The local APIC presents `vector`; a notification must have come as a message."""
        if by_wire:
            self.listen()
            if vector not in self.on_the_wire:
                self.diverge(f"pcpu {self.pcpu} has no message with vector {vector:#x}")
            self.on_the_wire.discard(vector)
        self.lapic.accept(vector)
        taken = self.lapic.acknowledge()
        assert taken == vector

    def listen(self) -> None:
        """Take every message off the socket whose doorbell has rung."""
        deadline = monotonic_ns() + ARRIVE_NS
        while self._rung() != self.arrived:
            message = self.fabric.receive()
            if message is not None:
                self.arrived += 1
                self.on_the_wire.add(message[1])
            elif monotonic_ns() > deadline:
                self.diverge(f"a message to pcpu {self.pcpu} is missing")
            else:
                os.sched_yield()

    def _deliver(self, turn: Turn) -> None:
        """The guest takes the virtual interrupt and ends it, one step in the model."""
        vapic = self.lp.vapic
        if not vapic.recognised or vapic.rvi != turn.args[1]:
            self.diverge(f"vCPU {turn.args[0]} is to take {turn.args[1]}, RVI is {vapic.rvi}")
        vapic.deliver()
        vapic.eoi_virtualization()
        self.lp.vmcs.page.write_back()  # type: ignore[attr-defined]
        self.gate.publish()

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
        from emulator.hardware.cpu import Control

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

    def window(self) -> None:
        """In free running: take what has come, if interrupts are on."""
        while self.gate.free and self.irqs_on and not self.in_irq and self.lp.in_root:
            self.listen()
            if self.on_the_wire:
                vector = max(self.on_the_wire)
                self.on_the_wire.discard(vector)
                self._accept(vector, by_wire=False)
                self._handle(vector, None)
            elif self.armed_here():
                self._accept(LOCAL_TIMER_VECTOR, by_wire=False)
                self._handle(LOCAL_TIMER_VECTOR, None)
            else:
                return

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

    # -- the guest ---------------------------------------------------------------------------------

    def non_root_event(self, vcpu: int) -> int:
        """What the schedule says; freely: what the processor and a guest that halts would do."""
        turn = self._turn
        if self.gate.free or turn is None:
            return self._guest_freely(vcpu)
        vector, deadline, flag = turn.forced
        if turn.result == NOTIFICATION:
            self._accept(POSTED_INTR_VECTOR, by_wire=True)
            return NOTIFICATION
        if turn.result == ExitReason.EXTERNAL_INTERRUPT:
            self._accept(vector, vector in BY_WIRE)
        self._msr = deadline
        return self._leave_guest(vcpu, turn.result, vector, flag)

    def _leave_guest(self, vcpu: int, reason: int, vector: int, flag: bool) -> int:
        info = 0
        if reason == ExitReason.EXTERNAL_INTERRUPT:
            info = INFO_VALID | INFO_EXTERNAL_INTERRUPT | vector
        elif reason == ExitReason.PREEMPTION_TIMER:
            self.words[vcpu].hv_deadline.store(1)  # a deadline that the guest had set before
        self.loaded.guest.interrupt_flag = flag
        self.computing = False
        return self.lp.vm_exit(reason, interruption_info=info)

    def _guest_freely(self, vcpu: int) -> int:
        vapic = self.lp.vapic
        flag = self.loaded.guest.interrupt_flag
        while True:
            self.gate.check_stop()
            self.listen()
            if self.on_the_wire:
                vector = max(self.on_the_wire)
                self.on_the_wire.discard(vector)
                self._accept(vector, by_wire=False)
                if vector == POSTED_INTR_VECTOR:
                    return NOTIFICATION
                return self._leave_guest(vcpu, ExitReason.EXTERNAL_INTERRUPT, vector, flag)
            if vapic.recognised and flag:
                vapic.deliver()
                vapic.eoi_virtualization()
            elif self.hv_timer_in_use(vcpu):
                return self._leave_guest(vcpu, ExitReason.PREEMPTION_TIMER, 0, flag)
            elif not self.computing:
                return self._leave_guest(vcpu, ExitReason.HLT, 0, flag)
            else:
                os.sched_yield()
