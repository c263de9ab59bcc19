"""A recorded run against the protocol text: does each CPU do what its text says, step by step?

Each CPU's record is fed to the generator twin of the text that ran there.  The twin gets the
recorded results, so what it does next depends on nothing but this CPU's own record: no
interleaving is needed here.  Whether the results are those of a memory is asked by `record_memory`
and `record_owned`.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Final

from emulator.checker.twin import twin
from emulator.events import DEVICE_BASE, LAUNCHER
from emulator.hardware.cpu import Control
from emulator.hardware.senders import PidPointerTable
from emulator.kvm.params import Kvm
from emulator.order import CALLS, STEPS, Step

TEXT: Final = frozenset(STEPS)
GUEST: Final = {  # what happens during which step of the text
    "deliver": ("non_root_event", "vm_entry"),  # at the entry, what was injected
    "eoi": ("non_root_event",),
    "self_ipi": ("non_root_event",),
}

_Generator = Generator[tuple[Any, ...], Any, Any]


@dataclass(frozen=True, slots=True)
class TextCpu:
    """What the twin sees of a CPU: the axes.  Everything else it asks for by stepping."""

    kvm: Kvm


class NoPathError(Exception):
    """A step that the model does not allow; the message says what it would have allowed."""


@dataclass(slots=True)
class _Frame:
    """A function of the text under way, and the step that it asks for next; () at its end."""

    kind: str  # "thread", "call" or "interrupt"
    text: _Generator
    wanted: tuple[Any, ...] = ()

    def advance(self, result: Any) -> None:
        """Give it a step's result and run it up to its next step."""
        try:
            step = self.text.send(result)
            while step[0] == "trace":
                step = self.text.send(None)
        except StopIteration:
            step = ()
        except AssertionError:
            place = where(self.text)
            raise NoPathError(f"an assertion of the text fails here{place}") from None
        self.wanted = step


@dataclass(slots=True)
class CpuText:
    """One CPU or device: the functions that are under way on it, the innermost last."""

    source: int
    cpu: TextCpu
    table: PidPointerTable
    stack: list[_Frame] = field(default_factory=list)
    parked: dict[int, list[_Frame]] = field(default_factory=dict)  # threads that are off the CPU

    def feed(self, step: Step) -> None:
        """The next record.  NoPathError if the text does not do that here."""
        op = step.op
        if op in TEXT:
            self._step(step)
            return
        match op:
            case "thread":
                self._idle("a thread begins")
                if step.args[0] in self.parked:
                    raise NoPathError(f"vCPU {step.args[0]} begins again where it already is")
                self._push("thread", vcpu_thread(self.cpu, step.args[0]))
            case "thread_end":
                if self.stack:
                    raise NoPathError(f"the thread ends here, {self._wants()}")
            case "switch_in":
                self._idle("a thread comes back")
                if step.args[0] not in self.parked:
                    raise NoPathError(f"vCPU {step.args[0]} has not left this CPU")
                self.stack = self.parked.pop(step.args[0])
                self._advance(None)
            case "interrupt":
                self._push("interrupt", twin()["do_irq"](self.cpu, step.args[0]))
            case "iret":
                self._iret()
            case "call":
                self._call(CALLS[step.args[0]], step.args[1:])
            case _:
                if op in GUEST and (not self.wanted or self.wanted[0] not in GUEST[op]):
                    raise NoPathError(f"no guest runs here, {self._wants()}")

    def leave(self, vcpu: int) -> None:
        """A thread that may have been here begins on another CPU.  NoPathError if it cannot.

        Its stack does not follow it there (`machine/scheduler`): it must be one that says nothing
        which the head of the run loop would not find again.
        """
        stack = self.parked.pop(vcpu, None)
        if stack and len(stack) > 1:
            raise NoPathError(f"vCPU {vcpu} was preempted in the middle of a function elsewhere")

    @property
    def wanted(self) -> tuple[Any, ...]:
        """The step that the text asks for next; () if none is under way."""
        return self.stack[-1].wanted if self.stack else ()

    def place(self) -> str:
        """Where the text stands."""
        return where(self.stack[-1].text) if self.stack else ""

    def _step(self, step: Step) -> None:
        if self.wanted != (step.op, *step.args):
            raise NoPathError(self._wants())
        if step.op == "context_switch":
            self.parked[step.args[0]] = self.stack
            self.stack = []
        else:
            self._advance(step.result)

    def _advance(self, result: Any) -> None:
        self.stack[-1].advance(result)
        self._pop()

    def _push(self, kind: str, text: _Generator) -> None:
        self.stack.append(_Frame(kind, text))
        self.stack[-1].advance(None)
        self._pop()

    def _pop(self) -> None:
        """Threads and calls are over with their last step; a handler, at its IRET."""
        while self.stack and not self.stack[-1].wanted and self.stack[-1].kind != "interrupt":
            self.stack.pop()

    def _iret(self) -> None:
        if not self.stack or self.stack[-1].kind != "interrupt":
            raise NoPathError(f"no handler is under way here, {self._wants()}")
        if self.stack[-1].wanted:
            raise NoPathError(self._wants())
        self.stack.pop()

    def _call(self, function: str, args: tuple[Any, ...]) -> None:
        if function == "ipi_virtualization":
            if self.wanted[:1] != ("non_root_event",):
                raise NoPathError(f"no guest runs here, {self._wants()}")
            args = (*args, self.table)
        elif function != "preempt_schedule":
            self._idle("something else is called")
        self._push("call", twin()[function](self.cpu, *args))

    def _idle(self, what: str) -> None:
        if self.stack:
            raise NoPathError(f"{what} before this is over: {self._wants()}")

    def _wants(self) -> str:
        if not self.wanted:
            return "the text has nothing under way"
        return f"the text does {said(self.wanted[0], self.wanted[1:])}{self.place()}"


def vcpu_thread(cpu: TextCpu, vcpu: int) -> _Generator:
    """The thread behind a vCPU, as `machine/pcpu.vcpu_thread` runs it around the text."""
    text = twin()
    yield ("local_irq_disable",)
    yield from text["kvm_sched_in"](cpu, vcpu)
    yield ("local_irq_enable",)
    if (yield ("vcpu_is_blocking", vcpu)):
        yield ("finish_rcuwait", vcpu)
    yield from text["vcpu_run"](cpu, vcpu)
    yield ("local_irq_disable",)
    yield from text["kvm_sched_out"](cpu, vcpu, False)


def where(text: _Generator) -> str:
    """` (function(), file:line)` of a suspended function of the text; empty if it has ended."""
    inner: Any = text
    while getattr(inner, "gi_yieldfrom", None) is not None:
        inner = inner.gi_yieldfrom
    frame = inner.gi_frame
    if frame is None:
        return ""
    code = inner.gi_code
    return f" ({code.co_name}(), {code.co_filename.removeprefix('emulator/')}:{frame.f_lineno})"


def said(op: str, args: tuple[Any, ...]) -> str:
    """A step as the text writes it."""
    return f"{op}({', '.join(str(int(arg)) for arg in args)})"


def said_result(result: Any) -> str:
    """A result, short."""
    match result:
        case bool():
            return str(int(result))
        case Control(on, sn, nv, ndst):
            return f"ON={int(on)} SN={int(sn)} NV={nv:#x} NDST={ndst}"
        case tuple():
            return str(tuple(map(int, result)))
    return str(result)


def cpu_name(source: int) -> str:
    """As pictures name it."""
    if source == LAUNCHER:
        return "launcher"
    return f"device{source - DEVICE_BASE}" if source >= DEVICE_BASE else f"CPU{source}"
