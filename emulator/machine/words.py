"""One vCPU's shared words, bound once: each attribute is one atomic operation.

`load`/`store`/... of a word are bound methods of an atomic cell, so that a step of the protocol
costs one call.
"""

from typing import Final

from atomicshm import AtomicU32

from emulator.hardware.pi_desc import SN
from emulator.hardware.vectors import POSTED_INTR_VECTOR
from emulator.machine.memory import (
    V_CLAIM,
    V_CPU,
    V_FINISHED,
    V_GUEST_WORD,
    V_HARVESTS,
    V_HAS_PI_SENDER,
    V_HOME,
    V_HV_DEADLINE,
    V_MODE,
    V_MP_STATE,
    V_PRE_PCPU,
    V_PREEMPTED,
    V_REQUESTS,
    V_SCHED_INS,
    V_TASK_CPU,
    V_TASK_STATE,
    V_TIMER_LOAD,
    V_TIMER_PENDING,
    V_TSCDEADLINE,
    V_WAITER,
    Memory,
    PiDesc,
    SharedApicPage,
)

NOWHERE: Final = 0xFFFF_FFFF  # no pCPU, in an unsigned word


class VcpuWords:
    """struct kvm_vcpu, as far as other CPUs read it, its PI descriptor and its APIC page."""

    __slots__ = (
        "claim", "cpu", "desc", "finished", "guest_word", "harvests", "has_pi_sender", "home",
        "hv_deadline", "index", "mode", "mode_load", "mode_store", "mp_state", "page", "pre_pcpu",
        "preempted", "requests", "sched_ins", "task_cpu", "task_state", "timer_load",
        "timer_pending", "tscdeadline", "waiter",
    )  # fmt: skip

    def __init__(self, memory: Memory, vcpu: int) -> None:
        def u32(field: int) -> AtomicU32:
            return memory.u32(memory.vcpu(vcpu, field))

        self.index = vcpu
        self.desc = PiDesc(memory, vcpu)
        self.page = SharedApicPage(memory, vcpu)
        self.mode = u32(V_MODE)
        self.mode_load = self.mode.load
        self.mode_store = self.mode.store
        self.cpu = u32(V_CPU)
        self.requests = u32(V_REQUESTS)
        self.task_state = u32(V_TASK_STATE)
        self.task_cpu = u32(V_TASK_CPU)
        self.home = u32(V_HOME)
        self.claim = u32(V_CLAIM)
        self.finished = u32(V_FINISHED)
        self.timer_load = u32(V_TIMER_LOAD)
        self.waiter = u32(V_WAITER)
        self.preempted = u32(V_PREEMPTED)
        self.timer_pending = u32(V_TIMER_PENDING)
        self.has_pi_sender = u32(V_HAS_PI_SENDER)
        self.mp_state = u32(V_MP_STATE)
        self.pre_pcpu = u32(V_PRE_PCPU)
        self.tscdeadline = memory.u64(memory.vcpu(vcpu, V_TSCDEADLINE))
        self.harvests = memory.u64(memory.vcpu(vcpu, V_HARVESTS))
        self.guest_word = memory.u64(memory.vcpu(vcpu, V_GUEST_WORD))
        self.hv_deadline = memory.u64(memory.vcpu(vcpu, V_HV_DEADLINE))
        self.sched_ins = memory.u64(memory.vcpu(vcpu, V_SCHED_INS))

    def reset(self, pcpu: int, *, has_pi_sender: bool, suppressed: bool) -> None:
        """A vCPU that has never run and belongs to `pcpu`.  Kernel: vmx_vcpu_reset()."""
        self.has_pi_sender.store(has_pi_sender)
        self.desc.set_control(POSTED_INTR_VECTOR << 16 | pcpu << 32 | (SN if suppressed else 0))
        self.cpu.store(pcpu)
        self.pre_pcpu.store(NOWHERE)
        self.task_cpu.store(pcpu)
        self.home.store(NOWHERE)


def all_words(memory: Memory) -> list[VcpuWords]:
    """The words of every vCPU."""
    return [VcpuWords(memory, vcpu) for vcpu in range(memory.shape.vcpus)]
