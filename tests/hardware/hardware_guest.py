"""A guest to drive by hand: one processor with virtual-interrupt delivery, one descriptor."""

from emulator.hardware.apicv import VIRR, VISR
from emulator.hardware.bare import BareCpu
from emulator.hardware.cpu import NOTIFICATION
from emulator.hardware.lapic import LocalApic
from emulator.hardware.posted import process_posted_interrupts
from emulator.hardware.vmcs import Activity, Controls, GuestState, Vmcs
from emulator.hardware.vmx import LogicalProcessor

NV = 0xF2

APICV = Controls(
    external_interrupt_exiting=True,
    process_posted_interrupts=True,
    acknowledge_interrupt_on_exit=True,
    use_tpr_shadow=True,
    activate_secondary_controls=True,
    virtualize_x2apic_mode=True,
    apic_register_virtualization=True,
    virtual_interrupt_delivery=True,
)


class Guest:
    """Records what is delivered; its handlers do nothing until the test says so."""

    def __init__(self, controls=APICV, *, interrupt_flag=True, activity=Activity.ACTIVE):
        self.delivered = []
        self.lapic = LocalApic()
        self.p = LogicalProcessor(self.lapic, self)
        guest = GuestState(interrupt_flag=interrupt_flag, activity=activity)
        self.vmcs = Vmcs(controls, guest=guest)
        self.vmcs.nv = NV
        self.vapic = self.vmcs.vapic
        self.page = self.vapic.page
        self.descriptor = bytearray(64)
        self.cpu = BareCpu([self.descriptor], self.p)

    def interrupt(self, vector):
        self.delivered.append(vector)

    def enter(self):
        outcome = self.p.vm_entry(self.vmcs)
        return self.boundary() if outcome is None else outcome

    def boundary(self):
        """None, or an exit reason; notifications are processed."""
        while (outcome := self.p.boundary()) == NOTIFICATION:
            process_posted_interrupts(self.cpu)
        return outcome

    def do(self, instruction, *operands):
        """One instruction and the boundary behind it."""
        outcome = instruction(self.p, *operands)
        if self.p.in_root:
            return outcome
        exit_ = self.boundary()
        return outcome if exit_ is None else exit_

    def post(self, vector):
        self.cpu.pi_test_and_set_pir(0, vector)
        self.cpu.pi_test_and_set_on(0)

    def notify(self, vector=NV):
        self.lapic.accept(vector)
        return None if self.p.in_root else self.boundary()

    @property
    def virr(self):
        return members(self.page.bits(VIRR))

    @property
    def visr(self):
        return members(self.page.bits(VISR))


def members(bits):
    """A 256-bit number as a set of vectors."""
    return {v for v in range(bits.bit_length()) if bits >> v & 1} if bits else set()
