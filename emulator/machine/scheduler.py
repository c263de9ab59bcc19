"""The host scheduler of one pCPU: vCPU threads that take turns, sleep, and move.

A vCPU thread is a greenlet that runs KVM's text from `kvm_sched_in()` on; leaving the pCPU is one
switch to this loop, which picks who is next.  So several vCPUs share a pCPU without a word in the
protocol about it: `cpu.context_switch()` returns when the thread runs again.

Run queues are words of the mapped file: a thread is queued unless its task state is SLEEPING (one
that was preempted on its way to sleep is), and V_TASK_CPU says where.  A thread that floats may be
claimed by another pCPU while it sleeps or waits at the head of the run loop (V_CLAIM): its Python
stack cannot follow it there, so it starts at the head of the run loop again, with its guest as it
left it.  Differences from the kernel: a thread preempted in the middle of KVM's code stays on its
pCPU's queue until it has run again; there is no fairness beyond round robin.
Kernel: kernel/sched/core.c.
"""

from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from greenlet import greenlet

from emulator.events import Event
from emulator.hardware.vectors import RESCHEDULE_VECTOR
from emulator.kvm.params import TaskState
from emulator.machine.memory import P_IDLE
from emulator.machine.words import NOWHERE

if TYPE_CHECKING:
    from emulator.machine.live import LiveCpu

RUNNING: Final = int(TaskState.RUNNING)
SLEEPING: Final = int(TaskState.SLEEPING)
SCHED_IN: Final = int(Event.SCHED_IN)
SCHED_OUT: Final = int(Event.SCHED_OUT)

# V_CLAIM of a thread that floats: every change of hands is one compare-exchange.
TAKEN: Final = 0  # it runs, or somebody is about to run it
FREE: Final = 1  # it sleeps, or waits at the head of the run loop: any pCPU may take it
BOUND: Final = 2  # preempted in the middle of KVM's code: only the pCPU with its stack may


class Scheduler:
    """The loop of one pCPU, and its vCPU threads."""

    def __init__(self, cpu: "LiveCpu", thread: Callable[["LiveCpu", int], None]) -> None:
        """`thread(cpu, vcpu)` is the body of a vCPU thread; it returns on a signal."""
        self._cpu = cpu
        self._thread = thread
        self._greenlets: dict[int, greenlet] = {}
        self._loop = greenlet.getcurrent()
        self._next = 0
        self._count = len(cpu.words)
        self.floating = {v.index for v in cpu.cell.vcpus if v.floats}
        mine = {v.index for v in cpu.cell.vcpus if v.pcpu == cpu.pcpu and not v.floats}
        self._candidates = sorted(mine | self.floating)
        self._idle = [cpu.memory.u32(cpu.memory.pcpu(p, P_IDLE)) for p in range(cpu.cell.pcpus)]
        self._slice_ns = cpu.kvm.sched_slice_ns if self._shares() else 0
        self._preempted = False

    def _shares(self) -> bool:
        """May two vCPUs meet on this pCPU?"""
        return len(self._candidates) > 1

    # -- the loop ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Run threads until the launcher stops this pCPU, then until all here have ended."""
        cpu = self._cpu
        while True:
            vcpu = self._pick()
            if vcpu >= 0:
                self._switch_to(vcpu)
            elif not cpu.stopping:
                self._wait()
            elif not self._rouse():
                return

    def _pick(self) -> int:
        """The next runnable vCPU of this pCPU's queue, round robin; -1 if there is none."""
        cpu, n = self._cpu, len(self._candidates)
        for i in range(n):
            vcpu = self._candidates[(self._next + i) % n]
            words = cpu.words[vcpu]
            if words.task_state.load() == SLEEPING or words.task_cpu.load() != cpu.pcpu:
                continue
            if words.finished.load() or not self._claim(vcpu):
                continue
            self._next = (self._next + i + 1) % n
            return vcpu
        return -1

    def _claim(self, vcpu: int) -> bool:
        """Take a runnable thread of this queue, unless another pCPU has, or still runs it."""
        if vcpu not in self.floating:
            return True
        words = self._cpu.words[vcpu]
        if words.home.load() == self._cpu.pcpu and words.claim.cas(BOUND, TAKEN) == BOUND:
            return True
        if words.claim.cas(FREE, TAKEN) != FREE:
            return False
        if words.task_cpu.load() == self._cpu.pcpu:
            return True
        words.claim.store(FREE)  # pulled away between the two looks
        return False

    def _switch_to(self, vcpu: int) -> None:
        """Run a thread until it leaves the pCPU or ends.  Interrupts are off across the switch."""
        cpu = self._cpu
        words = cpu.words[vcpu]
        home = words.home.load()
        thread = self._greenlets.get(vcpu)
        if thread is not None and home != cpu.pcpu:
            thread.throw()  # its stack is stale: the thread has run elsewhere since
            thread = None
        if thread is None:
            thread = self._greenlets[vcpu] = greenlet(lambda: self._thread(cpu, vcpu))
            cpu.take_over(vcpu, fresh=home == NOWHERE)
        words.home.store(cpu.pcpu)
        words.sched_ins.fetch_add(1)
        cpu.note((monotonic_ns(), home, 0, SCHED_IN, 0, cpu.pcpu, vcpu, 0))
        cpu.set_slice(monotonic_ns() + self._slice_ns if self._slice_ns else 0)
        cpu.irqs_on = False
        thread.switch()
        cpu.irqs_on = True
        cpu.set_slice(0)
        preempted = self._preempted
        cpu.note((monotonic_ns(), 0, int(preempted), SCHED_OUT, 0, cpu.pcpu, vcpu, 0))
        if thread.dead:
            del self._greenlets[vcpu]
            words.finished.store(1)
        elif vcpu in self.floating and cpu.at_safe_point:
            cpu.hand_over(vcpu)
            words.claim.store(FREE)
            if preempted and not cpu.stopping:
                self._kick_an_idle_pcpu(vcpu)
        elif vcpu in self.floating:
            words.claim.store(BOUND)

    def leave(self, preempted: bool) -> None:
        """The current thread goes off the pCPU; returns when it runs again."""
        self._preempted = preempted
        self._loop.switch()

    def _wait(self) -> None:
        """Idle, unless a thread that is ours now is still leaving its old pCPU."""
        cpu = self._cpu
        if self.floating and self._pull():
            return
        self._idle[cpu.pcpu].store(1)
        if not self._soon():
            cpu.idle()
        else:
            cpu.pause()
            cpu.window()
        self._idle[cpu.pcpu].store(0)

    def _soon(self) -> bool:
        return any(
            cpu_words.task_cpu.load() == self._cpu.pcpu
            and cpu_words.task_state.load() != SLEEPING
            and not cpu_words.finished.load()
            for cpu_words in (self._cpu.words[v] for v in self._candidates)
        )

    # -- moving ------------------------------------------------------------------------------------

    def _pull(self) -> bool:
        """Idle balancing: claim a thread that waits on another pCPU's queue."""
        cpu = self._cpu
        for vcpu in self.floating:
            words = cpu.words[vcpu]
            if words.task_state.load() == SLEEPING or words.task_cpu.load() == cpu.pcpu:
                continue
            if words.claim.cas(FREE, TAKEN) == FREE:
                words.task_cpu.store(cpu.pcpu)
                words.claim.store(FREE)
                return True
        return False

    def choose(self, vcpu: int) -> int:
        """select_task_rq(): where a woken thread goes: its last pCPU if idle, else any idle one."""
        last = self._cpu.words[vcpu].cpu.load()
        if vcpu not in self.floating or self._idle[last].load():
            return last
        for pcpu, idle in enumerate(self._idle):
            if idle.load():
                return pcpu
        return last

    def _kick_an_idle_pcpu(self, vcpu: int) -> None:
        for pcpu, idle in enumerate(self._idle):
            if pcpu != self._cpu.pcpu and idle.load():
                self._cpu.post_ipi(pcpu, RESCHEDULE_VECTOR, vcpu)
                return

    # -- the end -----------------------------------------------------------------------------------

    def _rouse(self) -> bool:
        """A signal wakes every thread whose stack is here; false when none is left."""
        cpu, roused = self._cpu, False
        for vcpu in list(self._greenlets):
            words = cpu.words[vcpu]
            if words.home.load() != cpu.pcpu:
                self._greenlets.pop(vcpu).throw()
                continue
            if words.task_state.load() != RUNNING:
                words.task_state.store(RUNNING)
            words.task_cpu.store(cpu.pcpu)
            roused = True
        return roused
