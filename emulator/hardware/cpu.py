"""`Cpu`: the one seam between protocol text and the world it runs in.  The processor's half.

One call on `cpu` is one atomic step, or one look at state that no other CPU can change.
Protocol text (`hardware/posted.py`, `hardware/senders.py`, all of `kvm/`) reaches everything
another CPU could see or cause through this object and through nothing else.  Its worlds:

    machine/live.py     the real one: atomic instructions, ZeroMQ, the clock
    checker/            a value for memory, and a search that chooses who moves next

Rules for the text that calls these methods (checked by `checker/lint.py`): at most one call per
expression, its result bound to a local or tested at once; locals are small immutable values; no
clock, randomness, socket, memory map or module state; loops only over constants or with a step
inside.  Interrupts arrive between two steps while they are enabled, and only then.

Each method is marked with its kind:

    LOCKED  a locked read-modify-write: a full barrier, drains the CPU's store buffer
    STORE   a plain store: under TSO it may linger in the store buffer
    LOAD    a plain load of something another CPU may write
    LOCAL   a step on what this pCPU owns, that decides what can happen to it (IF, VM entry)
    LOOK    state that only this pCPU sees: not a scheduling point, fused with the step before
    TRACE   recording: never a step

`kvm/cpu.py` adds what the host kernel provides.
"""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

from emulator.events import Event
from emulator.hardware.vectors import ExitReason

_F = TypeVar("_F", bound=Callable[..., object])


class Kind(Enum):
    """What a call on `cpu` is to the other CPUs.  See the module's docstring."""

    LOCKED = "locked"
    STORE = "store"
    LOAD = "load"
    LOCAL = "local"
    LOOK = "look"
    TRACE = "trace"


KIND_ATTRIBUTE = "__step_kind__"


def kind(k: Kind) -> Callable[[_F], _F]:
    """Mark a method of `Cpu` with its kind."""

    def mark(method: _F) -> _F:
        setattr(method, KIND_ATTRIBUTE, k)
        return method

    return mark


class Control(NamedTuple):
    """Bits 256..319 of a PI descriptor: the word that software updates by compare-exchange."""

    on: bool
    sn: bool
    nv: int
    ndst: int


class Cpu(Protocol):
    """What the processor gives.  `vcpu` names a descriptor and its virtual APIC."""

    # -- the PI descriptor ----------------------------------------------------------------------

    @kind(Kind.LOCKED)
    def pi_test_and_set_pir(self, vcpu: int, vector: int) -> bool:
        """LOCK BTS of PIR[vector]; the old bit."""

    @kind(Kind.LOCKED)
    def pi_test_and_set_on(self, vcpu: int) -> bool:
        """LOCK BTS of ON; the old bit."""

    @kind(Kind.LOCKED)
    def pi_test_and_set_on_unless_sn(self, vcpu: int, urgent: bool) -> Control:
        """A hardware sender's second atomic step: if ON = 0 and (SN = 0 or urgent), ON := 1.

        The control word as it was before.  VT-d specification 5.2.3; SDM "IPI virtualization".
        """

    @kind(Kind.LOCKED)
    def pi_clear_on(self, vcpu: int) -> None:
        """LOCK BTR of ON."""

    @kind(Kind.LOCKED)
    def pi_harvest(self, vcpu: int) -> int:
        """Exchange PIR with 0, OR it into VIRR; the highest vector found in PIR, -1 if none.

        Live this is four 64-bit exchanges, ascending, zero words skipped (one step for the
        checker, whose vectors share a word).  Recorded as `Event.SYNC`, a vector at a time.
        """

    # -- this pCPU's local APIC and the virtual APIC of its current VMCS ------------------------

    @kind(Kind.LOOK)
    def current_vmcs(self) -> int:
        """The vCPU whose VMCS is current here, -1 if none."""

    @kind(Kind.LOOK)
    def lapic_eoi(self) -> None:
        """Write 0 to the physical EOI register."""

    @kind(Kind.LOOK)
    def raise_rvi(self, vector: int) -> None:
        """RVI := max(RVI, vector) of the current VMCS; -1 changes nothing."""

    @kind(Kind.LOOK)
    def evaluate_pending_virtual_interrupts(self) -> None:
        """SDM 29.2.1, for the current VMCS."""

    @kind(Kind.LOCKED)
    def send_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        """ICR write: fixed `vector` to the local APIC of `pcpu`.

        `vcpu` is whom the sender means.  It travels for the account only: the receiving
        processor sees a vector (spec fact: it does not care who sent it, or for whom).
        """

    # -- non-root operation ---------------------------------------------------------------------

    @kind(Kind.LOCAL)
    def vm_entry(self, vcpu: int) -> None:
        """VM entry: non-root mode; virtual interrupts are evaluated, the descriptor is not read."""

    @kind(Kind.LOCAL)
    def non_root_event(self, vcpu: int) -> int:
        """Run the guest up to the next thing that the host's text must know.

        NOTIFICATION: the LAPIC presented the notification vector and it has been acknowledged
        (SDM 29.6 steps 1-2).  Otherwise an `ExitReason`: the guest has left non-root mode.
        Delivering virtual interrupts happens inside; the checker makes it a step of its own.
        """

    @kind(Kind.TRACE)
    def trace(self, event: Event, vcpu: int, vector: int = 0, arg: int = 0) -> None:
        """Record an event.  A tracepoint: not a step."""


NOTIFICATION = (
    0  # the value of non_root_event() that is no exit (exit reason 0 is NMI, not modelled)
)

__all__ = ["KIND_ATTRIBUTE", "NOTIFICATION", "Control", "Cpu", "ExitReason", "Kind", "kind"]
