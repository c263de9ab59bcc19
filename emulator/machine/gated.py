"""`GatedCpu`: the live `Cpu` whose every step waits for its turn in a schedule.

The protocol text is the one that runs live, called as plain functions; the steps are `LiveCpu`'s,
on the mapped file.  What a schedule decides is taken from it: when an interrupt arrives, what the
guest does next, who is preempted, where a thread runs, what a timer says.  A plain store goes
through a software store buffer if the schedule has one: Python cannot steer the hardware's.

A thread that leaves its pCPU unwinds, whoever runs there next.  When it comes back, here or in
another pCPU's process, its text is run again over the results that are on record, without touching
anything, up to where it left: Python's stack cannot travel between processes, its history can.
Before: `gate` has the turns, `gated_world` what no text decides.  Next: `gated_process`.
"""

import os
from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from emulator.hardware.cpu import KIND_ATTRIBUTE, Control
from emulator.hardware.vectors import LOCAL_TIMER_VECTOR
from emulator.kvm.cpu import Cpu
from emulator.kvm.irq import do_irq
from emulator.kvm.params import TaskState
from emulator.kvm.sched import preempt_schedule
from emulator.kvm.vcpu import vcpu_run
from emulator.machine.fabric import Fabric
from emulator.machine.gate import Gate, Look, Schedule, Turn, plain, same
from emulator.machine.gated_world import GatedWorld
from emulator.machine.memory import P_LIST_LOCK, V_SAVE, Memory

STEPS: Final = tuple(name for name in dir(Cpu) if hasattr(getattr(Cpu, name), KIND_ATTRIBUTE))
UNTIMED: Final = frozenset({"preempt_disable", "preempt_enable"})  # the model does these late
PREEMPTED: Final = ("preempted", None)  # in a history: here preempt_schedule() was called
SLEEPING: Final = int(TaskState.SLEEPING)

# Where a thread's masked guest and its RVI are while it is on no pCPU.
V_SAVED_RVI: Final = V_SAVE
V_SAVED_MASKED: Final = V_SAVE + 4

History = deque[tuple[str, Any]]
Step = Callable[..., Any]


class SwitchedOut(BaseException):
    """No error: the thread has left its pCPU, and its stack unwinds."""


class GatedCpu(GatedWorld):
    """One pCPU, or the CPU that a sender runs on."""

    def __init__(
        self, memory: Memory, net: Fabric, schedule: Schedule, pcpu: int, gate: Gate
    ) -> None:
        super().__init__(memory, net, schedule, pcpu, gate)
        self.actor = ""
        self.thread = -1  # the vCPU whose thread has this pCPU
        self.in_irq = False
        self._turn: Turn | None = None  # the guest's, under way
        self._looks: deque[Look] = deque()
        self._past: History = deque()
        self._freely_done: dict[int, list[tuple[str, Any]]] = {}
        self._returning = False  # the thread's next live call is its context_switch() returning
        self._coming: Turn | None = None  # the turn in which it does
        self._inside = False

    # -- every call on cpu -------------------------------------------------------------------------

    def call(self, op: str, args: tuple[Any, ...], do: Step) -> Any:
        """A call of the text: remembered, or a look that goes with a step, or a step in turn."""
        if self._inside or op in UNTIMED:
            return do(self, *args)
        while self._past:
            done, result = self._past.popleft()
            if (done, result) != PREEMPTED:
                assert done == op, f"{op}, not {done}: the text is no function of its steps"
                return result
            preempt_schedule(self, self.thread)
        if self._looks:
            return self._look(op, args, do)
        if op == "context_switch" and self._returning:
            return self._come_back()
        if not self.gate.free:
            turn = self._own_turn(op)
            if turn is not None:
                return self._take_turn(turn, op, args, do)
        return self._freely(op, args, do)

    def _do(self, do: Step, args: tuple[Any, ...]) -> Any:
        self._inside = True
        try:
            return do(self, *args)
        finally:
            self._inside = False
            if self.page is not None:
                self.page.write_back()

    def _look(self, op: str, args: tuple[Any, ...], do: Step) -> Any:
        wanted, given, told = self._looks.popleft()
        if (wanted, given) != (op, plain(args)):
            self.diverge(f"{self.actor} calls {op}{args}, the model {wanted}({given})", done=True)
        result = self._do(do, args)
        if not same(plain(result), told):
            self.diverge(f"{self.actor}: {op}{args} = {result!r}, the model {told!r}", done=True)
        self._end_of_turn()
        return result

    def _own_turn(self, op: str) -> Turn | None:
        """The next turn of whoever calls, what comes before it on this pCPU done.

        None: the gate is open.
        """
        if op == "context_switch" and not self.buffer:
            raise SwitchedOut
        while True:
            turn = self.gate.wait()
            if turn is None or not self.beside(turn, op):
                return turn

    def _take_turn(self, turn: Turn, op: str, args: tuple[Any, ...], do: Step) -> Any:
        if (turn.actor, turn.op, turn.args) != (self.actor, op, plain(args)):
            self.diverge(f"{self.actor} is about to do {op}{args}, the schedule says {turn}")
        if op == "context_switch":  # a store buffer had kept it from leaving
            self.begin(turn)
            raise SwitchedOut
        self._turn = turn
        result = self._do(do, args)
        self._turn = None
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

    def non_root_event(self, vcpu: int) -> int:
        return self.guest_event(vcpu, self._turn) if self._turn else self.guest_freely(vcpu)

    # -- what the schedule has between two steps of the text ---------------------------------------

    def beside(self, turn: Turn, op: str = "") -> bool:
        """Do `turn` if it is no step of the text that stands at `op`; false: it is."""
        match turn.op:
            case "interrupt" if not self.in_irq:
                vector = turn.args[1]
                if turn.actor.startswith("host"):
                    self.accept_sent(vector)
                else:
                    self.accept(vector)  # a device's, or a timer's
                self._handle(vector, turn)
            case "preempt" if self.thread == turn.args[1]:
                self.begin(turn)
                preempt_schedule(self, self.thread)
            case "drain":
                self._drain(turn)
                self.gate.publish()
            case "deliver" if op == "non_root_event":
                if not self.lp.vapic.recognised or self.lp.vapic.rvi != turn.args[1]:
                    self.diverge(f"RVI is {self.lp.vapic.rvi}, the schedule says {turn}")
                self.deliver()
                self.gate.publish()
            case "compute" if op == "non_root_event":
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
        back = None if self.gate.free else self._own_turn("iret")
        if back is not None:
            if (back.op, back.actor) != ("iret", self.actor):
                self.diverge(f"{self.actor} has returned, the schedule says {back}")
            self.gate.publish()
        self.lapic.eoi()
        self.actor, self.in_irq = outer, False

    def _drain(self, turn: Turn) -> None:
        stored = list(self.drain()) if self.buffer else None
        if stored != turn.args:
            self.diverge(f"the store buffer gives {stored}, the schedule says {turn}", done=True)

    # -- threads -----------------------------------------------------------------------------------

    def run_thread(self, vcpu: int, *, returning: bool, turn: Turn | None = None) -> None:
        """Have the thread of `vcpu` on this pCPU until it leaves.

        `returning`: it has been off, and `turn` brings it back, or free running does.
        """
        self.thread, self.actor, self.irqs_on = vcpu, f"vcpu{vcpu}", not returning
        self.current, self.loaded = vcpu, self.vmcs[vcpu]
        self.page = self.words[vcpu].page
        self.page.read_back()
        view, memory = self.memory.view, self.memory
        self.loaded.rvi = view.load_u32(memory.vcpu(vcpu, V_SAVED_RVI))
        guest = self.loaded.guest
        guest.interrupt_flag = not view.load_u32(memory.vcpu(vcpu, V_SAVED_MASKED))
        self._past = self._history(vcpu, self.gate.number if returning else 0)
        self._returning, self._coming = returning, turn
        if not returning:
            self.running = vcpu
        try:
            vcpu_run(self, vcpu)
        except SwitchedOut:
            view.store_u32(memory.vcpu(vcpu, V_SAVED_RVI), self.loaded.rvi)
            view.store_u32(memory.vcpu(vcpu, V_SAVED_MASKED), not guest.interrupt_flag)
        self.thread, self.actor, self.current, self.irqs_on = -1, "", -1, True
        self.page = None

    def _come_back(self) -> None:
        """context_switch() returns: the thread has its pCPU, interrupts off."""
        self._returning = False
        if self._coming is not None:
            self.begin(self._coming)
            self._coming = None
        else:
            self._freely_done.setdefault(self.thread, []).append(("context_switch", None))

    def _history(self, vcpu: int, until: int) -> History:
        """What the thread has done before turn `until`, and since the gate opened, call by call."""
        actor, past = f"vcpu{vcpu}", History()
        for turn in (*self.schedule.before[vcpu], *self.schedule.turns[:until]):
            if turn.op == "preempt" and turn.args[1] == vcpu:
                past.append(PREEMPTED)
            elif turn.actor != actor or turn.op in ("deliver", "compute"):
                continue
            elif turn.op == "context_switch":
                if turn.result < 0:
                    continue  # it left, which its text did not notice
                past.append((turn.op, None))
            elif turn.op != "start":
                past.append((turn.op, as_told(turn.op, turn.result)))
            looks = (look for look in turn.looks if look[0] not in UNTIMED)
            past.extend((op, as_told(op, result)) for op, _, result in looks)
        past.extend(self._freely_done.get(vcpu, ()))
        return past

    # -- free running ------------------------------------------------------------------------------

    def _freely(self, op: str, args: tuple[Any, ...], do: Step) -> Any:
        self.gate.check_stop()
        while self.buffer:
            self.drain()
        if op == "context_switch":
            raise SwitchedOut
        result = self._do(do, args)
        if not self.in_irq and self.thread >= 0:
            self._freely_done.setdefault(self.thread, []).append((op, result))
        self.window()
        return result

    def window(self) -> None:
        """In free running: take what has come, if interrupts are on."""
        while self.irqs_on and not self.in_irq and self.lp.in_root:
            vector = self.accept_next()
            if vector < 0:
                if self.armed_here() < 0:
                    return
                vector = LOCAL_TIMER_VECTOR
                self.accept(vector)
            self._handle(vector, None)

    def wakeup_list_lock(self, pcpu: int) -> None:
        """As `live`; but whoever holds it may have been stopped in the middle of its handler."""
        lock = self.memory.u32(self.memory.pcpu(pcpu, P_LIST_LOCK))
        while lock.cas(0, 1):
            self.gate.check_stop()
            os.sched_yield()

    def idle_freely(self) -> None:
        """No thread is here: interrupts, and whoever of this pCPU's threads can run."""
        self.gate.check_stop()
        while self.buffer:
            self.drain()
        self.window()
        for vcpu, words in enumerate(self.words):
            here = self.schedule.last_pcpu(vcpu) == self.pcpu
            if here and words.task_state.load() != SLEEPING:
                self.run_thread(vcpu, returning=True)
                return
        os.sched_yield()


def as_told(op: str, result: Any) -> Any:
    """A recorded result as the text expects it."""
    if op in ("pi_read_control", "pi_test_and_set_on_unless_sn"):
        return Control(*result)
    return tuple(result) if isinstance(result, list) else result


def _gated(op: str) -> Step:
    """The step `op` as the text calls it: through `GatedCpu.call`."""
    do = getattr(GatedCpu, op)

    @wraps(do)
    def method(self: GatedCpu, *args: Any) -> Any:
        return self.call(op, args, do)

    return method


for _op in STEPS:
    setattr(GatedCpu, _op, _gated(_op))
