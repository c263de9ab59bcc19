"""The scenarios that have a name.  `check --list` prints them with their questions.

`expected` names the rules under which a claim is known to break; a test explores each scenario
under each rule and compares.
"""

from typing import Final

from emulator.checker.claims import SAFETY, Claim
from emulator.checker.scenario import Bounds, MemoryModel, Scenario
from emulator.kvm.params import Bug, EntryOrder, Notify, PidScheme, ReentryOrder, Timer

_ALL: Final = frozenset(Notify)
_V3_10: Final = frozenset({Notify.KVM_V3_10})
_V5_8: Final = frozenset({Notify.KVM_V5_8})
_ONE_EACH: Final = Bounds(remote=1, irq=1, fastpath=1)
_TWO_EACH: Final = Bounds(remote=2, irq=2, fastpath=2)
_DEVICE_MOVING: Final = Bounds(device=1, preempt=1, migrate=1)
_REPAIRED: Final = frozenset({Bug.REPAIR_WAKE_AT_LOAD})

_QUICK: Final = (
    Scenario(
        name="base",
        question="Does a vCPU that runs, halts and re-enters hear of every post?",
        bounds=_ONE_EACH,
        expected=_V5_8,
    ),
    Scenario(
        name="base-tso",
        question="And on x86, where a plain store reaches the others later?",
        bounds=_ONE_EACH,
        memory=MemoryModel.TSO,
        expected=_V5_8,
    ),
    Scenario(
        name="lost-wakeup",
        question="How did kvm-v5.8 lose a wake-up, and do the later rules not?",
        bounds=_ONE_EACH,
        rule=Notify.KVM_V5_8,
        expected=_V5_8,
    ),
    Scenario(
        name="local-irq",
        question="May a host interrupt on the vCPU's own pCPU skip the notification?",
        bounds=Bounds(irq=1),
        one_vector=True,
        expected=_V5_8,
    ),
    Scenario(
        name="local-irq-and-remote",
        question="And with a second sender of the same vector elsewhere?",
        bounds=Bounds(remote=1, irq=1),
        one_vector=True,
        expected=_V5_8,
    ),
    Scenario(
        name="remote",
        question="Does a vCPU hear of a sender on another pCPU?",
        bounds=Bounds(remote=1),
        one_vector=True,
    ),
    Scenario(
        name="fastpath-and-remote",
        question="May a fastpath handler skip the notification to its own vCPU?",
        bounds=Bounds(remote=1, fastpath=1),
        one_vector=True,
    ),
    Scenario(
        name="masked",
        question="Does arming the wake-up vector at sched-out hide the loss of kvm-v5.8?",
        bounds=Bounds(irq=1),
        pid_scheme=PidScheme.PREEMPT_SN,
        assigned=True,
        one_vector=True,
    ),
    Scenario(
        name="masked-and-remote",
        question="And with a remote sender about?",
        bounds=Bounds(remote=1, irq=1),
        pid_scheme=PidScheme.PREEMPT_SN,
        assigned=True,
        one_vector=True,
    ),
    Scenario(
        name="entry-2013",
        question="Is the entry order of 2013 safe without the EVENT request that hid its races?",
        bounds=Bounds(remote=1),
        entry_order=EntryOrder.V2013,
        one_vector=True,
        expected=_ALL - _V3_10,
    ),
    Scenario(
        name="entry-mode-first",
        question="May IN_GUEST_MODE be stored while interrupts are still on (B03)?",
        bounds=Bounds(remote=1),
        bugs=frozenset({Bug.B03}),
        one_vector=True,
        expected=_ALL - _V3_10,
    ),
    Scenario(
        name="entry-sync-first",
        question="May PIR be synced before IN_GUEST_MODE is stored (B04)?",
        bounds=Bounds(remote=1),
        bugs=frozenset({Bug.B04}),
        one_vector=True,
        expected=_ALL - _V3_10,
    ),
    Scenario(
        name="entry-barrier",
        question="Is smp_mb() between the mode store and the load of ON needed on x86?",
        bounds=Bounds(remote=1),
        memory=MemoryModel.TSO,
        bugs=frozenset({Bug.NO_ENTRY_FENCE}),
        expected=_ALL,
    ),
    Scenario(
        name="no-reentry-sync",
        question="Does eliding depend on the sync before re-entry?",
        bounds=Bounds(fastpath=1),
        reentry_order=ReentryOrder.NONE,
        one_vector=True,
        expected=frozenset({Notify.KVM_V5_8, Notify.KVM_V5_18}),
    ),
    Scenario(
        name="send-reversed",
        question="May a sender set ON before PIR?",
        bounds=Bounds(remote=1),
        bugs=frozenset({Bug.SEND_REVERSED}),
        one_vector=True,
        expected=_ALL,
    ),
    Scenario(
        name="device-pre-block",
        question="Does the scheme of v4.4 wake a vCPU for a device?",
        bounds=Bounds(remote=1, device=1),
        pid_scheme=PidScheme.PRE_BLOCK,
        assigned=True,
    ),
    Scenario(
        name="device-preempt-sn",
        question="Does the scheme of v5.17, with preemption and migration?",
        bounds=_DEVICE_MOVING,
        pid_scheme=PidScheme.PREEMPT_SN,
        assigned=True,
    ),
    Scenario(
        name="device-sn-on-put",
        question="Does the scheme of v6.17, with preemption and migration?",
        bounds=_DEVICE_MOVING,
        pid_scheme=PidScheme.SN_ON_PUT,
        assigned=True,
    ),
    Scenario(
        name="device-urgent",
        question="And a device whose remapping entry is urgent, which ignores SN?",
        bounds=_DEVICE_MOVING,
        pid_scheme=PidScheme.SN_ON_PUT,
        assigned=True,
        urgent=True,
    ),
    Scenario(
        name="ipi-virtualization",
        question="And IPI virtualization, which sets PIR and ON under two locks?",
        bounds=_DEVICE_MOVING,
        pid_scheme=PidScheme.SN_ON_PUT,
        assigned=True,
        ipi_virtualization=True,
    ),
    Scenario(
        name="preempted-sleeper",
        question="A vCPU preempted between its last check and its sleep: who wakes it?",
        bounds=Bounds(remote=1, preempt=1, migrate=1),
        expected=_ALL - _V3_10,
    ),
    Scenario(
        name="preempted-sleeper-repaired",
        question="The same, if the loader that sets ON also wakes?",
        bounds=Bounds(remote=1, preempt=1, migrate=1),
        bugs=_REPAIRED,
    ),
    Scenario(
        name="preempted-pre-block",
        question="The same with a device under the scheme of v4.4, without migration?",
        bounds=Bounds(device=1, preempt=1),
        pid_scheme=PidScheme.PRE_BLOCK,
        assigned=True,
        expected=_ALL,
    ),
    Scenario(
        name="hotplug",
        question="Does a vCPU that sleeps already hear of a device assigned later?",
        bounds=Bounds(device=1, plug=1),
        pid_scheme=PidScheme.SN_ON_PUT,
    ),
    Scenario(
        name="guest-masks",
        question="Is a vCPU that halted with interrupts off left alone?",
        bounds=Bounds(device=1),
        pid_scheme=PidScheme.SN_ON_PUT,
        assigned=True,
        guest_masks=True,
        claims=SAFETY | {Claim.NO_NEEDLESS_WAKE, Claim.NOTIFIED_WHERE_LOADED},
    ),
    Scenario(
        name="timer",
        question="Is a TSC deadline delivered, from the fastpath and from a sleep?",
        bounds=Bounds(remote=1, timer=1),
    ),
    Scenario(
        name="hrtimer",
        question="And where there is no preemption timer: an hrtimer counts, its handler wakes?",
        bounds=Bounds(remote=1, timer=1),
        timer=Timer.HRTIMER,
    ),
    Scenario(
        name="hlt-fastpath",
        question="May a HLT with work pending go straight back into the guest?",
        bounds=_ONE_EACH,
        fastpath_hlt=True,
        expected=_V5_8,
    ),
    Scenario(
        name="gate",
        question="Does whoever finds ON set leave the notification to the one who set it?",
        bounds=_ONE_EACH,
        claims=frozenset({Claim.GATE}),
    ),
    Scenario(
        name="elision",
        question="Does none but the vCPU's thread elide, in guest mode, and sync after it?",
        bounds=Bounds(irq=1, fastpath=1, plug=1),
        claims=frozenset({Claim.ELISION_IS_SOUND}),
        expected=_V5_8,
    ),
    Scenario(
        name="in-the-end",
        question="Is every post delivered in the end, if nobody is starved?",
        bounds=_ONE_EACH,
        priority=True,
        claims=SAFETY | {Claim.DELIVERY_STAYS_POSSIBLE, Claim.EVERY_POST_IS_DELIVERED_AT_LAST},
        expected=_V5_8,
    ),
    Scenario(
        name="cost",
        question="What are the fewest and the most notifications, per rule?",
        bounds=Bounds(remote=1, fastpath=2),
        claims=SAFETY | {Claim.COST},
    ),
)

_FULL: Final = (
    Scenario(
        name="two-each",
        question="Two posts from each kind of sender: is any lost?",
        bounds=_TWO_EACH,
        expected=_V5_8,
        full=True,
    ),
    Scenario(
        name="two-each-tso",
        question="And with store buffers?",
        bounds=_TWO_EACH,
        memory=MemoryModel.TSO,
        expected=_V5_8,
        full=True,
    ),
    Scenario(
        name="three-posts",
        question="A third post from another pCPU: is any lost?",
        bounds=Bounds(remote=3, irq=2, fastpath=2),
        expected=_V5_8,
        full=True,
    ),
    Scenario(
        name="armed",
        question="Software and a device, preemption and migration, wake-up armed: is any lost?",
        bounds=Bounds(remote=1, device=1, preempt=1, migrate=1),
        pid_scheme=PidScheme.SN_ON_PUT,
        assigned=True,
        full=True,
    ),
    Scenario(
        name="repaired",
        question="The repaired text with every software sender, preempted and moved?",
        bounds=Bounds(remote=1, irq=1, fastpath=1, preempt=1, migrate=1),
        bugs=_REPAIRED,
        expected=_V5_8,
        full=True,
    ),
    Scenario(
        name="interrupted-handler",
        question="May interrupts come on before the mode is left and the exit's handler has run?",
        bounds=Bounds(remote=1, device=1, timer=1),
        pid_scheme=PidScheme.SN_ON_PUT,
        assigned=True,
        bugs=frozenset({Bug.LATE_OUTSIDE}),
        expected=_ALL,
        full=True,
    ),
    Scenario(
        name="two-vcpus",
        question="Two vCPUs, four posts each: sampled (`sample`), too wide to explore.",
        bounds=Bounds(remote=4, irq=4, fastpath=4),
        pins=(0, 1),
        expected=_V5_8,
        full=True,
        sampled=True,
    ),
)

SCENARIOS: Final = {scenario.name: scenario for scenario in (*_QUICK, *_FULL)}
