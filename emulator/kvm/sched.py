"""A vCPU thread leaves its pCPU and comes back: the scheduler's hooks into KVM.

Pure protocol text.  "Running vCPU" means loaded on this pCPU, not in the guest: it stays set from
kvm_sched_in() to kvm_sched_out(), through exits, polling and the decision to sleep.
Kernel: __schedule(), kernel/sched/core.c; kvm_sched_in(), kvm_sched_out(), virt/kvm/kvm_main.c.
"""

from emulator.kvm.cpu import Cpu
from emulator.kvm.params import STALE_RUNNING
from emulator.kvm.pid import vmx_vcpu_pi_load, vmx_vcpu_pi_put


def schedule(cpu: Cpu, vcpu: int) -> None:
    """Sleep, unless a waker came first; return when the thread runs again."""
    cpu.local_irq_disable()
    if cpu.deactivate_task(vcpu):
        kvm_sched_out(cpu, vcpu, False)
        cpu.context_switch(vcpu)
        kvm_sched_in(cpu, vcpu)
    cpu.local_irq_enable()


def preempt_schedule(cpu: Cpu, vcpu: int) -> None:
    """The thread's slice is over; it stays on the run queue, whatever its task state."""
    cpu.local_irq_disable()
    kvm_sched_out(cpu, vcpu, True)
    cpu.context_switch(vcpu)
    kvm_sched_in(cpu, vcpu)
    cpu.local_irq_enable()


def kvm_sched_out(cpu: Cpu, vcpu: int, preempted: bool) -> None:
    """The descriptor first, then the running-vCPU pointer.  Interrupts are off."""
    cpu.set_preempted(vcpu, preempted)
    vmx_vcpu_pi_put(cpu, vcpu, preempted)
    if STALE_RUNNING not in cpu.kvm.bugs:
        cpu.set_running_vcpu(-1)


def kvm_sched_in(cpu: Cpu, vcpu: int) -> None:
    """The running-vCPU pointer first, then the descriptor, then vcpu->cpu.  Interrupts are off."""
    cpu.set_preempted(vcpu, False)
    cpu.set_running_vcpu(vcpu)
    vmx_vcpu_pi_load(cpu, vcpu)
    pcpu = cpu.smp_processor_id()
    cpu.store_vcpu_cpu(vcpu, pcpu)
