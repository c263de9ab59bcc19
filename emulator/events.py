"""The words: every kind of event, its counters, and the bytes it is stored in.

A leaf that imports nothing.  `machine/recorder` writes these records while a run goes on,
`measure/` and `report/` read them afterwards, protocol text names them in `cpu.trace()`,
which is to this code what a tracepoint is to the kernel: not a step, invisible to others.

One record is 32 bytes, little-endian, no padding:

    offset  type  field   meaning
    0       u64   ts      CLOCK_MONOTONIC, ns, when the thing happened (or began)
    8       u64   arg     per kind, see `Event`
    16      u64   ref     per kind, see `Event`
    24      u8    kind    `Event`
    25      u8    vector  interrupt vector, 0 where there is none
    26      u16   pcpu    the physical CPU (or device, see DEVICE_BASE) that recorded it
    28      u16   vcpu    the virtual CPU it is about, NO_VCPU where there is none
    30      u16   load    1 + index of the config's load that caused it, 0 = the guest program
"""

from enum import IntEnum
from struct import Struct
from typing import Final

RECORD: Final = Struct("<QQQBBHHH")
RECORD_BYTES: Final = 32
NO_VCPU: Final = 0xFFFF
DEVICE_BASE: Final = 0x8000  # a device process records as pcpu DEVICE_BASE + its index


class Event(IntEnum):
    """What happened.  The verbs are those of the README's walk."""

    # due -> post: the sender's half (pcpu = sender, vcpu = target)
    POST = 1  # PIR bit 0 -> 1: this poster owns the rest.  arg = due ns, ref = post number of pcpu
    POST_PIR_SET = 2  # PIR bit was already 1: coalesced (elided_pir).  arg = due ns
    ELIDE_ON = 3  # ON was already 1: somebody has notified
    ELIDE_SAME_VCPU = 4  # the target is the vCPU running here: nothing to interrupt
    ELIDE_SN = 5  # SN = 1: a hardware sender must not notify
    NOTIFY = 6  # vector sent; ts = begin, arg = end of the send, ns; ref = message id
    WAKE = 7  # the target was blocked and has been woken
    NOT_BLOCKED = 8  # a wake that found nobody asleep
    KICK = 9  # the target was kicked out of guest mode (reschedule vector sent if ref = 1)
    NOTIFY_DROPPED = 10  # the transport refused the message.  ref = message id

    # arrive: the target's pCPU (vcpu = whom it was meant for)
    ARRIVE = 16  # folded into the LAPIC's IRR.  arg = send begin ns, ref = message id
    ARRIVE_MERGED = 17  # its vector was already pending there.  arg, ref as ARRIVE
    ACCEPT = 18  # the LAPIC's vector was taken.  arg = `Met`, ref = message id

    # sync, deliver, eoi: the target (vcpu = the owner of the virtual APIC)
    SYNC = 24  # one vector PIR -> VIRR.  arg: bit 0 = by the processor, bit 1 = VIRR was set
    DELIVER = 25  # the guest's handler starts
    EOI = 26  # the guest's EOI
    SELF_IPI = 27  # self-IPI virtualization: VIRR set, no PIR.  arg = due ns, ref = 1: it was set

    # the run loop
    EXIT = 32  # VM exit at ts, next VM entry (or the loop's end) at arg; ref = exit reason
    HALT = 33  # vCPU blocked from ts to arg; ref = 1 if the scheduler took it off the pCPU
    HALT_POLL = 34  # polled from ts to arg; ref = 1 if that found work
    SCHED_IN = 35  # loaded on this pCPU.  arg = previous pCPU
    SCHED_OUT = 36  # ref = 1 if preempted
    HOST_IRQ = 37  # a host interrupt handler ran from ts to arg
    VM_ENTRY = 38  # reserved for traces that ask for it

    # the load generators
    RAISE = 48  # a device raised host vector `vector`.  arg = due ns, ref = message id,
    #             0: the IOMMU took it and posted
    LATE = 49  # a load could not keep up and skipped this due time.  arg = due ns

    # the watchdog (recorded by the launcher, pcpu = LAUNCHER, or by the vCPU's own pCPU)
    LOST = 64  # work announced, nobody on the way.  arg = ns it has lasted, ref = 1: vCPU awake


LAUNCHER: Final = 0xFFFE


class Met(IntEnum):
    """What a notification met on arrival: the three cases of the patch's comment, and two more.

    Source: the comment above the elision in kvm_vcpu_trigger_posted_interrupt() (9b44423bf4c8).
    """

    IN_GUEST = 1  # still in non-root mode: the processor harvests PIR
    ROOT_RUNNABLE = 2  # exited, runnable: the next entry syncs
    ROOT_BLOCKED = 3  # exited, blocked: the wake-up is somebody else's business, and was done
    OTHER_VCPU = 4  # another vCPU was current on that pCPU (or none)


# The events that protocol text traces, as plain names: cheaper to look up than a member.
ELIDE_ON: Final = Event.ELIDE_ON
ELIDE_SAME_VCPU: Final = Event.ELIDE_SAME_VCPU
ELIDE_SN: Final = Event.ELIDE_SN
WAKE: Final = Event.WAKE
NOT_BLOCKED: Final = Event.NOT_BLOCKED
KICK: Final = Event.KICK
