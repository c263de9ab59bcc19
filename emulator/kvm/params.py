"""The hypervisor's axes: small frozen types that a config sets and protocol text reads.

`Kvm` is to this code what the module parameters and the kernel version are to KVM.  Every axis
is independent of the others (an unsafe combination is allowed where history had it).
"""

from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import Final


class Notify(Enum):
    """The notification rules, by the commit that brought them.  See `kvm/deliver.py`."""

    KVM_V3_10 = "kvm-v3.10"  # a20ed54d6e47
    KVM_V4_11 = "kvm-v4.11"  # b95234c84004
    KVM_V5_8 = "kvm-v5.8"  # 379a3c8ee444, unsafe
    KVM_V5_16 = "kvm-v5.16"  # fdba608f15e2
    KVM_V5_17 = "kvm-v5.17"  # 0f65a9d33767
    KVM_V5_18 = "kvm-v5.18"  # 9b44423bf4c8, the default


class PidScheme(Enum):
    """Who keeps NV, NDST and SN right while a vCPU is not running.  See `kvm/pid.py`."""

    NONE = "none"  # no hardware sender: nobody reads them
    PRE_BLOCK = "pre-block"  # v4.4 - v5.16: hooks around the blocking loop
    PREEMPT_SN = "preempt-sn"  # v5.17, d76fb40637fc: at put/load, SN only if preempted
    SN_ON_PUT = "sn-on-put"  # v6.17, 6737557442e5: SN on every put that arms no wake-up


class EntryOrder(Enum):
    """vcpu_enter_guest(): what comes before what."""

    V2013 = "2013"  # sync, then mode, then interrupts off (B03, B04)
    V2017 = "2017"  # interrupts off, mode, barrier, sync (b95234c84004)


class ReentryOrder(Enum):
    """The fastpath's way back into the guest."""

    SYNC_FIRST = "sync-first"  # sync PIR, then test for exit requests (de7cd3f6761f)
    SYNC_LAST = "sync-last"  # the other way round (B02)
    NONE = "none"  # no sync at all


class FastpathIcr(Enum):
    """What becomes of a WRMSR of the x2APIC ICR in vmx_exit_handlers_fastpath()."""

    NONE = "none"  # before v5.5: the slow handler sends, interrupts on
    EXIT = "exit"  # 1e9e2622a149, a9ab13ff6e84: sent, and out of the entry loop
    REENTER = "reenter"  # 0dd45f2cd8cc (v6.12): sent, and straight back in


class Timer(Enum):
    """What counts the guest's TSC deadline while the guest runs."""

    PREEMPTION = "preemption"  # the VMX-preemption timer, ce7a058a2117 (v4.8)
    HRTIMER = "hrtimer"  # a timer of the host, whose interrupt ends guest mode


class Senders(Enum):
    """Which hardware can write a PI descriptor.  The host's machine, not its kernel."""

    NONE = "none"
    VT_D = "vt-d"  # remapping entries in posted format (v4.4)
    IPI_VIRTUALIZATION = "ipi-virtualization"  # d588bb9be1da (v6.0)
    BOTH = "both"


class Request(IntFlag):
    """`vcpu->requests`."""

    EVENT = 1
    UNBLOCK = 2
    APICV_UPDATE = 4


class TaskState(IntEnum):
    """`task->__state` of a vCPU thread, and whether it is on a run queue."""

    RUNNING = 0  # runnable: running or queued
    INTERRUPTIBLE = 1  # about to sleep: still on the CPU, or preempted in between
    SLEEPING = 2  # dequeued: only a wake-up brings it back


class MpState(IntEnum):
    """`vcpu->arch.mp_state`, the two values that matter here."""

    RUNNABLE = 0
    HALTED = 3


class Fastpath(IntEnum):
    """fastpath_t of vmx_exit_handlers_fastpath()."""

    NONE = 0
    REENTER_GUEST = 1
    EXIT_HANDLED = 2


class Bug(Enum):
    """The museum's switches: off unless a config or a check turns one on.  See `kvm/bugs.py`."""

    NOTHING = "none"

    B03 = "B03"  # a20ed54d6e47 to b95234c84004
    B04 = "B04"  # a20ed54d6e47 to b95234c84004
    B05 = "B05"  # until c112b5f50232
    B06 = "B06"  # c112b5f50232 to v5.4
    B08 = "B08"  # until 8b306e2f3c41, 31afb2ea2b10
    B09 = "B09"  # until a2486020a82e
    B10 = "B10"  # until 53b7ca1a3593
    B11 = "B11"  # until 7e1901f6c86c, 37c4dbf337c5
    B12 = "B12"  # until cfb0e1306a37
    B16 = "B16"  # until 1831fa44df74
    B20 = "B20"  # until b2849bec936b

    SEND_REVERSED = "send-reversed"
    MODE_BEFORE_ON = "mode-before-on"
    NO_GATE = "no-gate"
    NO_WAKE = "no-wake"
    ELIDE_EXITING = "elide-exiting"
    SYNC_REVERSED = "sync-reversed"
    NO_ENTRY_FENCE = "no-entry-fence"
    LATE_OUTSIDE = "late-outside"
    WAKE_WITHOUT_STATE = "wake-without-state"
    STATE_WITHOUT_FENCE = "state-without-fence"
    STALE_RUNNING = "stale-running"
    LIST_WRONG_CPU = "list-wrong-cpu"
    ARM_WITHOUT_ON_TEST = "arm-without-on-test"
    STALE_NDST = "stale-ndst"

    # Not a bug: the proposed repair of the loss that preemption and migration cause (`kvm/pid`).
    REPAIR_WAKE_AT_LOAD = "repair-wake-at-load"

    __hash__ = object.__hash__  # members are singletons, and `in` stands on hot paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Kvm:
    """One host's hypervisor.  Times in ns."""

    rule: Notify = Notify.KVM_V5_18
    pid_scheme: PidScheme = PidScheme.NONE
    entry_order: EntryOrder = EntryOrder.V2017
    reentry_order: ReentryOrder = ReentryOrder.SYNC_FIRST
    halt_poll_ns: int = 200_000  # module parameter halt_poll_ns, x86 default
    fastpath_icr: FastpathIcr = FastpathIcr.EXIT
    fastpath_tscdeadline: bool = True  # ae95f566b3d2 (v5.8)
    fastpath_preemption_timer: bool = True  # 26efe2fd92e5 (v5.8)
    fastpath_hlt: bool = False  # 1876dd69dfe8 (v6.12)
    timer: Timer = Timer.PREEMPTION
    # Module parameter pi_inject_timer (0c5f81dad46c).  The guest halts without exits, as
    # kvm_can_post_timer_interrupt() demands, and a housekeeping pCPU counts.
    exitless_timer: bool = False
    # APICv is inhibited for this long, then active for as long, and so on; 0: always active.
    apicv_inhibit_ns: int = 0
    senders: Senders = Senders.NONE
    sched_slice_ns: int = 3_000_000  # of vCPUs that share a pCPU (CFS: sched_min_granularity)
    bugs: frozenset[Bug] = frozenset()

    @property
    def enable_ipiv(self) -> bool:
        """Guests' ICR writes are IPI-virtualized.  Kernel: same name."""
        return self.senders in (Senders.IPI_VIRTUALIZATION, Senders.BOTH)

    @property
    def irq_bypass(self) -> bool:
        """The IOMMU can post.  Kernel: kvm_arch_has_irq_bypass()."""
        return self.senders in (Senders.VT_D, Senders.BOTH)


# The members that protocol text names, as the kernel spells them.  Plain names, because looking a
# member up through its class costs CPython 3.11 a tenth of a microsecond, twice a step's own cost.
KVM_V3_10: Final = Notify.KVM_V3_10
KVM_V5_8: Final = Notify.KVM_V5_8
KVM_V5_17: Final = Notify.KVM_V5_17
KVM_V5_18: Final = Notify.KVM_V5_18
KVM_REQ_EVENT: Final = Request.EVENT
KVM_REQ_UNBLOCK: Final = Request.UNBLOCK
KVM_REQ_APICV_UPDATE: Final = Request.APICV_UPDATE
TASK_RUNNING: Final = TaskState.RUNNING
TASK_INTERRUPTIBLE: Final = TaskState.INTERRUPTIBLE
KVM_MP_STATE_RUNNABLE: Final = MpState.RUNNABLE
KVM_MP_STATE_HALTED: Final = MpState.HALTED
EXIT_FASTPATH_NONE: Final = Fastpath.NONE
EXIT_FASTPATH_REENTER_GUEST: Final = Fastpath.REENTER_GUEST
EXIT_FASTPATH_EXIT_HANDLED: Final = Fastpath.EXIT_HANDLED
SYNC_FIRST: Final = ReentryOrder.SYNC_FIRST
SYNC_LAST: Final = ReentryOrder.SYNC_LAST
ENTRY_ORDER_2013: Final = EntryOrder.V2013
FASTPATH_ICR_NONE: Final = FastpathIcr.NONE
FASTPATH_ICR_REENTER: Final = FastpathIcr.REENTER
TIMER_PREEMPTION: Final = Timer.PREEMPTION
B03: Final = Bug.B03
B04: Final = Bug.B04
B05: Final = Bug.B05
B06: Final = Bug.B06
B08: Final = Bug.B08
B09: Final = Bug.B09
B10: Final = Bug.B10
B11: Final = Bug.B11
B12: Final = Bug.B12
B16: Final = Bug.B16
B20: Final = Bug.B20
SEND_REVERSED: Final = Bug.SEND_REVERSED
MODE_BEFORE_ON: Final = Bug.MODE_BEFORE_ON
NO_GATE: Final = Bug.NO_GATE
NO_WAKE: Final = Bug.NO_WAKE
ELIDE_EXITING: Final = Bug.ELIDE_EXITING
SYNC_REVERSED: Final = Bug.SYNC_REVERSED
NO_ENTRY_FENCE: Final = Bug.NO_ENTRY_FENCE
LATE_OUTSIDE: Final = Bug.LATE_OUTSIDE
WAKE_WITHOUT_STATE: Final = Bug.WAKE_WITHOUT_STATE
STALE_RUNNING: Final = Bug.STALE_RUNNING
LIST_WRONG_CPU: Final = Bug.LIST_WRONG_CPU
ARM_WITHOUT_ON_TEST: Final = Bug.ARM_WITHOUT_ON_TEST
STALE_NDST: Final = Bug.STALE_NDST
REPAIR_WAKE_AT_LOAD: Final = Bug.REPAIR_WAKE_AT_LOAD
