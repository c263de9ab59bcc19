"""The local APIC's timer: TSC-deadline, one-shot and periodic.

Pure: the caller says what time it is, in TSC ticks, which are the timer's input clock here.
Next: the vector that `expire` returns goes to `LocalApic.accept`.  SDM vol. 3, 10.5.4.
"""

from enum import IntEnum
from typing import Final

LVT_MASKED: Final = 1 << 16


class TimerMode(IntEnum):
    """LVT timer register, bits 18:17."""

    ONE_SHOT = 0
    PERIODIC = 1
    TSC_DEADLINE = 2


def lvt_timer(mode: TimerMode, vector: int) -> int:
    """The LVT timer register for `mode` and `vector`, not masked."""
    return mode << 17 | vector


def divisor(tdcr: int) -> int:
    """The divide configuration register's meaning, SDM figure 10-10: bits 3, 1 and 0."""
    shift = (tdcr >> 1 & 4 | tdcr & 3) + 1
    return 1 if shift == 8 else 1 << shift


class ApicTimer:
    """One timer.  `fires_at` is the TSC value of its next expiry, 0 when it is not armed."""

    __slots__ = ("deadline_msr", "fires_at", "initial_count", "lvt", "tdcr")

    def __init__(self) -> None:
        self.lvt = LVT_MASKED
        self.tdcr = 0
        self.initial_count = 0
        self.deadline_msr = 0
        self.fires_at = 0

    @property
    def mode(self) -> TimerMode:
        return TimerMode(self.lvt >> 17 & 3)

    def write_lvt(self, value: int) -> None:
        """A change of mode from or to TSC-deadline disarms the timer, SDM 10.5.4.1."""
        before = self.mode
        self.lvt = value
        if before is not self.mode and TimerMode.TSC_DEADLINE in (before, self.mode):
            self.fires_at = self.deadline_msr = self.initial_count = 0

    def write_deadline(self, tsc: int) -> None:
        """WRMSR IA32_TSC_DEADLINE: 0 disarms, the past fires at once; ignored in other modes."""
        if self.mode is TimerMode.TSC_DEADLINE:
            self.deadline_msr = self.fires_at = tsc

    def write_initial_count(self, count: int, now: int) -> None:
        """Start a one-shot or periodic timer: `count` times the divisor, in ticks; 0 stops it."""
        if self.mode is not TimerMode.TSC_DEADLINE:
            self.initial_count = count
            self.fires_at = now + count * divisor(self.tdcr) if count else 0

    def current_count(self, now: int) -> int:
        """The current-count register."""
        if self.mode is TimerMode.TSC_DEADLINE or not self.fires_at:
            return 0
        return max(0, self.fires_at - now) // divisor(self.tdcr)

    def expire(self, now: int) -> int:
        """The vector to accept if the timer has expired by `now`, 0 otherwise.

        Call it again after a vector: a periodic timer that is late by several periods fires for
        each.  A masked timer expires in silence.
        """
        if not self.fires_at or now < self.fires_at:
            return 0
        if self.mode is TimerMode.PERIODIC:
            self.fires_at += self.initial_count * divisor(self.tdcr)
        else:
            self.fires_at = self.deadline_msr = 0
        return 0 if self.lvt & LVT_MASKED else self.lvt & 0xFF
