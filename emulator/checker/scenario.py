"""What is explored: who may act, how often, under which hypervisor.  Frozen data, no behaviour.

A bound is the most that a sender may do; it may always do less.  `catalogue` holds the scenarios
that have a name; `world` turns one into actors.
"""

from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Final

from emulator.checker.claims import SAFETY, Claim
from emulator.kvm.params import (
    Bug,
    EntryOrder,
    FastpathIcr,
    Kvm,
    Notify,
    PidScheme,
    ReentryOrder,
    Senders,
    Timer,
)

REMOTE_VECTOR: Final = 0x21
TIMER_VECTOR: Final = 0xEC
DEVICE_VECTOR: Final = 0x51  # VT-d, posted format
IRQ_VECTOR: Final = 0xE0  # what the host IRQ's handler posts

# The axes of `Kvm` that no scenario changes.  Every other is a field of `Scenario`.
FIXED: Final[dict[str, Any]] = {
    "halt_poll_ns": 0,  # polling only delays blocking
    "fastpath_icr": FastpathIcr.EXIT,  # no guest here writes an ICR
    "exitless_timer": False,  # no pCPU here is a housekeeper
    "apicv_inhibit_ns": 0,  # nor has the model a software VIRR: see the limits in `verdict`
    "senders": Senders.NONE,  # not the text's affair: `assigned`, `ipi_virtualization`
    "sched_slice_ns": 0,  # a thread can be preempted between any two steps
}


class MemoryModel(Enum):
    """How a plain store reaches the other CPUs."""

    SC = "sc"  # at once
    TSO = "tso"  # through a FIFO of depth 2 per pCPU; own loads see own stores


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The most each actor may do.  Posts are per vCPU, the scheduler's moves are for all."""

    remote: int = 0  # posts by a task on a pCPU that never hosts the target
    irq: int = 0  # host interrupts on the target's first pCPU, whose handler posts
    fastpath: int = 0  # preemption-timer exits: the vCPU posts to itself in guest mode
    device: int = 0  # VT-d posts
    timer: int = 0  # guest writes of IA32_TSC_DEADLINE
    preempt: int = 0
    migrate: int = 0
    plug: int = 0  # device assigned or taken away

    def __str__(self) -> str:
        short = {"remote": "R", "irq": "T", "fastpath": "F", "device": "D", "timer": "deadlines"}
        named = (f"{short.get(k, k)}<={v}" for k in self.__slots__ if (v := getattr(self, k)))
        return " ".join(named) or "no posts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One question to the checker."""

    name: str
    question: str
    bounds: Bounds
    rule: Notify = Notify.KVM_V5_18
    pid_scheme: PidScheme = PidScheme.NONE
    entry_order: EntryOrder = EntryOrder.V2017
    reentry_order: ReentryOrder = ReentryOrder.SYNC_FIRST
    timer: Timer = Timer.PREEMPTION
    fastpath_tscdeadline: bool = True
    fastpath_preemption_timer: bool = True
    fastpath_hlt: bool = False
    bugs: frozenset[Bug] = frozenset()
    memory: MemoryModel = MemoryModel.SC
    pins: tuple[int, ...] = (0,)  # the pCPU each vCPU starts on
    hosts: int = 2  # pCPUs that can run vCPUs; senders sit on those above
    assigned: bool = False  # a hardware sender can write the descriptor from the start
    urgent: bool = False  # the device's remapping entry has its URG bit set
    ipi_virtualization: bool = False  # the hardware sender takes two locks, not VT-d's one
    guest_masks: bool = False  # the guest may HLT with RFLAGS.IF = 0
    priority: bool = False  # nothing is in flight: what is pending precedes the next instruction
    early_ends: bool = True  # senders may retire before their bound, a guest compute for ever
    one_vector: bool = False  # all senders post the same vector
    claims: frozenset[Claim] = SAFETY
    expected: frozenset[Notify] = frozenset()  # the rules under which a claim is known to break
    full: bool = False  # more states than a quick profile has time for
    sampled: bool = False  # more than any search has room for: `sampling`

    @property
    def kvm(self) -> Kvm:
        """The hypervisor this scenario runs: every axis, its own or FIXED."""
        axes = (axis.name for axis in fields(Kvm))
        return Kvm(**{a: FIXED[a] if a in FIXED else getattr(self, a) for a in axes})

    @property
    def axes(self) -> str:
        """The axes that a verdict names if they are not what KVM has today."""
        told = {"pid_scheme": f"put/load scheme {self.pid_scheme.value}"}
        usual = Kvm()
        for axis in fields(Kvm):
            value = getattr(self.kvm, axis.name)
            if axis.name not in FIXED and value != getattr(usual, axis.name):
                told.setdefault(axis.name, f"{axis.name} {getattr(value, 'value', value)}")
        told = {name: text for name, text in told.items() if name not in ("rule", "bugs")}
        return ", ".join(told.values())

    def under(
        self,
        rule: Notify | None = None,
        bugs: frozenset[Bug] | None = None,
        memory: MemoryModel | None = None,
    ) -> "Scenario":
        """The same question to another rule, with other switches, or of another memory."""
        return replace(
            self,
            rule=rule or self.rule,
            bugs=self.bugs if bugs is None else bugs,
            memory=memory or self.memory,
        )

    @property
    def vectors(self) -> tuple[int, ...]:
        """Every vector that a sender here can post, ascending."""
        if self.one_vector:
            return (REMOTE_VECTOR,)
        return tuple(sorted({REMOTE_VECTOR, IRQ_VECTOR, TIMER_VECTOR, DEVICE_VECTOR}))

    @property
    def remote_vector(self) -> int:
        """What the remote sender posts."""
        return REMOTE_VECTOR

    @property
    def irq_vector(self) -> int:
        """What the host interrupt's handler posts."""
        return REMOTE_VECTOR if self.one_vector else IRQ_VECTOR

    @property
    def timer_vector(self) -> int:
        """LVTT's vector: what the guest's timer posts."""
        return REMOTE_VECTOR if self.one_vector else TIMER_VECTOR

    @property
    def device_vector(self) -> int:
        """What the device's remapping entry says."""
        return REMOTE_VECTOR if self.one_vector else DEVICE_VECTOR
