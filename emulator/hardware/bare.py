"""A world of one thread: descriptors in plain memory, one processor, IPIs counted or delivered.

`Cpu` for golden cases, tests and examples.  Its steps are atomic because nobody else runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emulator.events import Event
from emulator.hardware import pi_desc
from emulator.hardware.apicv import VIRR
from emulator.hardware.cpu import Control
from emulator.hardware.lapic import LocalApic
from emulator.hardware.vmcs import Vmcs
from emulator.hardware.vmx import LogicalProcessor


@dataclass(frozen=True, slots=True)
class Sent:
    """One IPI that left: the ICR's physical destination, its vector, and for whom."""

    pcpu: int
    vector: int
    vcpu: int


class BareCpu:
    """`Cpu` over descriptors that only this thread touches.

    `descriptors[vcpu]` is a 64-byte buffer; `current` says which vCPU's VMCS is current on
    `processor`, -1 for none.  IPIs are appended to `sent` and accepted by `lapics[pcpu]` where
    that exists.  `physical_eois` counts writes of the EOI register by `lapic_eoi`.

    To run guests (`posted.run_guest`): `vmcss[vcpu]`, and `instruction`, which executes the guest's
    next instruction on `processor`.
    """

    def __init__(
        self,
        descriptors: Sequence[bytearray],
        processor: LogicalProcessor,
        current: int = 0,
        lapics: Sequence[LocalApic] = (),
        vmcss: Sequence[Vmcs] = (),
        instruction: Callable[[], object] | None = None,
    ) -> None:
        self.descriptors = descriptors
        self.processor = processor
        self.current = current
        self.lapics = lapics
        self.vmcss = vmcss
        self.instruction = instruction
        self.sent: list[Sent] = []
        self.traced: list[tuple[Event, int, int]] = []
        self.physical_eois = 0

    # -- the descriptor -------------------------------------------------------------------------

    def pi_test_and_set_pir(self, vcpu: int, vector: int) -> bool:
        descriptor = self.descriptors[vcpu]
        old = descriptor[vector >> 3] >> (vector & 7) & 1 == 1
        descriptor[vector >> 3] |= 1 << (vector & 7)
        self.trace(Event.POST_PIR_SET if old else Event.POST, vcpu, vector)
        return old

    def pi_test_and_set_on(self, vcpu: int) -> bool:
        descriptor = self.descriptors[vcpu]
        old = descriptor[pi_desc.CONTROL_OFFSET] & pi_desc.ON != 0
        descriptor[pi_desc.CONTROL_OFFSET] |= pi_desc.ON
        return old

    def pi_test_and_set_on_unless_sn(self, vcpu: int, urgent: bool) -> Control:
        descriptor = self.descriptors[vcpu]
        word = pi_desc.read_control(descriptor)
        if not word & pi_desc.ON and (urgent or not word & pi_desc.SN):
            pi_desc.write_control(descriptor, word | pi_desc.ON)
        return pi_desc.unpack_control(word)

    def pi_clear_on(self, vcpu: int) -> None:
        self.descriptors[vcpu][pi_desc.CONTROL_OFFSET] &= ~pi_desc.ON & 0xFF

    def pi_harvest(self, vcpu: int) -> int:
        descriptor = self.descriptors[vcpu]
        pir = pi_desc.read_pir(descriptor)
        if pir:
            pi_desc.write_pir(descriptor, 0)
            self.processor.vmcs.vapic.page.or_bits(VIRR, pir)
        return pir.bit_length() - 1

    # -- the local APIC and the virtual APIC ----------------------------------------------------

    def current_vmcs(self) -> int:
        return self.current

    def lapic_eoi(self) -> None:
        self.physical_eois += 1
        self.processor.lapic.eoi()

    def raise_rvi(self, vector: int) -> None:
        self.processor.vapic.raise_rvi(vector)

    def evaluate_pending_virtual_interrupts(self) -> None:
        self.processor.vapic.evaluate()

    def send_ipi(self, pcpu: int, vector: int, vcpu: int) -> None:
        self.sent.append(Sent(pcpu, vector, vcpu))
        if pcpu < len(self.lapics):
            self.lapics[pcpu].accept(vector)

    # -- non-root operation ---------------------------------------------------------------------

    def vm_entry(self, vcpu: int) -> None:
        self.current = vcpu
        self.processor.vm_entry(self.vmcss[vcpu])

    def non_root_event(self, vcpu: int) -> int:
        processor = self.processor
        while not processor.in_root:
            outcome = processor.boundary()
            if outcome is not None:
                return outcome
            assert self.instruction is not None, "a guest without a program"
            self.instruction()
        return processor.exit_reason

    def trace(self, event: Event, vcpu: int, vector: int = 0, arg: int = 0) -> None:
        self.traced.append((event, vcpu, vector))
