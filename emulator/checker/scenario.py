"""What is explored: who may act, how often, under which hypervisor.  Frozen data, no behaviour.

A bound is the most that a sender may do; it may always do less.  `catalogue` holds the scenarios
that have a name; `world` turns one into actors.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from emulator.checker.claims import SAFETY, Claim
from emulator.kvm.params import Bug, EntryOrder, Kvm, Notify, PidScheme, ReentryOrder

REMOTE_VECTOR: Final = 0x21
TIMER_VECTOR: Final = 0xEC
DEVICE_VECTOR: Final = 0x51  # VT-d, posted format
IRQ_VECTOR: Final = 0xE0  # what the host IRQ's handler posts


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

    @property
    def kvm(self) -> Kvm:
        """The hypervisor this scenario runs.  No halt polling: it only delays blocking."""
        return Kvm(
            rule=self.rule,
            pid_scheme=self.pid_scheme,
            entry_order=self.entry_order,
            reentry_order=self.reentry_order,
            halt_poll_ns=0,
            bugs=self.bugs,
        )

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
