"""The claims that an exploration checks, and what must have happened for "holds" to mean something.

Which claim a scenario makes is in its data (`scenario`); where each is evaluated:

    S1   every post is delivered     in a state at rest nothing is owed      `world.owes`
    S2   delivery stays possible     a state that owes nothing stays in reach   `liveness`
    S3   no interrupt from nowhere   at each delivery                        `model_hardware`
    S4   the list agrees with NV     where a thread leaves put, load, a hook `world`
    S5   SN is clear in the guest    at each VM entry                        `world`
    L1   every post is delivered at last, if nobody is starved               `liveness`
    C1   fewest and most notifications over whole runs                       `cost`
    I8   nobody is woken for what it cannot take                             `model_cpu`
    I10  hardware notifies a vCPU only where it is loaded                    `model_hardware`
    I13  whoever finds ON set does not notify                                `model_hardware`
    I15  elision is sound: only the vCPU's own thread elides, in guest mode,
         interrupts off, and syncs before it enters or sleeps                `model_hardware`
    W1   no WARN_ON of the text fires                                        `automaton`
"""

from enum import Enum
from typing import Final


class Claim(Enum):
    """What must hold.  The value is the id of the table above."""

    EVERY_POST_IS_DELIVERED = "S1"
    DELIVERY_STAYS_POSSIBLE = "S2"
    NO_INTERRUPT_FROM_NOWHERE = "S3"
    LIST_AGREES_WITH_NV = "S4"
    SN_IS_CLEAR_IN_THE_GUEST = "S5"
    EVERY_POST_IS_DELIVERED_AT_LAST = "L1"
    COST = "C1"
    NO_NEEDLESS_WAKE = "I8"
    NOTIFIED_WHERE_LOADED = "I10"
    GATE = "I13"
    ELISION_IS_SOUND = "I15"
    NO_WARNING = "W1"

    @property
    def title(self) -> str:
        """As in "S1 every post is delivered"."""
        words = (w if w in _NAMES else w.lower() for w in self.name.split("_"))
        return f"{self.value} {' '.join(words)}"


_NAMES: Final = ("NV", "SN")  # fields of the descriptor, spelt as they are


SAFETY: Final = frozenset(
    {
        Claim.EVERY_POST_IS_DELIVERED,
        Claim.NO_INTERRUPT_FROM_NOWHERE,
        Claim.LIST_AGREES_WITH_NV,
        Claim.SN_IS_CLEAR_IN_THE_GUEST,
        Claim.NO_WARNING,
    }
)


class Sometimes(Enum):
    """Things that an exploration has to have seen: a claim about steps never reached is vacuous."""

    TOOK = "the processor took a notification"
    WASTED = "a notification arrived in root mode"
    PIR_SET = "a post met its PIR bit set"
    ON_SET = "a post found ON set"
    SN_SET = "a device found SN set"
    ELIDED = "a notification was elided: the vCPU runs here"
    BUFFERED = "ON was read with a store still buffered"
    SLEPT = "the vCPU went to sleep"
    WOKEN = "a wake-up found the vCPU asleep"
    ARMED = "the wake-up handler ran"
    MIGRATED = "the vCPU was loaded on another pCPU"
    REMOTE_DONE = "the remote program finished"
    IRQ_DONE = "the irq program finished"
    DEVICE_DONE = "the device program finished"
    PREEMPT_DONE = "the preempt program finished"
    PLUG_DONE = "the plug program finished"
    INHIBITED = "APICv was inhibited"  # never, in this model
