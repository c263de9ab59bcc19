"""The virtual-APIC page of a live run is the page of the manual, kept otherwise."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.hardware.apicv import VIRR, VISR, ApicPage, VirtualApic
from emulator.machine.memory import Memory, Shape, SharedApicPage

VECTORS = st.integers(16, 255)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.sampled_from([VIRR, VISR]), VECTORS),
        st.tuples(st.just("clear"), st.sampled_from([VIRR, VISR]), VECTORS),
        st.tuples(st.just("or"), st.just(VIRR), st.integers(0, 2**240 - 1).map(lambda b: b << 16)),
        st.tuples(st.just("take"), st.just(VIRR), VECTORS),
    ),
    max_size=30,
)  # fmt: skip


@pytest.fixture(scope="module")
def memory(tmp_path_factory) -> Memory:
    path: Path = tmp_path_factory.mktemp("page") / "memory"
    return Memory.create(path, Shape(pcpus=1, vcpus=1, devices=0, ring_records=1 << 10))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(operations=OPERATIONS)
def test_the_shared_page_does_what_the_manuals_page_does(memory, operations):
    plain, shared = ApicPage(), SharedApicPage(memory, 0)
    shared.virr = shared.visr = 0

    for name, base, operand in operations:
        for page in (plain, shared):
            match name:
                case "set":
                    page.set_bit(base, operand)
                case "clear":
                    page.clear_bit(base, operand)
                case "or":
                    page.or_bits(base, operand)
                case "take":
                    page.take(operand)

    for base in (VIRR, VISR):
        assert shared.bits(base) == plain.bits(base)
        assert shared.top(base) == plain.top(base)
        for offset in range(base, base + 0x80, 16):
            assert shared.read32(offset) == plain.read32(offset)
    shared.write_back()
    assert memory.virr(0) == plain.bits(VIRR)


def test_a_nested_interrupt_leaves_the_outer_one_in_service(memory):
    page = SharedApicPage(memory, 0)
    page.virr = page.visr = 0
    vapic = VirtualApic(page)

    for vector in (0x41, 0x81):
        page.set_bit(VIRR, vector)
        vapic.raise_rvi(vector)
        vapic.deliver()
    vapic.eoi_virtualization()

    assert vapic.svi == 0x41
