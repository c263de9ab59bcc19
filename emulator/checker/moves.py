"""Small records that `world` hands out: who can move, and what a move was."""

from typing import Any, NamedTuple

from emulator.checker.automaton import Node
from emulator.checker.choices import Vmcs
from emulator.checker.claims import Claim

Entry = tuple[bool, tuple[int, ...]]  # (something here is obliged to happen, differences)


class Part(NamedTuple):
    """Something that can move.

    With a program: "thread" (a vCPU's, with its guest), "preempt" (the scheduler's hook in it),
    "irq" (a pCPU's interrupt handler), "remote", "device", "plug".  Without: "pcpu" (vectors that
    arrive, a store buffer that drains), "sched".  `number` is a vCPU's, or for "irq" and "pcpu" a
    pCPU's.
    """

    kind: str
    number: int

    @property
    def actor(self) -> str:
        """As counterexamples name it."""
        return f"{'vcpu' if self.kind in ('thread', 'preempt') else self.kind}{self.number}"


class Look(NamedTuple):
    """A call that went with a step: only its own pCPU could have changed what it saw."""

    op: str
    args: tuple[Any, ...]
    result: Any


class Move(NamedTuple):
    """One step of one actor, from one state.

    `op` is a method of `Cpu`, or what the surroundings did: "interrupt" (args: do_irq and the
    vector), "iret", "preempt", "call", "return", "retire", "drain" (args: vCPU, what, value),
    "deliver", "compute", "assign", "unassign".  `node` is where its text stood, if it was text.
    `vmcs` is what a VM exit left to be read (`choices.Vmcs`).  In one state no two moves have the
    same actor, `op`, `args`, `result` and `vmcs`: to record these is to record the move.
    """

    delta: int
    voluntary: bool
    actor: str
    pcpu: int
    op: str
    args: tuple[Any, ...]
    result: Any = None
    node: Node | None = None
    looks: tuple[Look, ...] = ()
    fault: tuple[Claim, str] | None = None
    part: Part = Part("", -1)
    vmcs: Vmcs = ()
