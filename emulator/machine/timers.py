"""The APIC timer and the halt-polling window, on this host's clock.

What they mean is protocol text (`kvm/timer.py`, `kvm/block.py`); here is when.
"""

import os
from time import monotonic_ns
from typing import Final

from emulator.events import Event
from emulator.kvm.block import next_halt_poll_ns
from emulator.kvm.params import Kvm
from emulator.machine.inhibition import Inhibition
from emulator.machine.stats import Stat

HALT: Final = int(Event.HALT)
HALT_POLL: Final = int(Event.HALT_POLL)


class Timers(Inhibition):
    """Preemption timers, hrtimers and polling windows of one pCPU."""

    __slots__ = (
        "_halts", "_poll_window", "_timer_vectors", "kvm",
    )  # fmt: skip

    kvm: Kvm
    _halts: dict[int, tuple[int, int]]  # of the halt under way: (begin, end of its polling), ns
    _poll_window: dict[int, int]
    _timer_vectors: tuple[int, ...]

    # -- the APIC timer ----------------------------------------------------------------------------

    def set_hv_timer(self, vcpu: int, deadline: int) -> bool:
        self.hv_deadline = deadline
        self.set_alarm()
        return monotonic_ns() >= deadline

    def cancel_hv_timer(self, vcpu: int) -> None:
        if self.hv_deadline:
            self.hv_deadline = 0
            if self.sw_timers or self.slice_end:
                self.set_alarm()
            else:
                self.alarm = 0

    def hv_timer_in_use(self, vcpu: int) -> bool:
        return self.hv_deadline != 0

    def start_sw_timer(self, vcpu: int) -> bool:
        deadline = self.words[vcpu].tscdeadline.load()
        if monotonic_ns() >= deadline:
            return deadline != 0
        if self.kvm.exitless_timer:
            self.remote_timers.arm(vcpu, deadline)
        else:
            self.sw_timers[vcpu] = deadline
            self.set_alarm()
        return False

    def cancel_sw_timer(self, vcpu: int) -> None:
        if self.kvm.exitless_timer:
            self.remote_timers.cancel(vcpu)
        elif self.sw_timers.pop(vcpu, None):
            self.set_alarm()

    def tscdeadline(self, vcpu: int) -> int:
        return self.words[vcpu].tscdeadline.load()

    def set_tscdeadline(self, vcpu: int, deadline: int) -> None:
        words = self.words[vcpu]
        if deadline:
            words.timer_load.store(self.cause[0])
        words.tscdeadline.store(deadline)

    def lvtt_vector(self, vcpu: int) -> int:
        words = self.words[vcpu]
        self.cause = (words.timer_load.load(), words.tscdeadline.load())
        return self._timer_vectors[vcpu]

    def timer_pending_inc(self, vcpu: int) -> None:
        self.words[vcpu].timer_pending.fetch_add(1)
        if self.irqs_on:
            self._step()

    def timer_pending(self, vcpu: int) -> bool:
        pending = self.words[vcpu].timer_pending.load()
        if self.irqs_on:
            self._step()
        return pending != 0

    def timer_pending_clear(self, vcpu: int) -> None:
        self.words[vcpu].timer_pending.exchange(0)
        if self.irqs_on:
            self._step()

    def expired_sw_timer(self) -> int:
        now = monotonic_ns()
        if self.housekeeping:
            return self.remote_timers.take(now)
        for vcpu, deadline in self.sw_timers.items():
            if deadline <= now:
                del self.sw_timers[vcpu]
                self.set_alarm()
                # Armed for a deadline that the guest has since moved, or met elsewhere: stale.
                if self.words[vcpu].tscdeadline.load() == deadline:
                    return vcpu
                return self.expired_sw_timer()
        return -1

    # -- halt polling ------------------------------------------------------------------------------

    def halt_poll_start(self, vcpu: int) -> bool:
        now = monotonic_ns()
        self._halts[vcpu] = (now, now)
        window = self._poll_window.get(vcpu, 0)
        if window:
            self.stats[Stat.HALT_ATTEMPTED_POLL] += 1
        return window != 0

    def halt_poll_open(self, vcpu: int) -> bool:
        os.sched_yield()
        if self.irqs_on:
            self._step()
        start, now = self._halts[vcpu][0], monotonic_ns()
        self._halts[vcpu] = (start, now)
        return now < start + self._poll_window.get(vcpu, 0)

    def halt_done(self, vcpu: int, waited: bool) -> None:
        now = monotonic_ns()
        start, polled = self._halts[vcpu]
        window = self._poll_window.get(vcpu, 0)
        if waited:
            self.stats[Stat.HALT_WAIT_NS] += now - polled
        else:
            polled = now
        if window:  # update_halt_poll_stats()
            self.stats[Stat.HALT_SUCCESSFUL_POLL] += not waited
            spent = Stat.HALT_POLL_FAIL_NS if waited else Stat.HALT_POLL_SUCCESS_NS
            self.stats[spent] += polled - start
            self.note((start, polled, int(not waited), HALT_POLL, 0, self.pcpu, vcpu, 0))
        self.note((start, now, int(waited), HALT, 0, self.pcpu, vcpu, 0))
        self._poll_window[vcpu] = next_halt_poll_ns(
            window, now - start, True, self.kvm.halt_poll_ns
        )
