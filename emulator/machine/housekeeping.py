"""Exitless timers: the hrtimers of every vCPU on one housekeeping pCPU.

A vCPU arms its deadline in a word of the mapped file (the remote hrtimer base); the housekeeping
pCPU looks at these words while it idles, and its handler (`kvm/irq.hrtimer_interrupt`) posts.  The
look stands for that pCPU's tick: up to `LOOK_S` late, and nobody is interrupted to arm a timer.
Kernel: get_nohz_timer_target(), kernel/sched/core.c; hrtimer_cancel(), kernel/time/hrtimer.c.
"""

import os
from typing import Final

from emulator.config.model import Cell, Via
from emulator.hardware.vectors import LOCAL_TIMER_VECTOR
from emulator.machine.memory import V_SW_TIMER, Memory

LOOK_S: Final = 100e-6
RUNNING: Final = 1  # in place of a deadline: its handler runs


def timer_vectors(cell: Cell) -> tuple[int, ...]:
    """LVTT's vector, by vCPU: a guest's timer is programmed once, whoever counts for it."""
    own = {load.vcpu: load.vector for load in cell.loads if load.via is Via.TSC_DEADLINE}
    return tuple(own.get(vcpu.index, LOCAL_TIMER_VECTOR) for vcpu in cell.vcpus)


class RemoteTimers:
    """The words of all vCPUs: any pCPU arms and cancels, the housekeeping one expires."""

    def __init__(self, memory: Memory) -> None:
        vcpus = range(memory.shape.vcpus)
        self._words = [memory.u64(memory.vcpu(vcpu, V_SW_TIMER)) for vcpu in vcpus]
        self._served = -1  # whose handler runs here

    def arm(self, vcpu: int, deadline: int) -> None:
        """`deadline` in ns.  The timer has been cancelled before."""
        self._words[vcpu].store(deadline)

    def cancel(self, vcpu: int) -> None:
        """hrtimer_cancel(): disarm; if the handler runs, wait until it has returned."""
        word = self._words[vcpu]
        while deadline := word.load():
            if deadline == RUNNING:
                os.sched_yield()
            else:
                word.cas(deadline, 0)

    def wait_s(self, now: int) -> float:
        """How long the housekeeping pCPU may sleep, seconds; 0 if a timer is due."""
        first = min((at for word in self._words if (at := word.load()) > RUNNING), default=0)
        return min(max((first - now) * 1e-9, 0.0), LOOK_S) if first else LOOK_S

    def take(self, now: int) -> int:
        """A vCPU whose deadline has passed, its handler to be run now; -1 if there is none.

        Asking for the next one says that the handler of the last has returned.
        """
        if self._served >= 0:
            self._words[self._served].cas(RUNNING, 0)
            self._served = -1
        for vcpu, word in enumerate(self._words):
            at = word.load()
            if RUNNING < at <= now and word.cas(at, RUNNING) == at:
                self._served = vcpu
                return vcpu
        return -1
