"""Guest programs: a few instructions, an IDT, and whoever executes them one at a time.

Pure.  A program is text for `assemble()`, one instruction a line, labels before a colon; adding a
guest is one small file with a PROGRAM.  The interpreter owns the instruction pointer and the
interrupt frames; IF, shadows and activity are the processor's (`hardware/vmcs.GuestState`), and
what an instruction means to interrupts is `hardware/instructions`.

    work LABEL   RDTSC; if an IPI of the workload is due, prepare it, else jump to LABEL
    token LABEL  prepare the token's IPI to the next vCPU of this VM; jump to LABEL if it must rest
    send         WRMSR: the IPI that was prepared
    arm          WRMSR IA32_TSC_DEADLINE: the workload's next deadline, if it is not armed already
    due LABEL    jump to LABEL until the deadline that `arm` would write has come: then it is past
    first LABEL  jump to LABEL unless this is vCPU 0 of its VM
    ack          count one up in a word of guest memory
    ready LABEL  jump to LABEL unless the next vCPU of this VM has counted past what was sent
    jmp LABEL, pause, nop, cli, sti, hlt, eoi, iret, vmcall

Interrupts enter at the label `timer` for the APIC timer's vector, at `irq` for every other.
Before: `hardware/vmx` delivers.  Next: an exit, or the next instruction.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MethodType
from typing import Any, Final, NamedTuple, Protocol

from emulator.guest.workload import Ipi, Workload
from emulator.hardware import instructions
from emulator.hardware.vectors import MSR_TSC_DEADLINE, MSR_X2APIC_SELF_IPI
from emulator.hardware.vmx import LogicalProcessor, Outcome


class Op(Enum):
    """The instruction set; see the module's docstring."""

    WORK = auto()
    TOKEN = auto()
    SEND = auto()
    ARM = auto()
    DUE = auto()
    FIRST = auto()
    ACK = auto()
    READY = auto()
    JMP = auto()
    PAUSE = auto()
    NOP = auto()
    CLI = auto()
    STI = auto()
    HLT = auto()
    EOI = auto()
    IRET = auto()
    VMCALL = auto()


JUMPS: Final = frozenset({Op.WORK, Op.TOKEN, Op.DUE, Op.FIRST, Op.READY, Op.JMP})


class Insn(NamedTuple):
    """One instruction; `target` is the place it may jump to, -1 if it does not."""

    op: Op
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Code and its IDT.  `halts` tells the workload that somebody must wake it for its IPIs."""

    name: str
    summary: str
    code: tuple[Insn, ...]
    irq: int
    timer: int
    halts: bool


def assemble(name: str, summary: str, text: str) -> Program:
    """Translate a program.  ValueError names the line that cannot be."""
    labels: dict[str, int] = {}
    rows: list[tuple[Op, str]] = []
    for line in text.splitlines():
        code, _, _ = line.partition(";")
        label, colon, rest = code.rpartition(":")
        if colon:
            labels[label.strip()] = len(rows)
        words = rest.split()
        if not words:
            continue
        try:
            op = Op[words[0].upper()]
        except KeyError:
            raise ValueError(f"guest {name}: no such instruction: {line.strip()}") from None
        if len(words) != 1 + (op in JUMPS):
            raise ValueError(f"guest {name}: wrong number of operands: {line.strip()}")
        rows.append((op, words[1] if op in JUMPS else ""))
    missing = {label for _, label in rows if label and label not in labels} | (
        {"irq"} - labels.keys()
    )
    if missing:
        raise ValueError(f"guest {name}: no such label: {', '.join(sorted(missing))}")
    return Program(
        name=name,
        summary=summary,
        code=tuple(Insn(op, labels.get(label, -1)) for op, label in rows),
        irq=labels["irq"],
        timer=labels.get("timer", labels["irq"]),
        halts=any(op is Op.HLT for op, _ in rows),
    )


class Platform(Protocol):
    """What a guest has besides its processor: a clock, and somebody who watches it."""

    def rdtsc(self) -> int:
        """CLOCK_MONOTONIC, ns."""

    def pause(self) -> None:
        """PAUSE: the spin-loop hint.  Waiting loops yield here."""

    def on_self_ipi(self, vector: int, load: int, due: int) -> None:
        """The guest is about to write `vector` to its self-IPI register."""

    def on_eoi(self, vector: int) -> None:
        """The guest is about to EOI `vector`."""

    def count_up(self) -> None:
        """LOCK INC of the current vCPU's word of guest memory."""

    def count(self, vcpu: int) -> int:
        """A vCPU's word of guest memory."""


class Guest:
    """One vCPU's guest: a program, where it stands in it, and its workload.

    `code[pc]` is the next instruction: (what executes it, its operand).
    After a `send` or `arm` that exits, `cause` says which load the write was for: (load, due ns).
    """

    __slots__ = (
        "_armed_load", "_icr", "_irq", "_prepared_for", "_sent", "armed", "cause", "code",
        "frames", "msr", "pc", "platform", "processor", "program", "timer_vector", "workload",
    )  # fmt: skip

    def __init__(
        self, program: Program, workload: Workload, processor: LogicalProcessor, platform: Platform
    ) -> None:
        self.program = program
        self.workload = workload
        self.processor = processor
        self.platform = platform
        self.timer_vector = workload.timer_vector
        self._irq = program.irq
        self.pc = 0
        self.frames: list[int] = []
        self.armed = 0
        self._armed_load = 0
        self.msr = 0
        self._icr = 0
        self._sent = 0
        self._prepared_for = (0, 0)
        self.cause = (0, 0)
        self.code: list[tuple[Callable[[int], Outcome], int]]
        self.execute_by(INSTRUCTIONS)

    def execute_by(self, instructions: "Instructions") -> None:
        """Execute each instruction by one of these: INSTRUCTIONS, or the same text linked."""
        self.code = [
            (MethodType(instructions[insn.op], self), insn.target) for insn in self.program.code
        ]

    def step(self) -> Outcome:
        """Execute one instruction."""
        execute, target = self.code[self.pc]
        return execute(target)

    def interrupt(self, vector: int) -> None:
        """The IDT: push a frame, go to the handler (`hardware/vmx.Idt`)."""
        self.frames.append(self.pc)
        if vector != self.timer_vector:
            self.pc = self._irq
            return
        self.pc = self.program.timer
        self.workload.timer_fired(self._armed_load)
        self.armed = 0

    def save(self) -> list[Any]:
        """Where it stands, as plain data: what moves with the vCPU to another pCPU."""
        return [
            self.pc, list(self.frames), self.armed, self._armed_load, self.msr, self._icr,
            self._sent, list(self._prepared_for), list(self.cause), self.workload.save(),
        ]  # fmt: skip

    def restore(self, saved: list[Any]) -> None:
        """The inverse of `save()`, on a guest of the same program and workload."""
        registers, (self._sent, prepared_for, cause, work) = saved[:6], saved[6:]
        self.pc, self.frames, self.armed, self._armed_load, self.msr, self._icr = registers
        self._prepared_for = tuple(prepared_for)
        self.cause = tuple(cause)
        self.workload.restore(work)

    # -- instructions -----------------------------------------------------------------------------

    def _work(self, target: int) -> Outcome:
        self.prepare(self.workload.due_ipi(self.platform.rdtsc()), target)
        return None

    def _token(self, target: int) -> Outcome:
        self.prepare(self.workload.token(self.platform.rdtsc()), target)
        return None

    def _send(self, _target: int) -> Outcome:
        self._sent += 1
        # A handler that came between `work` and here may have armed the timer for another load.
        self.cause = self._prepared_for
        if self.msr == MSR_X2APIC_SELF_IPI:
            self.platform.on_self_ipi(self._icr, *self.cause)
        return self.advance(instructions.wrmsr(self.processor, self.msr, self._icr))

    def _arm(self, _target: int) -> Outcome:
        deadline, load = self.workload.next_deadline(halts=self.program.halts)
        if deadline == self.armed:
            return self.advance(None)
        self.armed = deadline
        self._armed_load = load
        self.cause = (load, deadline)
        return self.advance(instructions.wrmsr(self.processor, MSR_TSC_DEADLINE, deadline))

    def _due(self, target: int) -> Outcome:
        deadline, _ = self.workload.next_deadline(halts=self.program.halts)
        self.processor.guest.interruptibility = 0
        if deadline and deadline <= self.platform.rdtsc():
            self.pc += 1
        else:
            self.pc = target
        return None

    def _ack(self, _target: int) -> Outcome:
        self.platform.count_up()
        return self.advance(instructions.nop(self.processor))

    def _ready(self, target: int) -> Outcome:
        self.processor.guest.interruptibility = 0
        if self.platform.count(self.workload.neighbour) > self._sent:
            self.pc += 1
        else:
            self.pc = target
        return None

    def _first(self, target: int) -> Outcome:
        if self.workload.number == 0:
            self.pc += 1
        else:
            self.pc = target
        return None

    def _jmp(self, target: int) -> Outcome:
        self.pc = target
        self.processor.guest.interruptibility = 0
        return None

    def _pause(self, _target: int) -> Outcome:
        self.platform.pause()
        return self.advance(instructions.nop(self.processor))

    def _nop(self, _target: int) -> Outcome:
        return self.advance(instructions.nop(self.processor))

    def _cli(self, _target: int) -> Outcome:
        return self.advance(instructions.cli(self.processor))

    def _sti(self, _target: int) -> Outcome:
        return self.advance(instructions.sti(self.processor))

    def _hlt(self, _target: int) -> Outcome:
        return self.advance(instructions.hlt(self.processor))

    def _eoi(self, _target: int) -> Outcome:
        self.platform.on_eoi(self.processor.vapic.svi)
        return self.advance(instructions.eoi(self.processor))

    def _iret(self, _target: int) -> Outcome:
        self.pc = self.frames.pop()
        return instructions.iret(self.processor)

    def _vmcall(self, _target: int) -> Outcome:
        return self.advance(instructions.vmcall(self.processor))

    def prepare(self, ipi: Ipi | None, target: int) -> None:
        """What `send` will send, or the jump past it."""
        self.processor.guest.interruptibility = 0
        if ipi is None:
            self.pc = target
        else:
            self.msr, self._icr, self._prepared_for = ipi
            self.pc += 1

    def advance(self, outcome: Outcome) -> Outcome:
        """RIP moves on unless the instruction exited: then the VMM moves it."""
        if outcome is None:
            self.pc += 1
        return outcome


Instructions = Mapping[Op, Callable[[Guest, int], Outcome]]
INSTRUCTIONS: Final[Instructions] = {op: getattr(Guest, f"_{op.name.lower()}") for op in Op}
