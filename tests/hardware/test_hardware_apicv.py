"""The virtual APIC: the page's layout, and rules that a plausible mistake would break."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.hardware.apicv import VIRR, VISR, VPPR, VTPR, ApicPage, VirtualApic

VECTORS = st.sets(st.integers(0, 255), max_size=12)
BOUNDED = settings(derandomize=True, max_examples=80, deadline=None, database=None)


def test_a_vector_lives_in_the_dword_that_the_manual_says():
    page = ApicPage()
    for vector in range(256):
        page.set_bit(VIRR, vector)
        offset = VIRR | ((vector & 0xE0) >> 1)
        assert page.read32(offset) == 1 << (vector & 0x1F)
        page.clear_bit(VIRR, vector)
        assert not any(page.mem)


@BOUNDED
@given(VECTORS, VECTORS)
def test_visr_and_virr_are_sets_of_vectors_that_do_not_touch_each_other(virr, visr):
    page = ApicPage()
    page.or_bits(VIRR, sum(1 << v for v in virr))
    for v in visr:
        page.set_bit(VISR, v)
    assert page.bits(VIRR) == sum(1 << v for v in virr)
    assert page.top(VIRR) == max(virr, default=0)
    assert page.top(VISR) == max(visr, default=0)
    assert {v for v in range(256) if page.test_bit(VIRR, v)} == virr


def test_the_page_lies_over_the_buffer_that_it_is_given():
    buffer = bytearray(4096)
    ApicPage(memoryview(buffer)).set_bit(VISR, 0x31)
    assert buffer[0x112] == 1 << 1


def vapic(*, vtpr=0, vppr=0, rvi=0, svi=0, virr=(), visr=()):
    v = VirtualApic(ApicPage())
    v.page.write32(VTPR, vtpr)
    v.page.write32(VPPR, vppr)
    v.rvi, v.svi = rvi, svi
    v.page.or_bits(VIRR, sum(1 << x for x in virr))
    v.page.or_bits(VISR, sum(1 << x for x in visr))
    return v


def test_recognition_compares_classes_and_not_vectors():
    v = vapic(rvi=0x4F, vppr=0x41)
    v.evaluate()
    assert not v.recognised
    v.page.write32(VPPR, 0x3F)
    v.evaluate()
    assert v.recognised


def test_evaluation_withdraws_what_it_had_recognised():
    v = vapic(rvi=0x51, vppr=0x40)
    v.evaluate()
    v.page.write32(VPPR, 0x50)
    v.evaluate()
    assert not v.recognised


def test_window_exiting_suppresses_recognition():
    v = vapic(rvi=0x51)
    v.interrupt_window_exiting = True
    v.evaluate()
    assert not v.recognised


@pytest.mark.parametrize(
    ("vtpr", "svi", "vppr"), [(0x4C, 0x43, 0x4C), (0x4C, 0x53, 0x50), (0x00, 0x0F, 0x00)]
)
def test_ppr_virtualization_takes_all_of_vtpr_or_the_class_of_svi(vtpr, svi, vppr):
    v = vapic(vtpr=vtpr, svi=svi)
    v.ppr_virtualization()
    assert v.page.read32(VPPR) == vppr


def test_self_ipi_does_not_recompute_vppr():
    v = vapic(vtpr=0x10, vppr=0x60)  # VPPR is stale: only software can make it so
    v.self_ipi_virtualization(0x51)
    assert v.page.read32(VPPR) == 0x60
    assert not v.recognised
    assert v.rvi == 0x51


def test_raising_rvi_never_lowers_it_and_an_empty_pir_leaves_it():
    v = vapic(rvi=0x71)
    v.raise_rvi(0x31)
    v.raise_rvi(-1)
    assert v.rvi == 0x71


def test_delivery_moves_the_vector_and_takes_the_next_rvi_from_virr():
    v = vapic(rvi=0x81, virr=(0x81, 0x45, 0x44))
    v.evaluate()
    assert v.deliver() == 0x81
    assert (v.rvi, v.svi, v.recognised) == (0x45, 0x81, False)
    assert v.page.read32(VPPR) == 0x80
    assert v.page.bits(VISR) == 1 << 0x81


def test_an_eoi_exit_reports_vector_zero_too_and_skips_evaluation():
    v = vapic(rvi=0x51, svi=0, visr=())
    v.eoi_exit_bitmap = 1
    assert v.eoi_virtualization() == 0
    assert not v.recognised
    v.eoi_exit_bitmap = 0
    assert v.eoi_virtualization() is None
    assert v.recognised


def test_eoi_returns_to_the_highest_vector_still_in_service():
    v = vapic(svi=0x81, visr=(0x81, 0x45, 0x31))
    v.eoi_virtualization()
    assert (v.svi, v.page.read32(VPPR)) == (0x45, 0x40)


def test_tpr_below_threshold_counts_only_without_virtual_delivery():
    v = vapic(vtpr=0x40)
    v.tpr_threshold = 5
    assert not v.tpr_virtualization()
    v.virtual_interrupt_delivery = False
    assert v.tpr_virtualization()
    v.page.write32(VTPR, 0x50)
    assert not v.tpr_virtualization()
