"""`ModelCpu`, the third implementation of `Cpu`: each method does one step to a simulated memory.

This is the processor's half, `model_cpu` the host kernel's.  The methods carry the names of `Cpu`
and nothing else decides what a step does.  `world` sets `m` (the memory, unpacked), `c` (the pCPU
the actor is on) and `me` (its vCPU thread, -1 in a handler or a sender); `programs` asks
`blocked()` and calls the method.  The two steps with more than one outcome, `non_root_event` and
`context_switch`, are in `choices`.

Under TSO a plain store goes to the pCPU's buffer and becomes visible in a step of its own
(`drain`); a locked step waits until the buffer is empty.
"""

from typing import Any, Final, NoReturn

from emulator.checker import memory as slot
from emulator.checker.claims import Claim, Sometimes
from emulator.checker.lint import KINDS
from emulator.checker.memory import PENDING_BIT, Layout, Touched
from emulator.checker.scenario import MemoryModel, Scenario
from emulator.events import Event
from emulator.hardware.cpu import Control, Kind
from emulator.hardware.vectors import POSTED_INTR_VECTOR, Mode
from emulator.kvm.params import Bug, Notify

KICKING_RULES: Final = (Notify.KVM_V3_10, Notify.KVM_V4_11, Notify.KVM_V5_8, Notify.KVM_V5_16)

_LOCKED: Final = frozenset(n for n, k in KINDS.items() if k is Kind.LOCKED)
_STORES: Final = frozenset(n for n, k in KINDS.items() if k is Kind.STORE)
LIST_STEPS: Final = frozenset({"wakeup_list_add", "wakeup_list_del", "wakeup_list_lock"})


class ModelHardware:
    """Simulated memory, and what the processor's half of `Cpu` does to it."""

    def __init__(self, scenario: Scenario, layout: Layout) -> None:
        self.scenario = scenario
        self.kvm = scenario.kvm
        self.tso = scenario.memory is MemoryModel.TSO
        self.m = Touched(())
        self.c = 0
        self.me = -1
        self.call = -1  # the vCPU's block whose remote sender is at work, if it is
        self.fault: tuple[Claim, str] | None = None
        self.seen: set[Sometimes] = set()
        self._layout = layout
        self._v = layout.vcpus
        self._p = layout.pcpus
        self._bit = {vector: 1 << i for i, vector in enumerate(scenario.vectors)}
        self._vector = (-1, *scenario.vectors)  # by 1 + index
        self._counting = Claim.COST in scenario.claims
        self.minds_elision = Claim.ELISION_IS_SOUND in scenario.claims
        timers = scenario.bounds.timer > 0
        plug = scenario.bounds.plug > 0
        self.kickers = scenario.rule in KICKING_RULES or timers or plug
        self.requesters = scenario.rule is Notify.KVM_V3_10 or timers or plug
        self.timers = timers
        self._plain_state = Bug.STATE_WITHOUT_FENCE in scenario.bugs

    def blocked(self, op: str, args: tuple[Any, ...]) -> bool:
        """The step cannot be done yet: a store buffer to drain, a lock that is held."""
        if op in LIST_STEPS and self.m[self._p[args[0]] + slot.LOCK]:
            return True
        if not self.tso:
            return False
        if op in _STORES or (op == "set_current_state" and self._plain_state):
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
            self.seen.add(Sometimes.PIR_SET)
            return True
        m[v + slot.PIR] |= bit
        m[v + slot.OWED] += bit * bit
        return False

    def pi_test_and_set_on(self, vcpu: int) -> bool:
        v = self._v[vcpu]
        old = bool(self.m[v + slot.ON])
        self.m[v + slot.ON] = 1
        if old and self.call >= 0:
            self.m[self.call + slot.CALL_REMOTE] = 2
        return old

    def pi_test_and_set_on_unless_sn(self, vcpu: int, urgent: bool) -> Control:
        before = self._control(vcpu)
        if before.sn and not urgent:
            return before
        self.m[self._v[vcpu] + slot.ON] = 1
        notifies = before.nv == POSTED_INTR_VECTOR and not before.on
        if notifies and self.m[self._p[before.ndst] + slot.RUNNING] != vcpu:
            text = f"pCPU {before.ndst} is sent a notification for vCPU {vcpu}, which has left"
            self.broken(Claim.NOTIFIED_WHERE_LOADED, text)
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
        return int(self._vector[pir.bit_length()])

    def _control(self, vcpu: int) -> Control:
        m, v = self.m, self._v[vcpu]
        return Control(bool(m[v + slot.ON]), bool(m[v + slot.SN]), m[v + slot.NV], m[v + slot.NDST])

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
            self.broken(
                Claim.NO_INTERRUPT_FROM_NOWHERE, f"vector {vector:#x} delivered without a post"
            )
        self._owe_less(v, bit)
        m[v + slot.VIRR] &= ~bit
        m[v + slot.RVI] = m[v + slot.VIRR].bit_length()
        return int(vector)

    def send_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        p = self._p[pcpu]
        self.m[p + slot.PENDING] |= PENDING_BIT[vector]
        notifies = self.call >= 0 and vector == POSTED_INTR_VECTOR
        if notifies and self.m[self.call + slot.CALL_REMOTE] == 2:
            self.broken(Claim.GATE, f"a sender that found ON set notifies vCPU {vcpu} again")
        if self._counting:
            self.m[slot.RAISED] += 1

    def took_notification(self, vcpu: int) -> None:
        """The processor acknowledges a notification in non-root mode, whoever it was meant for."""
        self.seen.add(Sometimes.TOOK)

    def wasted_notification(self) -> None:
        """POSTED_INTR_VECTOR arrived in root mode: its handler does nothing."""
        self.seen.add(Sometimes.WASTED)
        if self._counting:
            self.m[slot.WASTED] += 1

    def vm_entry(self, vcpu: int) -> None:
        self.m[self._p[self.c] + slot.NONROOT] = 1
        self.has_synced(vcpu, "enters the guest")

    def non_root_event(self, vcpu: int) -> NoReturn:
        raise AssertionError("see choices.guest_events")

    def trace(self, event: Event, vcpu: int, vector: int = 0, arg: int = 0) -> None:
        if event is Event.ELIDE_SAME_VCPU:
            self.seen.add(Sometimes.ELIDED)
            if self.minds_elision:
                self._elides(vcpu)
        elif event is Event.ELIDE_ON:
            self.seen.add(Sometimes.ON_SET)
        elif event is Event.ELIDE_SN:
            self.seen.add(Sometimes.SN_SET)

    def _elides(self, vcpu: int) -> None:
        """I15: who may, and that a sync is now due.  `vcpu` is loaded on this pCPU."""
        m, v = self.m, self._v[vcpu]
        mode = Mode(self._load(v + slot.MODE))
        who = f"for vCPU {vcpu} on pCPU {self.c}"
        if self.me != vcpu:
            self.broken(Claim.ELISION_IS_SOUND, f"an interrupt handler elides {who}")
        elif mode is not Mode.IN_GUEST_MODE or not m[self._p[self.c] + slot.IRQS_OFF]:
            self.broken(Claim.ELISION_IS_SOUND, f"the thread elides {who} in {mode.name}")
        m[v + slot.ELIDED] = 1

    def has_synced(self, vcpu: int, does: str) -> None:
        """I15: what was elided has been synced before the thread does this."""
        if self.minds_elision and self.m[self._v[vcpu] + slot.ELIDED]:
            text = f"vCPU {vcpu} {does} and has not synced since it elided"
            self.broken(Claim.ELISION_IS_SOUND, text)
