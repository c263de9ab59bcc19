"""How a vCPU goes to sleep.

Pure protocol text.  Before: `vcpu` saw a HLT exit and found nothing to do.  Next: `sched` takes
the thread off its pCPU, `pid` leaves word in the descriptor for hardware senders, `wake` brings
it back.
Kernel: virt/kvm/kvm_main.c.
"""

from typing import Final

from emulator.kvm.cpu import Cpu
from emulator.kvm.params import KVM_REQ_UNBLOCK, TASK_INTERRUPTIBLE, WAKE_WITHOUT_STATE
from emulator.kvm.sched import schedule
from emulator.kvm.sync import kvm_cpu_has_interrupt

HALT_POLL_NS_GROW: Final = 2
HALT_POLL_NS_GROW_START: Final = 10_000
HALT_POLL_NS_SHRINK: Final = 2


def kvm_vcpu_halt(cpu: Cpu, vcpu: int) -> bool:
    """Poll for a while, then sleep; true if the vCPU has something to run for.

    Kernel: kvm_vcpu_halt(); false is what the kernel says by leaving KVM_REQ_UNHALT clear.
    """
    if cpu.halt_poll_start(vcpu):
        while cpu.halt_poll_open(vcpu):
            why = kvm_vcpu_check_block(cpu, vcpu)
            if why:
                cpu.halt_done(vcpu, False)
                return why > 1
    why = kvm_vcpu_block(cpu, vcpu)
    return why > 1


def kvm_vcpu_check_block(cpu: Cpu, vcpu: int) -> int:
    """0: go on sleeping.  2: an interrupt to run for.  1: another reason to be awake."""
    if kvm_cpu_has_interrupt(cpu, vcpu):
        return 2
    if cpu.timer_pending(vcpu):
        return 1
    if cpu.signal_pending():
        return 1
    if cpu.check_request(vcpu, KVM_REQ_UNBLOCK):
        return 1
    return 0


def kvm_vcpu_block(cpu: Cpu, vcpu: int) -> int:
    """Sleep until there is a reason not to; the reason, as kvm_vcpu_check_block() gives it."""
    waited = False
    cpu.prepare_to_rcuwait(vcpu)
    while True:
        # State before condition; a waker stores the condition before it reads the state
        # (kvm_vcpu_wake_up).  Interrupts are on, the vCPU is still "running" here: this is the
        # window in which kvm-v5.8 loses a wake-up.
        if WAKE_WITHOUT_STATE not in cpu.kvm.bugs:
            cpu.set_current_state(vcpu, TASK_INTERRUPTIBLE)
        why = kvm_vcpu_check_block(cpu, vcpu)
        if why:
            break
        if WAKE_WITHOUT_STATE in cpu.kvm.bugs:
            cpu.set_current_state(vcpu, TASK_INTERRUPTIBLE)
        waited = True
        schedule(cpu, vcpu)
    cpu.finish_rcuwait(vcpu)
    cpu.halt_done(vcpu, waited)
    return why


def next_halt_poll_ns(window_ns: int, block_ns: int, woken: bool, max_ns: int) -> int:
    """The polling window after a halt that lasted `block_ns`.  Kernel: kvm_vcpu_halt()'s tail.

    Grows from 10 us by doubling up to `max_ns` while halts are short, halves when one is long or
    ends without an interrupt; halt_poll_ns_grow, _grow_start and _shrink at x86's defaults.
    """
    if max_ns == 0:
        return 0
    if not woken or (window_ns and block_ns > max_ns):
        shrunk = window_ns // HALT_POLL_NS_SHRINK
        return shrunk if shrunk >= HALT_POLL_NS_GROW_START else 0
    if block_ns > window_ns and window_ns < max_ns and block_ns < max_ns:
        return min(max(window_ns * HALT_POLL_NS_GROW, HALT_POLL_NS_GROW_START), max_ns)
    return window_ns
