"""What may come between two guest instructions, and in which order."""

from dataclasses import replace

import pytest
from hardware_guest import APICV, NV, Guest

from emulator.hardware import instructions as insn
from emulator.hardware.apicv import VPPR, VTPR
from emulator.hardware.bare import BareCpu
from emulator.hardware.cpu import NOTIFICATION
from emulator.hardware.lapic import ApicMode, LocalApic
from emulator.hardware.posted import process_posted_interrupts, run_guest
from emulator.hardware.vectors import ExitReason
from emulator.hardware.vmcs import BLOCKING_BY_STI, INFO_VALID, Activity
from emulator.hardware.vmx import LogicalProcessor


def test_a_notification_is_reported_after_acknowledge_and_before_anything_of_the_descriptor(guest):
    guest.enter()
    guest.post(0x51)
    guest.lapic.accept(NV)
    assert guest.p.boundary() == NOTIFICATION
    assert guest.lapic.isr == 1 << NV
    assert guest.descriptor[32] & 1
    assert not guest.p.in_root
    process_posted_interrupts(guest.cpu)
    assert guest.lapic.isr == 0
    assert guest.p.boundary() is None
    assert guest.delivered == [0x51]


def test_the_descriptor_is_that_of_the_current_vmcs_and_nobody_elses():
    guest = Guest()
    other = bytearray(64)
    guest.cpu = BareCpu([guest.descriptor, other], guest.p, current=0)
    guest.enter()
    guest.cpu.pi_test_and_set_pir(1, 0x51)
    guest.cpu.pi_test_and_set_on(1)
    guest.notify()
    assert guest.delivered == []
    assert other[32] & 1


def test_entry_does_not_read_the_descriptor(guest):
    guest.post(0x51)
    guest.enter()
    guest.do(insn.nop)
    assert guest.delivered == []
    assert guest.descriptor[32] & 1


def test_a_notification_with_sn_set_is_processed_like_any_other(guest):
    guest.descriptor[32] |= 2
    guest.enter()
    guest.post(0x51)
    guest.notify()
    assert guest.delivered == [0x51]
    assert guest.descriptor[32] & 3 == 2


def test_a_virtual_interrupt_beats_an_external_one_that_then_exits_at_the_handler(guest):
    guest.vmcs.rvi = 0x51
    guest.lapic.accept(0xEC)
    assert guest.enter() == ExitReason.EXTERNAL_INTERRUPT
    assert guest.delivered == [0x51]
    assert guest.p.exit_interruption_info == INFO_VALID | 0xEC
    assert not guest.vmcs.guest.interrupt_flag


def test_an_external_interrupt_exits_whatever_if_and_shadows_say():
    guest = Guest(interrupt_flag=False)
    guest.vmcs.guest.interruptibility = BLOCKING_BY_STI
    guest.enter()
    assert guest.notify(0xEC) == ExitReason.EXTERNAL_INTERRUPT
    assert guest.lapic.isr == 1 << 0xEC  # hardware does not EOI it


def test_without_acknowledge_on_exit_the_vector_stays_in_irr():
    guest = Guest(
        replace(APICV, acknowledge_interrupt_on_exit=False, process_posted_interrupts=False)
    )
    guest.enter()
    assert guest.notify(0xEC) == ExitReason.EXTERNAL_INTERRUPT
    assert guest.p.exit_interruption_info & INFO_VALID == 0
    assert guest.lapic.irr == 1 << 0xEC


def test_without_external_interrupt_exiting_the_guest_takes_it_when_if_allows():
    guest = Guest(
        replace(
            APICV,
            external_interrupt_exiting=False,
            process_posted_interrupts=False,
            virtual_interrupt_delivery=False,
        ),
        interrupt_flag=False,
    )
    guest.enter()
    guest.notify(0x31)
    assert guest.delivered == []
    guest.do(insn.sti)
    guest.do(insn.nop)
    assert guest.delivered == [0x31]
    assert guest.lapic.isr == 1 << 0x31


@pytest.mark.parametrize("blocked_by", [insn.sti, insn.mov_ss])
def test_a_shadow_holds_delivery_back_for_one_instruction(blocked_by):
    guest = Guest(interrupt_flag=blocked_by is insn.mov_ss)
    guest.enter()
    guest.do(blocked_by)
    guest.post(0x51)
    guest.notify()
    assert guest.delivered == []
    guest.do(insn.nop)
    assert guest.delivered == [0x51]


def test_sti_with_if_already_set_casts_no_shadow(guest):
    guest.enter()
    guest.do(insn.sti)
    guest.post(0x51)
    guest.notify()
    assert guest.delivered == [0x51]


def test_sti_hlt_is_taken_after_the_hlt_and_never_between():
    guest = Guest(interrupt_flag=False)
    guest.enter()
    guest.post(0x51)
    guest.notify()
    guest.do(insn.sti)
    assert guest.delivered == []
    guest.do(insn.hlt)
    assert guest.delivered == [0x51]
    assert guest.vmcs.guest.activity is Activity.ACTIVE


def test_hlt_outlasts_a_notification_that_delivers_nothing_and_mwait_does_not():
    for instruction, after in ((insn.hlt, Activity.HLT), (insn.mwait, Activity.ACTIVE)):
        guest = Guest()
        guest.page.write32(VTPR, 0x60)
        guest.enter()
        guest.do(instruction)
        guest.post(0x51)
        guest.notify()
        assert guest.delivered == []
        assert guest.virr == {0x51}
        assert guest.vmcs.guest.activity is after


def test_mwait_does_not_begin_to_wait_over_a_recognised_interrupt_if_ecx_says_so():
    for ecx, after in ((1, Activity.ACTIVE), (0, Activity.MWAIT)):
        guest = Guest(interrupt_flag=False)
        guest.vmcs.rvi = 0x51
        guest.enter()
        guest.do(insn.mwait, ecx)
        assert guest.vmcs.guest.activity is after


def test_mwait_is_not_a_saved_activity_state():
    guest = Guest()
    guest.enter()
    guest.do(insn.mwait)
    assert guest.notify(0xEC) == ExitReason.EXTERNAL_INTERRUPT
    assert guest.vmcs.guest.activity is Activity.ACTIVE


@pytest.mark.parametrize("activity", [Activity.SHUTDOWN, Activity.WAIT_FOR_SIPI])
def test_nothing_virtual_is_delivered_in_shutdown_or_wait_for_sipi(activity):
    guest = Guest(activity=activity)
    guest.vmcs.rvi = 0x51
    guest.enter()
    assert guest.delivered == []
    assert guest.vapic.recognised
    exited = guest.notify(0xEC)
    assert exited == (None if activity is Activity.WAIT_FOR_SIPI else 1)


def test_window_exiting_harvests_but_recognises_nothing_and_exits_when_the_window_opens():
    guest = Guest(replace(APICV, interrupt_window_exiting=True), interrupt_flag=False)
    guest.enter()
    guest.post(0x51)
    guest.notify()
    assert (guest.virr, guest.vapic.rvi, guest.vapic.recognised) == ({0x51}, 0x51, False)
    assert guest.do(insn.sti) is None
    assert guest.do(insn.nop) == ExitReason.INTERRUPT_WINDOW
    assert guest.vmcs.rvi == 0x51


def test_the_window_exit_comes_before_an_external_interrupt():
    guest = Guest(replace(APICV, interrupt_window_exiting=True))
    guest.lapic.accept(0xEC)
    assert guest.enter() == ExitReason.INTERRUPT_WINDOW
    assert guest.lapic.irr == 1 << 0xEC


def test_changing_if_does_not_evaluate():
    guest = Guest(interrupt_flag=False)
    guest.enter()
    guest.vapic.rvi = 0x51  # written without one of the five triggers
    guest.do(insn.sti)
    guest.do(insn.nop)
    guest.do(insn.cli)
    guest.do(insn.iret)
    assert guest.delivered == []
    guest.do(insn.mov_to_cr8, 0)
    assert guest.delivered == [0x51]


def test_posting_does_not_recompute_vppr(guest):
    guest.enter()
    guest.page.write32(VPPR, 0x60)
    guest.post(0x51)
    guest.notify()
    assert guest.page.read32(VPPR) == 0x60
    assert guest.delivered == []


def test_an_exit_forgets_recognition_and_keeps_rvi_for_the_next_entry():
    guest = Guest(interrupt_flag=False)
    guest.enter()
    guest.post(0x51)
    guest.notify()
    assert guest.vapic.recognised
    guest.p.vm_exit(ExitReason.PREEMPTION_TIMER)
    assert (guest.vapic.recognised, guest.vmcs.rvi) == (False, 0x51)
    guest.vmcs.guest.interrupt_flag = True
    guest.enter()
    assert guest.delivered == [0x51]


def test_an_event_is_injected_before_a_recognised_interrupt_and_once():
    guest = Guest()
    guest.vmcs.rvi = 0x51
    guest.vmcs.entry_interruption_info = INFO_VALID | 0x80
    guest.enter()
    assert guest.delivered == [0x80]
    guest.do(insn.iret)
    assert guest.delivered == [0x80, 0x51]
    guest.p.vm_exit(ExitReason.PREEMPTION_TIMER)
    guest.vmcs.guest.interrupt_flag = True
    guest.enter()
    assert guest.delivered == [0x80, 0x51]


def test_a_vector_below_the_physical_priority_is_not_presented(guest):
    guest.lapic.isr = 1 << 0xF3
    guest.enter()
    guest.post(0x51)
    assert guest.notify() is None
    assert guest.lapic.irr == 1 << NV
    guest.lapic.eoi()
    guest.boundary()
    assert guest.delivered == [0x51]


def test_a_changed_apic_mode_counts_at_the_next_entry():
    guest = Guest(replace(APICV, virtualize_x2apic_mode=False))
    guest.enter()
    assert guest.do(insn.wrmsr, 0x808, 0x20) is None
    assert guest.lapic.tpr == 0x20
    guest.p.vm_exit(ExitReason.PREEMPTION_TIMER)
    guest.lapic.mode = ApicMode.XAPIC
    guest.enter()
    assert guest.do(insn.wrmsr, 0x808, 0x30) == insn.FAULT


def test_run_guest_processes_notifications_and_returns_the_exit_reason():
    guest = Guest()
    program = iter([insn.nop, insn.nop, insn.vmcall])

    def instruction():
        if guest.delivered:
            guest.do(next(program))
        else:
            guest.post(0x51)
            guest.lapic.accept(NV)

    cpu = BareCpu([guest.descriptor], guest.p, vmcss=[guest.vmcs], instruction=instruction)
    guest.cpu = cpu
    assert run_guest(cpu, 0) == ExitReason.VMCALL
    assert guest.delivered == [0x51]
    assert guest.descriptor[32] & 1 == 0


def test_run_guest_does_not_look_at_the_descriptor_without_a_notification():
    guest = Guest()
    guest.post(0x51)
    cpu = BareCpu(
        [guest.descriptor], guest.p, vmcss=[guest.vmcs], instruction=lambda: guest.do(insn.vmcall)
    )
    assert run_guest(cpu, 0) == ExitReason.VMCALL
    assert (guest.delivered, guest.virr) == ([], set())
    assert guest.descriptor[32] & 1


def test_vm_entry_from_non_root_operation_is_our_mistake():
    guest = Guest()
    guest.enter()
    with pytest.raises(AssertionError):
        guest.p.vm_entry(guest.vmcs)
    fresh = LogicalProcessor(LocalApic(), guest)
    with pytest.raises(AssertionError):
        fresh.vm_exit(ExitReason.VMCALL)
