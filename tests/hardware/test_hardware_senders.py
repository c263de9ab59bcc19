"""The descriptor's bytes, hardware senders, and VM-entry checks."""

from dataclasses import replace

import pytest
from hardware_guest import APICV, Guest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.conformance.stepped import SteppedText
from emulator.events import Event
from emulator.hardware import pi_desc
from emulator.hardware.cpu import Control
from emulator.hardware.entry_checks import violations
from emulator.hardware.posted import process_posted_interrupts
from emulator.hardware.senders import (
    NO_DESCRIPTOR,
    PidPointerTable,
    ipi_virtualization,
    vtd_post,
)
from emulator.hardware.vmcs import Vmcs

CONTROLS = st.builds(
    Control,
    on=st.booleans(),
    sn=st.booleans(),
    nv=st.integers(0, 255),
    ndst=st.integers(0, 2**32 - 1),
)
BOUNDED = settings(derandomize=True, max_examples=80, deadline=None, database=None)


def test_the_descriptor_has_each_field_where_the_manual_puts_it():
    descriptor = bytearray(64)
    control = Control(on=True, sn=True, nv=0xF2, ndst=0x1234_5678)
    pi_desc.write_control(descriptor, pi_desc.pack_control(control))
    pi_desc.write_pir(descriptor, 1 << 0x51)
    assert descriptor[32] == 3  # ON, SN
    assert descriptor[33] == 0
    assert descriptor[34] == 0xF2
    assert descriptor[35] == 0
    assert descriptor[36:40] == bytes.fromhex("78563412")
    assert descriptor[0x51 >> 3] == 1 << (0x51 & 7)
    assert not any(descriptor[40:])


@BOUNDED
@given(CONTROLS, st.integers(0, 2**256 - 1))
def test_the_control_word_and_pir_come_back_as_they_went_in(control, pir):
    descriptor = bytearray(64)
    pi_desc.write_control(descriptor, pi_desc.pack_control(control))
    pi_desc.write_pir(descriptor, pir)
    assert pi_desc.unpack_control(pi_desc.read_control(descriptor)) == control
    assert pi_desc.read_pir(descriptor) == pir


def test_ndst_is_bits_15_to_8_in_xapic_mode():
    assert pi_desc.ndst_of(0x21, x2apic=False) == 0x2100
    assert pi_desc.apic_id_of(0x2100, x2apic=False) == 0x21
    assert pi_desc.apic_id_of(pi_desc.ndst_of(0x12345, x2apic=True), x2apic=True) == 0x12345


# -- senders --------------------------------------------------------------------------------------


def posting(control):
    guest = Guest()
    pi_desc.write_control(guest.descriptor, pi_desc.pack_control(control))
    return guest


@BOUNDED
@given(CONTROLS, st.booleans())
def test_an_iommu_notifies_if_on_is_clear_and_sn_is_clear_or_the_entry_urgent(control, urgent):
    guest = posting(control)
    vtd_post(guest.cpu, 0, 0x51, urgent)
    notifies = not control.on and (urgent or not control.sn)
    sent = [(ipi.pcpu, ipi.vector) for ipi in guest.cpu.sent]
    assert sent == ([(control.ndst, control.nv)] if notifies else [])
    after = pi_desc.unpack_control(pi_desc.read_control(guest.descriptor))
    assert after == control._replace(on=control.on or notifies)
    assert pi_desc.read_pir(guest.descriptor) == 1 << 0x51
    elided = {event for event, _, _ in guest.cpu.traced} & {Event.ELIDE_ON, Event.ELIDE_SN}
    assert elided == (set() if notifies else {Event.ELIDE_ON if control.on else Event.ELIDE_SN})


def test_an_iommu_does_not_stop_at_a_set_pir_bit():
    guest = posting(Control(on=False, sn=False, nv=0xF2, ndst=1))
    guest.descriptor[0x51 >> 3] |= 1 << 1
    vtd_post(guest.cpu, 0, 0x51, urgent=False)
    assert len(guest.cpu.sent) == 1


def test_every_sender_sets_pir_before_it_decides_about_on():
    guest = posting(Control(on=False, sn=False, nv=0xF2, ndst=1))
    table = PidPointerTable.of_vcpus(1)
    for text in (
        lambda cpu: vtd_post(cpu, 0, 0x51, urgent=False),
        lambda cpu: ipi_virtualization(cpu, 0x61, 0, table),
    ):
        sender = SteppedText(text, guest.cpu)
        steps = []
        while sender.next_step is not None:
            steps.append(sender.next_step)
            sender.step()
        assert steps[:2] == ["pi_test_and_set_pir", "pi_test_and_set_on_unless_sn"]


def test_posted_interrupt_processing_makes_its_five_steps_in_the_manuals_order():
    guest = Guest()
    guest.enter()
    target = SteppedText(process_posted_interrupts, guest.cpu)
    steps = []
    while target.next_step is not None:
        steps.append(target.next_step)
        target.step()
    assert steps == [
        "pi_clear_on",
        "lapic_eoi",
        "pi_harvest",
        "raise_rvi",
        "evaluate_pending_virtual_interrupts",
    ]


@pytest.mark.parametrize(
    ("vector", "target", "entry", "posted"),
    [
        (0x51, 1, 0x1041, True),
        (0x0F, 1, 0x1041, False),
        (0x51, 2, 0x1041, False),
        (0x51, 1, 0x1040, False),
        (0x51, 1, 0x1043, False),
        (0x51, 1, 1 << 46 | 0x1041, False),
    ],
)
def test_ipi_virtualization_posts_only_through_a_valid_entry(vector, target, entry, posted):
    guest = Guest()
    guest.cpu.descriptors = [bytearray(64), bytearray(64)]
    table = PidPointerTable(entries=(0x1001, entry), last=1)
    assert ipi_virtualization(guest.cpu, vector, target, table) is posted
    assert bool(pi_desc.read_pir(guest.cpu.descriptors[1])) is posted
    assert len(guest.cpu.sent) == posted


def test_the_table_finds_each_vcpus_descriptor():
    table = PidPointerTable.of_vcpus(3, base=0x8000)
    assert [table.vcpu_of(i) for i in range(4)] == [0, 1, 2, NO_DESCRIPTOR]


# -- VM-entry checks ------------------------------------------------------------------------------


def test_the_controls_that_kvm_uses_pass():
    assert violations(Vmcs(APICV)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"virtual_interrupt_delivery": False},
        {"acknowledge_interrupt_on_exit": False},
        {"external_interrupt_exiting": False},
        {"use_tpr_shadow": False},
        {"virtualize_apic_accesses": True},
        {"activate_secondary_controls": False},
    ],
)
def test_taking_one_premise_away_violates_at_least_one_rule(change):
    assert violations(Vmcs(replace(APICV, **change)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nv", 0x100),
        ("pi_desc_addr", 0x20),
        ("pi_desc_addr", 1 << 46),
        ("virtual_apic_addr", 0x800),
        ("virtual_apic_addr", 1 << 46),
        ("pid_pointer_addr", 4),
        ("pid_pointer_addr", 1 << 46),
        ("pid_pointer_last", 1 << 60),
    ],
)
def test_a_field_out_of_range_violates_exactly_its_rule(field, value):
    vmcs = Vmcs(replace(APICV, ipi_virtualization=True))
    assert violations(vmcs) == []
    setattr(vmcs, field, value)
    assert 1 <= len(violations(vmcs)) <= 2


def test_an_apic_access_address_counts_only_when_accesses_are_virtual():
    vmcs = Vmcs(APICV)
    vmcs.apic_access_addr = 8
    assert violations(vmcs) == []
    vmcs.controls = replace(APICV, virtualize_x2apic_mode=False, virtualize_apic_accesses=True)
    assert len(violations(vmcs)) == 1


def test_secondary_controls_count_for_nothing_when_not_activated():
    controls = replace(
        APICV,
        process_posted_interrupts=False,
        activate_secondary_controls=False,
        virtualize_apic_accesses=True,
    )
    assert violations(Vmcs(controls)) == []
