"""Counters that are not worth an event: one array of u64 per pCPU in the mapped file.

Single writer (the pCPU), readable by all at any time.  Names are KVM's where KVM has one
(struct kvm_vcpu_stat, kvm_vcpu_stat_generic).
"""

from enum import IntEnum
from typing import Final

EXIT_REASONS: Final = 64  # slots 0..63: VM exits by basic exit reason


class Stat(IntEnum):
    """The slots behind the exit reasons."""

    SYNCS_ON = 64  # vmx_sync_pir_to_irr() found ON set
    SYNCS_OFF = 65
    FASTPATH_REENTER = 66  # EXIT_FASTPATH_REENTER_GUEST
    HALT_ATTEMPTED_POLL = 67
    HALT_SUCCESSFUL_POLL = 68
    IRQ_PIN = 69  # host handlers, rows of /proc/interrupts
    IRQ_NPI = 70
    IRQ_PIW = 71
    IRQ_RES = 72
    IRQ_LOC = 73
    IRQ_DEVICE = 74
    LOOKS = 75  # looks at the socket
    YIELDS = 76
    HALT_WAKEUP = 77
    HALT_POLL_SUCCESS_NS = 78
    HALT_POLL_FAIL_NS = 79
    HALT_WAIT_NS = 80


STATS: Final = 96
