"""The steps on PI descriptors and virtual APICs: the half of `Cpu` that hardware text uses too.

Each method is the one step its name says, done with one locked instruction on the mapped file, and
then a look at the interrupt window.  Before: `processor`.  Next: `timers`, `live` add the kernel's.
"""

from time import monotonic_ns
from typing import Final

from emulator.events import Event
from emulator.hardware.cpu import Control
from emulator.hardware.vectors import BIT
from emulator.machine.processor import Processor

ON: Final = 1
SN: Final = 2
NV_SHIFT: Final = 16
NDST_SHIFT: Final = 32
NOT_ON: Final = ~ON & 0xFFFF_FFFF_FFFF_FFFF
NOT_SN: Final = ~SN & 0xFFFF_FFFF_FFFF_FFFF

# Plain integers: looking a member up through its class costs more than the step.
POST: Final = int(Event.POST)
POST_PIR_SET: Final = int(Event.POST_PIR_SET)
SYNC: Final = int(Event.SYNC)


class Descriptors(Processor):
    """PI descriptors, the local APIC, and the virtual APIC of the current VMCS."""

    __slots__ = ()

    def _step(self) -> None:
        """The end of a step with interrupts on: does one arrive here?"""
        if (
            self._rung() != self.arrived
            or self.lapic.irr
            or (self.alarm and monotonic_ns() >= self.alarm)
        ):
            self.window()

    # -- the PI descriptor -------------------------------------------------------------------------

    def pi_test_and_set_pir(self, vcpu: int, vector: int) -> bool:
        mask = BIT[vector & 63]
        was = self.words[vcpu].desc.set_pir[vector >> 6](mask) & mask
        self.note_post(vcpu, vector, was)
        if self.irqs_on:
            self._step()
        return was != 0

    def note_post(self, vcpu: int, vector: int, was: int) -> None:
        """Record that a bit of PIR, or of the software VIRR, has been set, or was."""
        load, due = self.cause
        kind = POST_PIR_SET if was else POST
        self.note((monotonic_ns(), due, 0, kind, vector, self.pcpu, vcpu, load))

    def pi_test_and_set_on(self, vcpu: int) -> bool:
        was = self.words[vcpu].desc.set_control(ON) & ON
        if self.irqs_on:
            self._step()
        return was != 0

    def pi_test_and_set_on_unless_sn(self, vcpu: int, urgent: bool) -> Control:
        desc = self.words[vcpu].desc
        old = desc.set_on_unless_sn(urgent)
        if self.irqs_on:
            self._step()
        return control_of(old)

    def pi_clear_on(self, vcpu: int) -> None:
        self.words[vcpu].desc.clear_control(NOT_ON)
        if self.irqs_on:
            self._step()

    def pi_set_on(self, vcpu: int) -> None:
        self.words[vcpu].desc.set_control(ON)
        if self.irqs_on:
            self._step()

    def pi_set_sn(self, vcpu: int) -> None:
        self.words[vcpu].desc.set_control(SN)
        if self.irqs_on:
            self._step()

    def pi_clear_sn(self, vcpu: int) -> None:
        self.words[vcpu].desc.clear_control(NOT_SN)
        if self.irqs_on:
            self._step()

    def pi_test_on(self, vcpu: int) -> bool:
        on = self.words[vcpu].desc.control() & ON
        if on:
            self.syncs_on += 1
        else:
            self.syncs_off += 1
        if self.irqs_on:
            self._step()
        return on != 0

    def pi_is_pir_empty(self, vcpu: int) -> bool:
        empty = self.words[vcpu].desc.pir() == 0
        if self.irqs_on:
            self._step()
        return empty

    def pi_read_control(self, vcpu: int) -> Control:
        value = self.words[vcpu].desc.control()
        if self.irqs_on:
            self._step()
        return control_of(value)

    def pi_update_control(self, vcpu: int, nv: int, ndst: int, sn: bool) -> bool:
        keep = ON | (0xFFFF_FFFF << NDST_SHIFT if ndst < 0 else 0)
        value = nv << NV_SHIFT | (SN if sn else 0)
        if ndst >= 0:
            value |= ndst << NDST_SHIFT
        wrote = self.words[vcpu].desc.update_control(keep, value)
        if self.irqs_on:
            self._step()
        return wrote & ON != 0

    def pi_harvest(self, vcpu: int) -> int:
        words = self.words[vcpu]
        found = words.desc.harvest()
        highest = found.bit_length() - 1
        if found:
            page = words.page
            before = page.virr
            page.virr = before | found
            self.harvests += 1
            flags = 0 if self.lp.in_root else 1
            now = monotonic_ns()
            if found == BIT[highest] and not before & found:
                self.note((now, flags, 0, SYNC, highest, self.pcpu, vcpu, 0))
            else:
                self._note_syncs(now, flags, vcpu, found, before)
        if self.irqs_on:
            self._step()
        return highest

    def _note_syncs(self, now: int, flags: int, vcpu: int, found: int, before: int) -> None:
        """One event for each vector harvested, the highest first."""
        while found:
            vector = found.bit_length() - 1
            bit = 1 << vector
            found ^= bit
            arg = flags | 2 if before & bit else flags
            self.note((now, arg, 0, SYNC, vector, self.pcpu, vcpu, 0))

    # -- the local APIC and the virtual APIC -------------------------------------------------------

    def current_vmcs(self) -> int:
        return self.current

    def lapic_eoi(self) -> None:
        self.lapic.eoi()

    def raise_rvi(self, vector: int) -> None:
        self.lp.vapic.raise_rvi(vector)

    def evaluate_pending_virtual_interrupts(self) -> None:
        self.lp.vapic.evaluate()

    def find_highest_virr(self, vcpu: int) -> int:
        return self.words[vcpu].page.virr.bit_length() - 1

    def set_rvi(self, vector: int) -> None:
        self.loaded.rvi = vector if vector > 0 else 0  # noqa: FURB136  half the time

    def interrupt_allowed(self, vcpu: int) -> bool:
        guest = self.vmcs[vcpu].guest
        return guest.interrupt_flag and not guest.interruptibility

    def exit_msr(self) -> tuple[int, int]:
        assert self.guest is not None
        self.cause = self.guest.cause
        return self.lp.exit_msr, self.lp.exit_value

    def skip_emulated_instruction(self) -> None:
        assert self.guest is not None
        self.guest.pc += 1
        self.lp.guest.interruptibility = 0  # vmx_set_interrupt_shadow(vcpu, 0)

    def send_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        self.post_ipi(pcpu, vector, vcpu)
        if self.irqs_on:
            self._step()

    # -- guest.Platform: the guest's memory --------------------------------------------------------

    def count_up(self) -> None:
        self.words[self.current].guest_word.fetch_add(1)

    def count(self, vcpu: int) -> int:
        return self.words[vcpu].guest_word.load()


def control_of(word: int) -> Control:
    """The control word as its fields."""
    return Control(
        on=word & ON != 0,
        sn=word & SN != 0,
        nv=word >> NV_SHIFT & 0xFF,
        ndst=word >> NDST_SHIFT,
    )
