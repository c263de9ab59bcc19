"""A recorded run against what a CPU has to itself: its local APIC, its guest's virtual APIC, IF.

Nobody else touches any of it, so each CPU's own record says in which order: there is one, and no
search.  `Owned` does each step to a copy of that state and says what the step returns; where the
model has no say (a guest's choice, the clock, the launcher) that is ANY.

The clock's and the scheduler's interrupts (LOCAL_TIMER_VECTOR) come when they come; every other
vector must have arrived before it is taken, and the highest goes first.
SDM vol. 3, 10.8 (the local APIC), 29.2 and 29.6 (the virtual APIC).
"""

from collections import defaultdict
from typing import Any, Final

from emulator.checker.record_text import NoPathError
from emulator.events import DEVICE_BASE
from emulator.hardware.cpu import NOTIFICATION
from emulator.hardware.vectors import (
    EXIT_REASON_EXTERNAL_INTERRUPT,
    EXIT_REASON_PREEMPTION_TIMER,
    LOCAL_TIMER_VECTOR,
    POSTED_INTR_VECTOR,
    RESCHEDULE_VECTOR,
)
from emulator.order import Step


class _Any:
    """Equal to every result."""

    def __repr__(self) -> str:
        return "anything"


ANY: Final = _Any()


def top(bits: int) -> int:
    """The highest vector of a set, -1 if there is none."""
    return bits.bit_length() - 1


class Owned:
    """What each CPU, and each vCPU on the one that runs it, has to itself."""

    def __init__(self) -> None:
        zero, nobody, no = (lambda: 0), (lambda: -1), (lambda: False)
        # by pCPU
        self.irqs_on: dict[int, bool] = defaultdict(lambda: True)
        self.irr: dict[int, int] = defaultdict(zero)
        self.isr: dict[int, int] = defaultdict(zero)
        self.running: dict[int, int] = defaultdict(nobody)
        self.current: dict[int, int] = defaultdict(nobody)
        self.exit_vector: dict[int, int] = defaultdict(zero)
        self.stopping: dict[int, bool] = defaultdict(no)
        # by vCPU
        self.virr: dict[int, int] = defaultdict(zero)
        self.visr: dict[int, int] = defaultdict(zero)
        self.rvi: dict[int, int] = defaultdict(zero)
        self.svi: dict[int, int] = defaultdict(zero)
        self.apicv: dict[int, bool] = defaultdict(lambda: True)
        self.injected: dict[int, int] = defaultdict(nobody)  # at the next entry
        self.blocking: dict[int, bool] = defaultdict(no)
        self.mp: dict[int, int] = defaultdict(zero)
        self.listed: dict[int, int] = defaultdict(nobody)
        self.deadline: dict[int, int] = defaultdict(zero)
        self.hv_timer: dict[int, bool] = defaultdict(no)

    def do(self, step: Step) -> Any:
        """Do a step; the result that it has, ANY or None where there is nothing to say."""
        method = getattr(self, f"_{step.op}", None)
        return ANY if method is None else method(step, step.source, *step.args)

    # -- the local APIC ----------------------------------------------------------------------------

    def _arrive(self, _: Step, c: int, vector: int, *__: int) -> None:
        self.irr[c] |= 1 << vector

    def _stop(self, _: Step, c: int) -> None:
        self.stopping[c] = True
        self.irr[c] |= 1 << RESCHEDULE_VECTOR  # a signal reaches a guest by an interrupt

    def _acknowledge(self, c: int, vector: int) -> None:
        """Root or non-root mode takes `vector`: it must be the one that the local APIC presents."""
        presented, in_service = top(self.irr[c]), top(self.isr[c])
        if vector not in (LOCAL_TIMER_VECTOR, presented):
            pending = f"{presented:#x} is" if presented >= 0 else "nothing is"
            raise NoPathError(f"vector {vector:#x} is taken, {pending} pending in the local APIC")
        if vector >> 4 <= in_service >> 4:
            raise NoPathError(f"vector {vector:#x} is taken while {in_service:#x} is in service")
        self.irr[c] &= ~(1 << vector)
        self.isr[c] |= 1 << vector

    def _interrupt(self, _: Step, c: int, vector: int) -> None:
        if not self.irqs_on[c]:
            raise NoPathError("interrupts are off")
        self._acknowledge(c, vector)
        self.irqs_on[c] = False

    def _iret(self, _: Step, c: int) -> None:
        self._lapic_eoi(_, c)
        self.irqs_on[c] = True

    def _lapic_eoi(self, _: Step, c: int) -> None:
        isr = self.isr[c]
        self.isr[c] = isr & ~(1 << top(isr)) if isr else 0

    # -- non-root operation ------------------------------------------------------------------------

    def _vm_entry(self, _: Step, c: int, vcpu: int) -> None:
        if self.irqs_on[c]:
            raise NoPathError("VM entry with interrupts on")
        if self.current[c] != vcpu:
            raise NoPathError(f"VM entry, and the current VMCS is that of vCPU {self.current[c]}")

    def _non_root_event(self, step: Step, c: int, vcpu: int) -> Any:
        if step.result == NOTIFICATION:
            self._acknowledge(c, POSTED_INTR_VECTOR)
        elif step.result == EXIT_REASON_EXTERNAL_INTERRUPT:
            (vector,) = step.extra
            if vector == POSTED_INTR_VECTOR and self.apicv[vcpu]:
                raise NoPathError("an exit by POSTED_INTR_VECTOR: the processor takes it itself")
            self._acknowledge(c, vector)
            self.exit_vector[c] = vector
        elif step.result == EXIT_REASON_PREEMPTION_TIMER and not self.hv_timer[vcpu]:
            raise NoPathError("the preemption timer is not armed")
        return ANY

    def _exit_interrupt_vector(self, _: Step, c: int) -> int:
        return self.exit_vector[c]

    def _deliver(self, _: Step, c: int, vector: int) -> None:
        v = self.current[c]
        if self.injected[v] >= 0:
            if vector != self.injected[v]:
                raise NoPathError(f"{vector:#x} is delivered, {self.injected[v]:#x} was injected")
            self.injected[v] = -1
            return
        rvi, svi = self.rvi[v], self.svi[v]
        if vector != rvi or not self.virr[v] >> vector & 1:
            raise NoPathError(f"{vector:#x} is delivered, RVI is {rvi:#x}")
        if rvi >> 4 <= svi >> 4:
            raise NoPathError(f"{vector:#x} is delivered while {svi:#x} is in service")
        self.virr[v] &= ~(1 << vector)
        self.visr[v] |= 1 << vector
        self.svi[v] = vector
        self.rvi[v] = max(top(self.virr[v]), 0)

    def _eoi(self, _: Step, c: int, vector: int) -> None:
        v = self.current[c]
        if not self.apicv[v]:
            return  # it exits: clear_visr() does it
        if vector != self.svi[v]:
            raise NoPathError(f"the EOI is for {vector:#x}, SVI is {self.svi[v]:#x}")
        self.visr[v] &= ~(1 << vector)
        self.svi[v] = max(top(self.visr[v]), 0)

    def _self_ipi(self, _: Step, c: int, vector: int) -> None:
        v = self.current[c]
        if not self.apicv[v]:
            return  # it exits, and is a post
        self.virr[v] |= 1 << vector
        self.rvi[v] = max(self.rvi[v], vector)

    # -- the virtual APIC, from the text -----------------------------------------------------------

    def _current_vmcs(self, _: Step, c: int) -> int:
        return self.current[c]

    def _pi_harvest(self, step: Step, _: int, vcpu: int) -> int:
        found = sum(word << 64 * i for i, word in enumerate(step.extra))
        self.virr[vcpu] |= found
        return top(found)

    def _pi_is_pir_empty(self, step: Step, _: int, __: int) -> bool:
        return not any(step.extra)

    def _raise_rvi(self, _: Step, c: int, vector: int) -> None:
        v = self.current[c]
        self.rvi[v] = max(self.rvi[v], vector)

    def _set_rvi(self, _: Step, c: int, vector: int) -> None:
        self.rvi[self.current[c]] = max(vector, 0)

    def _find_highest_virr(self, _: Step, __: int, vcpu: int) -> int:
        return top(self.virr[vcpu])

    # -- APICv that comes and goes -----------------------------------------------------------------

    def _lapic_merge_irr(self, step: Step, _: int, vcpu: int) -> None:
        self.virr[vcpu] |= sum(word << 64 * i for i, word in enumerate(step.extra))

    def _refresh_apicv_exec_ctrl(self, _: Step, __: int, vcpu: int, active: int) -> None:
        self.apicv[vcpu] = active != 0

    def _find_highest_visr(self, _: Step, __: int, vcpu: int) -> int:
        return top(self.visr[vcpu])

    def _clear_visr(self, _: Step, __: int, vcpu: int, vector: int) -> None:
        self.visr[vcpu] &= ~(1 << vector)

    def _set_svi(self, _: Step, c: int, vector: int) -> None:
        self.svi[self.current[c]] = max(vector, 0)

    def _inject_irq(self, _: Step, __: int, vcpu: int, vector: int) -> None:
        self.virr[vcpu] &= ~(1 << vector)
        self.visr[vcpu] |= 1 << vector
        self.injected[vcpu] = vector

    def _interrupt_injected(self, _: Step, __: int, vcpu: int) -> bool:
        return self.injected[vcpu] >= 0

    # -- this CPU, this thread ---------------------------------------------------------------------

    def _smp_processor_id(self, _: Step, c: int) -> int:
        return -1 if c >= DEVICE_BASE else c

    def _local_irq_disable(self, _: Step, c: int) -> None:
        self.irqs_on[c] = False

    def _local_irq_enable(self, _: Step, c: int) -> None:
        self.irqs_on[c] = True

    def _running_vcpu(self, _: Step, c: int) -> int:
        return self.running[c]

    def _set_running_vcpu(self, _: Step, c: int, vcpu: int) -> None:
        self.running[c] = vcpu
        if vcpu >= 0:
            self.current[c] = vcpu

    def _thread(self, _: Step, c: int, __: int) -> None:
        self.irqs_on[c] = False  # across the switch

    def _switch_in(self, _: Step, c: int, __: int) -> None:
        self.irqs_on[c] = False

    def _context_switch(self, _: Step, c: int, __: int) -> None:
        self.irqs_on[c] = True  # the idle loop

    def _thread_end(self, _: Step, c: int, __: int) -> None:
        self.irqs_on[c] = True

    def _signal_pending(self, _: Step, c: int) -> bool:
        return self.stopping[c]

    def _host_work_pending(self, _: Step, c: int) -> Any:
        return True if self.stopping[c] else ANY

    def _prepare_to_rcuwait(self, _: Step, __: int, vcpu: int) -> None:
        self.blocking[vcpu] = True

    def _finish_rcuwait(self, _: Step, __: int, vcpu: int) -> None:
        self.blocking[vcpu] = False

    def _vcpu_is_blocking(self, _: Step, __: int, vcpu: int) -> bool:
        return self.blocking[vcpu]

    def _mp_state(self, _: Step, __: int, vcpu: int) -> int:
        return self.mp[vcpu]

    def _set_mp_state(self, _: Step, __: int, vcpu: int, state: int) -> None:
        self.mp[vcpu] = state

    def _pre_pcpu(self, _: Step, __: int, vcpu: int) -> int:
        return self.listed[vcpu]

    def _set_pre_pcpu(self, _: Step, __: int, vcpu: int, pcpu: int) -> None:
        self.listed[vcpu] = pcpu

    def _tscdeadline(self, _: Step, __: int, vcpu: int) -> int:
        return self.deadline[vcpu]

    def _set_tscdeadline(self, _: Step, __: int, vcpu: int, deadline: int) -> None:
        self.deadline[vcpu] = deadline

    def _set_hv_timer(self, _: Step, __: int, vcpu: int, deadline: int) -> Any:
        self.hv_timer[vcpu] = deadline != 0
        return ANY

    def _cancel_hv_timer(self, _: Step, __: int, vcpu: int) -> None:
        self.hv_timer[vcpu] = False

    def _hv_timer_in_use(self, _: Step, __: int, vcpu: int) -> bool:
        return self.hv_timer[vcpu]
