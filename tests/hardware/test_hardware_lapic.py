"""The physical local APIC, its timer, and who a message reaches."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.hardware.destinations import (
    DeliveryMode,
    LogicalModel,
    Shorthand,
    decode_icr,
    logical_match,
    targets,
    x2apic_ldr,
)
from emulator.hardware.lapic import (
    APIC_BASE_EN,
    APIC_BASE_EXTD,
    RECEIVE_ILLEGAL_VECTOR,
    ApicMode,
    LocalApic,
    mode_after_base_write,
)
from emulator.hardware.timer import LVT_MASKED, ApicTimer, TimerMode, divisor, lvt_timer

BOUNDED = settings(derandomize=True, max_examples=80, deadline=None, database=None)


def test_a_vector_is_at_most_twice_outstanding_and_the_third_merges():
    apic = LocalApic()
    assert apic.accept(0x51)
    assert not apic.accept(0x51)
    apic.acknowledge()
    assert apic.accept(0x51)
    assert not apic.accept(0x51)
    assert (apic.irr, apic.isr) == (1 << 0x51, 1 << 0x51)


def test_vectors_below_16_are_illegal_and_only_the_error_register_shows_them():
    apic = LocalApic()
    assert not apic.accept(15)
    assert (apic.irr, apic.error) == (0, RECEIVE_ILLEGAL_VECTOR)
    assert apic.accept(16)


@BOUNDED
@given(st.sets(st.integers(16, 255)), st.sets(st.integers(16, 255)), st.integers(0, 255))
def test_presented_is_the_top_of_irr_if_its_class_is_above_tpr_and_service(irr, isr, tpr):
    apic = LocalApic()
    apic.irr = sum(1 << v for v in irr)
    apic.isr = sum(1 << v for v in isr)
    apic.tpr = tpr
    top = max(irr, default=0)
    masked = top >> 4 <= max(tpr >> 4, max(isr, default=0) >> 4)
    assert apic.pending() == (0 if masked else top)
    assert (apic.pending() > 0) == (top >> 4 > apic.ppr() >> 4)
    apic.eoi()
    assert apic.isr == sum(1 << v for v in isr - {max(isr, default=0)})


def test_cr8_is_the_class_of_tpr():
    apic = LocalApic()
    apic.cr8 = 15
    assert apic.tpr == 0xF0
    apic.tpr = 0x3A
    assert apic.cr8 == 3


@pytest.mark.parametrize("mode", ApicMode)
@pytest.mark.parametrize("bits", [0, APIC_BASE_EN, APIC_BASE_EXTD, APIC_BASE_EN | APIC_BASE_EXTD])
def test_apic_base_goes_to_x2apic_only_from_xapic_and_back_only_by_disabling(mode, bits):
    allowed = {
        (ApicMode.DISABLED, 0): ApicMode.DISABLED,
        (ApicMode.DISABLED, APIC_BASE_EN): ApicMode.XAPIC,
        (ApicMode.XAPIC, 0): ApicMode.DISABLED,
        (ApicMode.XAPIC, APIC_BASE_EN): ApicMode.XAPIC,
        (ApicMode.XAPIC, APIC_BASE_EN | APIC_BASE_EXTD): ApicMode.X2APIC,
        (ApicMode.X2APIC, 0): ApicMode.DISABLED,
        (ApicMode.X2APIC, APIC_BASE_EN | APIC_BASE_EXTD): ApicMode.X2APIC,
    }
    assert mode_after_base_write(mode, 0xFEE0_0000 | bits) is allowed.get((mode, bits))


def test_disabling_the_apic_forgets_its_state():
    apic = LocalApic()
    apic.accept(0x51)
    assert apic.write_base(0)
    assert (apic.irr, apic.mode) == (0, ApicMode.DISABLED)


def test_registers_read_as_irr_and_isr_dwords():
    apic = LocalApic(apic_id=7)
    apic.irr, apic.isr, apic.tpr = 1 << 0x51, 1 << 0xE1, 0x20
    assert apic.read_register(0x220) == 1 << 0x11
    assert apic.read_register(0x170) == 1 << 1
    assert apic.read_register(0x020) == 7
    assert apic.read_register(0x0A0) == 0xE0
    assert apic.write_register(0x320, 0x3_0000_00EC)
    assert apic.read_register(0x320) == 0xEC


# -- destinations ---------------------------------------------------------------------------------


def apics(count, mode=ApicMode.X2APIC):
    return [LocalApic(i, mode) for i in range(count)]


def icr(value, mode=ApicMode.X2APIC):
    return decode_icr(value, mode)


def test_shorthands_do_not_look_at_the_destination():
    for shorthand, reached in (
        (Shorthand.SELF, [1]),
        (Shorthand.ALL_INCLUDING_SELF, [0, 1, 2]),
        (Shorthand.ALL_EXCLUDING_SELF, [0, 2]),
    ):
        assert targets(apics(3), 1, icr(9 << 32 | shorthand << 18 | 0x51)) == reached


def test_a_physical_destination_is_one_apic_or_all():
    assert targets(apics(3), 0, icr(2 << 32 | 0x51)) == [2]
    assert targets(apics(3), 0, icr(0xFFFF_FFFF << 32 | 0x51)) == [0, 1, 2]
    assert targets(apics(3), 0, icr(0xFF << 32 | 0x51)) == []
    assert targets(apics(3, ApicMode.XAPIC), 0, icr(0xFF << 56, ApicMode.XAPIC)) == [0, 1, 2]


def test_a_logical_x2apic_destination_names_a_cluster_and_its_members():
    machines = [LocalApic(i) for i in (0, 1, 16, 17)]
    assert targets(machines, 0, icr(0x1_0003 << 32 | 1 << 11 | 0x51)) == [2, 3]
    assert x2apic_ldr(17) == 0x1_0002


def test_an_xapic_takes_its_model_from_dfr():
    apic = LocalApic(0, ApicMode.XAPIC)
    apic.ldr = 0x21 << 24
    message = icr(0x41 << 56 | 1 << 11 | 0x51, ApicMode.XAPIC)
    assert targets([apic], 0, message) == [0]  # flat: bit 0 is common
    apic.dfr = 0x0FFF_FFFF
    assert targets([apic], 0, message) == []  # cluster 4 is not cluster 2
    assert not logical_match(LogicalModel.CLUSTER, 0x22, 0x21)


def test_lowest_priority_goes_to_one_of_the_matches():
    machines = apics(3)
    machines[0].tpr = 0x80
    message = icr(0xFFFF_FFFF << 32 | DeliveryMode.LOWEST_PRIORITY << 8 | 0x51)
    assert targets(machines, 0, message) == [1]


def test_a_disabled_apic_receives_nothing():
    machines = apics(2)
    machines[1].mode = ApicMode.DISABLED
    assert targets(machines, 0, icr(Shorthand.ALL_INCLUDING_SELF << 18 | 0x51)) == [0]


# -- the timer ------------------------------------------------------------------------------------


def timer(mode, vector=0xEC):
    t = ApicTimer()
    t.write_lvt(lvt_timer(mode, vector))
    return t


def test_a_deadline_in_the_past_fires_at_once_and_once_and_then_reads_zero():
    t = timer(TimerMode.TSC_DEADLINE)
    t.write_deadline(500)
    assert t.expire(1000) == 0xEC
    assert t.expire(2000) == 0
    assert t.deadline_msr == 0


def test_writing_zero_disarms_the_deadline():
    t = timer(TimerMode.TSC_DEADLINE)
    t.write_deadline(500)
    t.write_deadline(0)
    assert t.expire(1000) == 0


def test_a_deadline_is_ignored_in_another_mode_and_a_count_in_deadline_mode():
    t = timer(TimerMode.ONE_SHOT)
    t.write_deadline(500)
    assert t.expire(1000) == 0
    t = timer(TimerMode.TSC_DEADLINE)
    t.write_initial_count(10, now=0)
    assert t.expire(1000) == 0


def test_a_one_shot_counts_its_divisor_and_does_not_fire_a_tick_early():
    t = timer(TimerMode.ONE_SHOT)
    t.tdcr = 0b0001  # divide by 4
    t.write_initial_count(10, now=100)
    assert t.current_count(120) == 5
    assert t.expire(139) == 0
    assert t.expire(140) == 0xEC
    assert t.expire(10_000) == 0
    assert t.current_count(10_000) == 0


def test_a_late_periodic_timer_fires_for_each_period_and_a_masked_one_in_silence():
    t = timer(TimerMode.PERIODIC)
    t.tdcr = 0b1011
    t.write_initial_count(10, now=0)
    assert [t.expire(35) for _ in range(4)] == [0xEC, 0xEC, 0xEC, 0]
    t.write_lvt(t.lvt | LVT_MASKED)
    assert t.expire(40) == 0


def test_a_change_to_or_from_deadline_mode_disarms():
    t = timer(TimerMode.ONE_SHOT)
    t.write_initial_count(10, now=0)
    t.write_lvt(lvt_timer(TimerMode.TSC_DEADLINE, 0xEC))
    assert t.expire(100) == 0


@pytest.mark.parametrize(
    ("tdcr", "by"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)]
)
def test_the_divide_configuration_skips_bit_2(tdcr, by):
    assert divisor(tdcr) == by
