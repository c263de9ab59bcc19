"""`ModelCpu`: the third implementation of `Cpu`.  Each method applies one step to a simulated memory.

The methods carry the names of `Cpu` and nothing else decides what a step does.  `world` sets `m`
(the memory, thawed), `c` (the pCPU the actor is on) and `me` (its vCPU thread, -1 in a handler or
a sender), asks `blocked()`, and calls the method.  The two steps with more than one outcome
(`non_root_event`, `context_switch`) are in `world`.

Under TSO a plain store goes to the pCPU's buffer and becomes visible in a step of its own
(`drain`); a locked step waits until the buffer is empty.
"""

from typing import Any, Final, NoReturn

from emulator.checker import memory as slot
from emulator.checker.lint import KINDS
from emulator.checker.memory import PENDING_BIT, Layout, Touched
from emulator.checker.scenario import Claim, MemoryModel, Scenario
from emulator.events import Event
from emulator.hardware.cpu import Control, Kind
from emulator.hardware.vectors import FIRST_DEVICE_VECTOR, MSR_TSC_DEADLINE, Mode
from emulator.kvm.params import MpState, Notify, Request, TaskState

BUFFER_DEPTH: Final = 2
KICKING_RULES: Final = (Notify.KVM_V3_10, Notify.KVM_V4_11, Notify.KVM_V5_8, Notify.KVM_V5_16)

_LOCKED: Final = frozenset(n for n, k in KINDS.items() if k is Kind.LOCKED)
_STORES: Final = frozenset(n for n, k in KINDS.items() if k is Kind.STORE)
_LIST_STEPS: Final = frozenset({"wakeup_list_add", "wakeup_list_del", "wakeup_list_lock"})
_RUNNING = TaskState.RUNNING.value
_INTERRUPTIBLE = TaskState.INTERRUPTIBLE.value
_SLEEPING = TaskState.SLEEPING.value


class ModelCpu:
    """Simulated memory and what the steps do to it."""

    def __init__(self, scenario: Scenario, layout: Layout) -> None:
        self.scenario = scenario
        self.kvm = scenario.kvm
        self.tso = scenario.memory is MemoryModel.TSO
        self.m = Touched(())
        self.c = 0
        self.me = -1
        self.fault: tuple[Claim, str] | None = None
        self.seen: set[str] = set()  # what has happened at least once ("sometimes")
        self._layout = layout
        self._v = layout.vcpus
        self._p = layout.pcpus
        self._bit = {vector: 1 << i for i, vector in enumerate(scenario.vectors)}
        self._vector = (-1, *scenario.vectors)  # by 1 + index
        self._counting = Claim.COST in scenario.claims
        timers = scenario.bounds.timer > 0
        plug = scenario.bounds.plug > 0
        self.kickers = scenario.rule in KICKING_RULES or timers or plug
        self.requesters = scenario.rule is Notify.KVM_V3_10 or timers or plug
        self.timers = timers

    def blocked(self, op: str, args: tuple[Any, ...]) -> bool:
        """The step cannot be done yet: a store buffer to drain, a lock that is held."""
        if op in _LIST_STEPS and self.m[self._p[args[0]] + slot.LOCK]:
            return True
        if not self.tso:
            return False
        if op in _STORES:
            return bool(self.m[self._p[self.c] + slot.SECOND])
        if op == "check_request" and not self.m[self._v[args[0]] + slot.REQUESTS] & args[1]:
            return False  # a plain test first; only the clear is locked
        return op in _LOCKED and bool(self.m[self._p[self.c] + slot.FIRST])

    def broken(self, claim: Claim, text: str) -> None:
        """The step just done breaks a claim."""
        self.fault = (claim, text)

    def _store(self, where: int, value: int) -> None:
        if not self.tso:
            self.m[where] = value
            return
        buffer = self._p[self.c] + slot.FIRST
        if self.m[buffer]:
            buffer = self._p[self.c] + slot.SECOND
        self.m[buffer] = self._layout.store(where, value)

    def _load(self, where: int) -> int:
        if self.tso:
            p = self._p[self.c]
            for entry in (self.m[p + slot.SECOND], self.m[p + slot.FIRST]):
                if entry and self._layout.location(entry)[0] == where:
                    return self._layout.location(entry)[1]
        return int(self.m[where])

    def drain(self, pcpu: int) -> tuple[int, int]:
        """The oldest store in the buffer of `pcpu` reaches memory: (slot, value)."""
        m, p = self.m, self._p[pcpu]
        where, value = self._layout.location(m[p + slot.FIRST])
        m[where] = value
        m[p + slot.FIRST], m[p + slot.SECOND] = m[p + slot.SECOND], 0
        return where, value

    # -- the PI descriptor ----------------------------------------------------------------------

    def pi_test_and_set_pir(self, vcpu: int, vector: int) -> bool:
        m, v, bit = self.m, self._v[vcpu], self._bit[vector]
        if m[v + slot.PIR] & bit:
            self.seen.add("a post met its PIR bit set")
            return True
        m[v + slot.PIR] |= bit
        m[v + slot.OWED] += bit * bit
        return False

    def pi_test_and_set_on(self, vcpu: int) -> bool:
        v = self._v[vcpu]
        old = bool(self.m[v + slot.ON])
        self.m[v + slot.ON] = 1
        return old

    def pi_test_and_set_on_unless_sn(self, vcpu: int, urgent: bool) -> Control:
        before = self.pi_read_control(vcpu)
        if not before.sn or urgent:
            self.m[self._v[vcpu] + slot.ON] = 1
        return before

    def pi_clear_on(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.ON] = 0

    def pi_harvest(self, vcpu: int) -> int:
        m, v = self.m, self._v[vcpu]
        pir = m[v + slot.PIR]
        if merged := pir & m[v + slot.VIRR]:
            self._owe_less(v, merged)
        m[v + slot.VIRR] |= pir
        m[v + slot.PIR] = 0
        return self._vector[pir.bit_length()]

    def pi_test_on(self, vcpu: int) -> bool:
        if self.tso and self.me == vcpu and self.m[self._p[self.c] + slot.FIRST]:
            self.seen.add("ON was read with a store still buffered")
        return bool(self.m[self._v[vcpu] + slot.ON])

    def pi_is_pir_empty(self, vcpu: int) -> bool:
        return not self.m[self._v[vcpu] + slot.PIR]

    def pi_read_control(self, vcpu: int) -> Control:
        m, v = self.m, self._v[vcpu]
        return Control(
            bool(m[v + slot.ON]), bool(m[v + slot.SN]), m[v + slot.NV], m[v + slot.NDST]
        )

    def pi_set_on(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.ON] = 1

    def pi_set_sn(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.SN] = 1

    def pi_clear_sn(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.SN] = 0

    def pi_update_control(self, vcpu: int, nv: int, ndst: int, sn: bool) -> bool:
        m, v = self.m, self._v[vcpu]
        m[v + slot.NV], m[v + slot.SN] = nv, int(sn)
        if ndst >= 0:
            m[v + slot.NDST] = ndst
        return bool(m[v + slot.ON])

    # -- the local APIC and the virtual APIC ----------------------------------------------------

    def current_vmcs(self) -> int:
        return int(self.m[self._p[self.c] + slot.CURRENT])

    def lapic_eoi(self) -> None:
        pass

    def raise_rvi(self, vector: int) -> None:
        rvi = self._v[self.current_vmcs()] + slot.RVI
        self.m[rvi] = max(self.m[rvi], self._vector.index(vector))

    def evaluate_pending_virtual_interrupts(self) -> None:
        pass

    def find_highest_virr(self, vcpu: int) -> int:
        return self._vector[self.m[self._v[vcpu] + slot.VIRR].bit_length()]

    def set_rvi(self, vector: int) -> None:
        self.m[self._v[self.current_vmcs()] + slot.RVI] = self._vector.index(vector)

    def _owe_less(self, v: int, bits: int) -> None:
        """One post fewer is owed of each vector in `bits` (OWED has two bits a vector)."""
        while bits:
            bit = bits & -bits
            if self.m[v + slot.OWED] & bit * bit * 3:
                self.m[v + slot.OWED] -= bit * bit
            bits -= bit

    def deliver(self, vcpu: int) -> int:
        """The guest takes the virtual interrupt that RVI names, and ends it; its vector."""
        m, v = self.m, self._v[vcpu]
        bit = 1 << (m[v + slot.RVI] - 1)
        vector = self._vector[m[v + slot.RVI]]
        if not m[v + slot.OWED] & bit * bit * 3:
            self.broken(Claim.NO_PHANTOM, f"vector {vector:#x} delivered without a post")
        self._owe_less(v, bit)
        m[v + slot.VIRR] &= ~bit
        m[v + slot.RVI] = m[v + slot.VIRR].bit_length()
        return vector

    def send_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        p = self._p[pcpu]
        self.m[p + slot.PENDING] |= PENDING_BIT[vector]
        if len(self._v) > 1:
            self.m[p + slot.MEANT] |= 1 << vcpu
        if self._counting:
            self.m[slot.RAISED] += 1

    def took_notification(self, vcpu: int) -> None:
        """The processor acknowledges a notification in non-root mode, whoever it was meant for."""
        self.seen.add("the processor took a notification")
        meant = self._p[self.c] + slot.MEANT
        if self.m[meant] & ~(1 << vcpu):
            text = f"vCPU {vcpu} consumed a notification that was meant for another"
            self.broken(Claim.OWN_NOTIFICATION, text)
        self.m[meant] = 0

    def vm_entry(self, vcpu: int) -> None:
        self.m[self._p[self.c] + slot.NONROOT] = 1

    def non_root_event(self, vcpu: int) -> NoReturn:
        raise AssertionError("a choice: see world")

    # -- struct kvm_vcpu ------------------------------------------------------------------------

    def store_mode(self, vcpu: int, mode: Mode) -> None:
        self._store(self._v[vcpu] + slot.MODE, mode.value)

    def load_mode(self, vcpu: int) -> int:
        return self._load(self._v[vcpu] + slot.MODE)

    def cmpxchg_mode(self, vcpu: int, old: Mode, new: Mode) -> int:
        assert self.kickers, "load_mode() of the own mode was taken for private"
        mode = self._v[vcpu] + slot.MODE
        found = int(self.m[mode])
        if found == old:
            self.m[mode] = new.value
        return found

    def store_vcpu_cpu(self, vcpu: int, pcpu: int) -> None:
        self._store(self._v[vcpu] + slot.CPU, pcpu)

    def load_vcpu_cpu(self, vcpu: int) -> int:
        return self._load(self._v[vcpu] + slot.CPU)

    def make_request(self, vcpu: int, request: Request) -> None:
        assert self.requesters, "vcpu->requests was taken for private"
        self.m[self._v[vcpu] + slot.REQUESTS] |= request.value

    def request_pending(self, vcpu: int) -> bool:
        return bool(self.m[self._v[vcpu] + slot.REQUESTS])

    def check_request(self, vcpu: int, request: Request) -> bool:
        found = bool(self.m[self._v[vcpu] + slot.REQUESTS] & request)
        self.m[self._v[vcpu] + slot.REQUESTS] &= ~request.value
        return found

    def load_has_pi_sender(self, vcpu: int) -> bool:
        return bool(self.m[slot.ASSIGNED])

    def mp_state(self, vcpu: int) -> int:
        return int(self.m[self._v[vcpu] + slot.MP])

    def set_mp_state(self, vcpu: int, state: MpState) -> None:
        self.m[self._v[vcpu] + slot.MP] = state.value

    def running_vcpu(self) -> int:
        return int(self.m[self._p[self.c] + slot.RUNNING])

    def set_running_vcpu(self, vcpu: int) -> None:
        self.m[self._p[self.c] + slot.RUNNING] = vcpu

    def interrupt_allowed(self, vcpu: int) -> bool:
        return bool(self.m[self._v[vcpu] + slot.GUEST_IF])

    def exit_msr(self) -> tuple[int, int]:
        p = self._p[self.c] + slot.EXIT_MSR
        deadline = int(self.m[p])
        self.m[p] = 0
        return MSR_TSC_DEADLINE, deadline

    def skip_emulated_instruction(self) -> None:
        pass

    # -- interrupts and preemption --------------------------------------------------------------

    def smp_processor_id(self) -> int:
        return self.c

    def local_irq_disable(self) -> None:
        self.m[self._p[self.c] + slot.IRQS_OFF] = 1

    def local_irq_enable(self) -> None:
        self.m[self._p[self.c] + slot.IRQS_OFF] = 0

    def preempt_disable(self) -> None:
        self.m[self._p[self.c] + slot.PREEMPT_COUNT] += 1

    def preempt_enable(self) -> None:
        self.m[self._p[self.c] + slot.PREEMPT_COUNT] -= 1

    def smp_mb(self) -> None:
        pass  # locked: `blocked` has waited until the store buffer was empty

    def host_work_pending(self) -> bool:
        return False

    def signal_pending(self) -> bool:
        return False

    def exit_interrupt_vector(self) -> int:
        p = self._p[self.c] + slot.EXIT_VECTOR
        vector = int(self.m[p])
        self.m[p] = 0
        return vector

    def irqfd(self, vector: int) -> tuple[int, int]:
        return vector - FIRST_DEVICE_VECTOR, self.scenario.irq_vector

    # -- tasks ----------------------------------------------------------------------------------

    def prepare_to_rcuwait(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.WAITING] = 1

    def finish_rcuwait(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.WAITING] = 0
        self.m[self._v[vcpu] + slot.STATE] = _RUNNING

    def vcpu_is_blocking(self, vcpu: int) -> bool:
        return bool(self.m[self._v[vcpu] + slot.WAITING])

    def set_current_state(self, vcpu: int, state: TaskState) -> None:
        self.m[self._v[vcpu] + slot.STATE] = state.value

    def rcuwait_wake_up(self, vcpu: int) -> bool:
        m, v = self.m, self._v[vcpu]
        if m[v + slot.STATE] == _RUNNING:
            return False
        assert m[v + slot.WAITING], "asleep, and nobody registered"
        m[v + slot.STATE] = _RUNNING
        self.seen.add("a wake-up found the vCPU asleep")
        if self._counting:
            m[slot.WOKEN] += 1
        if not m[v + slot.GUEST_IF]:
            self.broken(Claim.NO_NEEDLESS_WAKE, f"vCPU {vcpu} woken for what it cannot take")
        return True

    def deactivate_task(self, vcpu: int) -> bool:
        state = self._v[vcpu] + slot.STATE
        if self.m[state] != _INTERRUPTIBLE:
            return False
        self.m[state] = _SLEEPING
        self.seen.add("the vCPU went to sleep")
        return True

    def context_switch(self, vcpu: int) -> NoReturn:
        raise AssertionError("a choice: see world")

    def set_preempted(self, vcpu: int, preempted: bool) -> None:
        pass  # the text hands it on as an argument; nobody else reads it

    # -- the list of blocked vCPUs --------------------------------------------------------------

    def wakeup_list_add(self, pcpu: int, vcpu: int) -> None:
        where = self._p[pcpu] + slot.LIST
        if self.m[where] & 1 << vcpu:
            self.broken(Claim.LIST_AGREES, f"vCPU {vcpu} added twice to the list of pCPU {pcpu}")
        self.m[where] |= 1 << vcpu

    def wakeup_list_del(self, pcpu: int, vcpu: int) -> None:
        where = self._p[pcpu] + slot.LIST
        if not self.m[where] & 1 << vcpu:
            self.broken(Claim.LIST_AGREES, f"vCPU {vcpu} is not on the list of pCPU {pcpu}")
        self.m[where] &= ~(1 << vcpu)

    def wakeup_list_lock(self, pcpu: int) -> None:
        self.m[self._p[pcpu] + slot.LOCK] = 1

    def wakeup_list_next(self, pcpu: int, after: int) -> int:
        rest = self.m[self._p[pcpu] + slot.LIST] >> (after + 1)
        return after + (rest & -rest).bit_length() if rest else -1

    def wakeup_list_unlock(self, pcpu: int) -> None:
        self.m[self._p[pcpu] + slot.LOCK] = 0

    def pre_pcpu(self, vcpu: int) -> int:
        return int(self.m[self._v[vcpu] + slot.PRE_PCPU])

    def set_pre_pcpu(self, vcpu: int, pcpu: int) -> None:
        self.m[self._v[vcpu] + slot.PRE_PCPU] = pcpu

    # -- the APIC timer: a deadline is 1 (past) or 2 (to come) ------------------------------------

    def set_hv_timer(self, vcpu: int, deadline: int) -> bool:
        self.m[self._v[vcpu] + slot.HV_TIMER] = 1
        return deadline == 1

    def cancel_hv_timer(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.HV_TIMER] = 0

    def hv_timer_in_use(self, vcpu: int) -> bool:
        return bool(self.m[self._v[vcpu] + slot.HV_TIMER])

    def start_sw_timer(self, vcpu: int) -> None:
        if self.m[self._v[vcpu] + slot.DEADLINE]:
            self.m[self._v[vcpu] + slot.SW_TIMER] = 1 + self.c

    def cancel_sw_timer(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.SW_TIMER] = 0

    def tscdeadline(self, vcpu: int) -> int:
        return int(self.m[self._v[vcpu] + slot.DEADLINE])

    def set_tscdeadline(self, vcpu: int, deadline: int) -> None:
        self.m[self._v[vcpu] + slot.DEADLINE] = deadline

    def lvtt_vector(self, vcpu: int) -> int:
        return self.scenario.timer_vector

    def timer_pending_inc(self, vcpu: int) -> None:
        assert self.timers, "lapic_timer.pending was taken for private"
        self.m[self._v[vcpu] + slot.TIMER_PENDING] = 1

    def timer_pending(self, vcpu: int) -> bool:
        return bool(self.m[self._v[vcpu] + slot.TIMER_PENDING])

    def timer_pending_clear(self, vcpu: int) -> None:
        self.m[self._v[vcpu] + slot.TIMER_PENDING] = 0

    def expired_sw_timer(self) -> int:
        for vcpu, v in enumerate(self._v):
            if self.m[v + slot.SW_TIMER] == 1 + self.c:
                self.m[v + slot.SW_TIMER] = 0
                return vcpu
        return -1

    # -- halt polling: left out, it only delays blocking ------------------------------------------

    def halt_poll_start(self, vcpu: int) -> bool:
        return False

    def halt_poll_open(self, vcpu: int) -> bool:
        return False

    def halt_done(self, vcpu: int, waited: bool) -> None:
        pass

    def trace(self, event: Event, vcpu: int, vector: int = 0, arg: int = 0) -> None:
        if event is Event.ELIDE_SAME_VCPU:
            self.seen.add("a notification was elided: the vCPU runs here")
        elif event is Event.ELIDE_ON:
            self.seen.add("a post found ON set")
        elif event is Event.ELIDE_SN:
            self.seen.add("a device found SN set")
