"""Guest instructions at their edges: what faults, what exits, what is stored first."""

from dataclasses import replace

import pytest
from hardware_guest import APICV, Guest

from emulator.hardware import instructions as insn
from emulator.hardware.apicv import VPPR, VTPR
from emulator.hardware.vectors import ExitReason
from emulator.hardware.vmcs import BLOCKING_BY_STI, Activity

XAPIC = replace(APICV, virtualize_x2apic_mode=False, virtualize_apic_accesses=True)
IPIV = replace(APICV, ipi_virtualization=True)


def entered(controls=APICV, **kwargs):
    guest = Guest(controls, **kwargs)
    guest.enter()
    return guest


def test_mov_to_cr8_clears_the_low_nibble_that_wrmsr_keeps():
    guest = entered()
    guest.do(insn.wrmsr, 0x808, 0x4F)
    assert (guest.page.read32(VTPR), guest.page.read32(VPPR)) == (0x4F, 0x4F)
    guest.do(insn.mov_to_cr8, 5)
    assert guest.page.read32(VTPR) == 0x50
    guest.do(insn.mov_from_cr8)
    assert guest.p.result == 5


@pytest.mark.parametrize(
    ("instruction", "operands"),
    [
        (insn.mov_to_cr8, (16,)),
        (insn.wrmsr, (0x808, 0x100)),
        (insn.wrmsr, (0x80B, 1)),
        (insn.wrmsr, (0x83F, 0x151)),
        (insn.wrmsr, (0x802, 0)),
        (insn.wrmsr, (0x10, 0)),
        (insn.rdmsr, (0x10,)),
    ],
)
def test_what_faults_changes_nothing_but_ends_a_shadow(instruction, operands):
    guest = entered()
    guest.vmcs.guest.interruptibility = BLOCKING_BY_STI
    before = bytes(guest.page.mem)
    assert guest.do(instruction, *operands) == insn.FAULT
    assert bytes(guest.page.mem) == before
    assert guest.vmcs.guest.interruptibility == 0


def test_an_intercepted_msr_exits_before_it_is_written_and_leaves_the_shadow():
    guest = Guest()
    guest.vmcs.msr_write_intercepts = frozenset({0x6E0})
    guest.vmcs.msr_read_intercepts = frozenset({0x808})
    guest.vmcs.guest.interruptibility = BLOCKING_BY_STI
    guest.enter()
    assert guest.do(insn.wrmsr, 0x6E0, 123) == ExitReason.MSR_WRITE
    assert (guest.p.exit_msr, guest.p.exit_value) == (0x6E0, 123)
    assert guest.vmcs.guest.interruptibility == BLOCKING_BY_STI
    guest.vmcs.guest.skip_instruction()
    assert guest.vmcs.guest.interruptibility == 0
    guest.enter()
    assert guest.do(insn.rdmsr, 0x808) == ExitReason.MSR_READ


def test_hlt_exiting_exits_before_halting_and_mwait_exiting_before_waiting():
    guest = entered(replace(APICV, hlt_exiting=True, mwait_exiting=True))
    assert guest.do(insn.hlt) == ExitReason.HLT
    assert guest.vmcs.guest.activity is Activity.ACTIVE
    guest.enter()
    assert guest.do(insn.mwait) == ExitReason.MWAIT


def test_cr8_exits_carry_the_register_and_the_direction():
    guest = entered(replace(APICV, cr8_load_exiting=True, cr8_store_exiting=True))
    assert guest.do(insn.mov_to_cr8, 3) == ExitReason.CR_ACCESS
    assert guest.p.exit_qualification == 8
    guest.enter()
    assert guest.do(insn.mov_from_cr8) == ExitReason.CR_ACCESS
    assert guest.p.exit_qualification == 8 | 1 << 4


def test_without_tpr_shadow_cr8_is_the_physical_one():
    controls = replace(
        APICV,
        use_tpr_shadow=False,
        activate_secondary_controls=False,
        process_posted_interrupts=False,
    )
    guest = entered(controls)
    guest.do(insn.mov_to_cr8, 7)
    assert guest.lapic.tpr == 0x70
    guest.do(insn.mov_from_cr8)
    assert guest.p.result == 7


def test_a_self_ipi_of_class_zero_is_stored_and_exits():
    guest = entered()
    assert guest.do(insn.wrmsr, 0x83F, 0x0F) == ExitReason.APIC_WRITE
    assert guest.p.exit_qualification == 0x3F0
    assert guest.page.read32(0x3F0) == 0x0F


def test_any_value_is_an_eoi_on_the_page_and_veoi_reads_zero():
    guest = Guest(XAPIC)
    guest.vmcs.svi = 0x51
    guest.page.set_bit(0x100, 0x51)
    guest.enter()
    assert guest.do(insn.xapic_write, 0x0B0, 77) is None
    assert (guest.visr, guest.vapic.svi, guest.page.read32(0x0B0)) == (set(), 0, 0)


def test_an_eoi_exit_is_trap_like_and_ends_the_shadow():
    guest = Guest()
    guest.vmcs.eoi_exit_bitmap = 1 << 0x51
    guest.vmcs.svi = 0x51
    guest.page.set_bit(0x100, 0x51)
    guest.enter()
    assert guest.do(insn.eoi) == ExitReason.VIRTUALIZED_EOI
    assert guest.p.exit_qualification == 0x51
    assert guest.vmcs.svi == 0


def test_an_access_exit_tells_reads_from_writes():
    guest = entered(XAPIC)
    assert guest.do(insn.xapic_read, 0x0A0) == ExitReason.APIC_ACCESS
    assert guest.p.exit_qualification == 0x0A0
    guest.enter()
    assert guest.do(insn.xapic_write, 0x030, 1) == ExitReason.APIC_ACCESS
    assert guest.p.exit_qualification == 0x1030


def test_an_access_between_two_registers_exits():
    guest = entered(XAPIC)
    assert guest.do(insn.xapic_read, 0x084) == ExitReason.APIC_ACCESS


def test_ipi_virtualization_takes_only_fixed_edge_physical_without_shorthand():
    for value, outcome in (
        (3 << 32 | 0x51, insn.IPI),
        (3 << 32 | 1 << 14 | 0x51, insn.IPI),
        (3 << 32 | 1 << 11 | 0x51, ExitReason.APIC_WRITE),
        (3 << 32 | 1 << 15 | 0x51, ExitReason.APIC_WRITE),
        (3 << 32 | 4 << 8, ExitReason.APIC_WRITE),
        (3 << 18 | 0x51, ExitReason.APIC_WRITE),
        (1 << 20 | 0x51, insn.FAULT),
    ):
        guest = entered(IPIV, interrupt_flag=False)
        assert guest.do(insn.wrmsr, 0x830, value) == outcome, hex(value)
        if outcome == insn.IPI:
            assert guest.p.ipi == (0x51, 3)


def test_under_ipi_virtualization_the_self_shorthand_is_still_a_self_ipi():
    guest = entered(IPIV)
    assert guest.do(insn.wrmsr, 0x830, 1 << 18 | 0x51) is None
    assert guest.delivered == [0x51]


def test_the_x2apic_icr_is_read_back_in_one_piece():
    guest = entered(IPIV)
    guest.do(insn.wrmsr, 0x830, 3 << 32 | 0x51)
    guest.do(insn.rdmsr, 0x830)
    assert guest.p.result == 3 << 32 | 0x51


def test_a_passed_through_icr_write_leaves_by_the_physical_apic():
    left = []
    guest = Guest(replace(APICV, apic_register_virtualization=False))
    guest.lapic.send = left.append
    guest.enter()
    assert guest.do(insn.wrmsr, 0x830, 5 << 32 | 0x51) is None
    assert left == [5 << 32 | 0x51]
    guest.do(insn.rdmsr, 0x830)
    assert guest.p.result == 5 << 32 | 0x51


def test_a_passed_through_write_faults_on_what_the_physical_register_refuses():
    guest = entered(replace(APICV, virtualize_x2apic_mode=False))
    assert guest.do(insn.wrmsr, 0x830, 1 << 13) == insn.FAULT
    assert guest.do(insn.wrmsr, 0x808, 0x100) == insn.FAULT
    assert guest.do(insn.wrmsr, 0x80B, 1) == insn.FAULT
    assert guest.do(insn.wrmsr, 0x83F, 0x100) == insn.FAULT


def test_eoi_passed_through_reaches_the_physical_apic():
    controls = replace(APICV, virtual_interrupt_delivery=False, process_posted_interrupts=False)
    guest = entered(controls)
    guest.lapic.isr = 1 << 0x31
    assert guest.do(insn.eoi) is None
    assert guest.lapic.isr == 0


def test_tpr_threshold_exits_at_entry_when_accesses_are_virtual():
    controls = replace(XAPIC, virtual_interrupt_delivery=False, process_posted_interrupts=False)
    for vtpr, outcome in ((0x40, ExitReason.TPR_BELOW_THRESHOLD), (0x50, None)):
        guest = Guest(controls)
        guest.vmcs.tpr_threshold = 5
        guest.page.write32(VTPR, vtpr)
        assert guest.enter() == outcome
