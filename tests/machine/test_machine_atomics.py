"""The mapped words under several processes: nothing is lost, nothing is seen twice."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from emulator.machine.memory import Memory, PiDesc, Shape

POSTERS = 4
POSTS = 260_000  # each: a PIR bit or ON, over a million operations in all
ROUNDS = 150_000
ON = 1
SN = 2
ALL = 0xFFFF_FFFF_FFFF_FFFF


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory.create(
        tmp_path / "memory", Shape(pcpus=1, vcpus=2, devices=0, ring_records=1 << 10)
    )


class Children:
    """Forked children that each return one number."""

    def __init__(self) -> None:
        self.pipes: list[tuple[int, int]] = []

    def start(self, work: Callable[[], int]) -> None:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.write(write, str(work()).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        self.pipes.append((pid, read))

    def results(self) -> list[int]:
        values = []
        for pid, read in self.pipes:
            values.append(int(os.read(read, 32)))
            assert os.waitpid(pid, 0)[1] == 0
        return values


def test_bits_that_posters_set_are_harvested_exactly_once(memory):
    done = memory.u32(memory.pcpu(0, 512))

    def post(seed: int) -> int:
        desc, rng, won = PiDesc(memory, 0), random.Random(seed), 0
        for _ in range(POSTS):
            vector = rng.randrange(16, 256)
            mask = 1 << (vector & 63)
            won += not desc.set_pir[vector >> 6](mask) & mask
            desc.set_control(ON)
        done.fetch_add(1)
        return won

    def harvest() -> int:
        desc, found = PiDesc(memory, 0), 0
        while True:
            last = done.load() == POSTERS
            desc.clear_control(~ON & ALL)
            found += desc.harvest().bit_count()
            if last:
                return found

    children = Children()
    children.start(harvest)
    for seed in range(POSTERS):
        children.start(lambda seed=seed: post(seed))
    found, *won = children.results()

    assert found == sum(won)
    assert found > 1000  # the race was on: bits were taken and set again, many times over


def test_no_on_is_lost_to_a_compare_exchange_of_the_control_word(memory):
    """B12's shape: NV, NDST and SN change together while somebody else sets ON."""
    done = memory.u32(memory.pcpu(0, 512))

    def set_on() -> int:
        desc, rose = PiDesc(memory, 1), 0
        for _ in range(ROUNDS):
            rose += not desc.set_control(ON) & ON
        done.fetch_add(1)
        return rose

    def update() -> int:
        desc, n = PiDesc(memory, 1), 0
        while done.load() == 0:
            nv = 0xF1 + (n & 1)
            desc.update_control(ON, nv << 16 | (n & 0xFF) << 32 | (SN if n & 2 else 0))
            n += 1
        return n

    def clear_on() -> int:
        desc, fell = PiDesc(memory, 1), 0
        while True:
            last = done.load() != 0
            fell += desc.clear_control(~ON & ALL) & ON
            if last:
                return fell

    children = Children()
    for work in (set_on, update, clear_on):
        children.start(work)
    rose, updates, fell = children.results()

    assert rose == fell
    assert updates > 0


def test_a_hardware_sender_sets_on_once_for_each_time_it_was_clear(memory):
    desc = PiDesc(memory, 0)

    first = desc.set_on_unless_sn(urgent=False)
    second = desc.set_on_unless_sn(urgent=False)
    desc.clear_control(~ON & ALL)
    desc.set_control(SN)
    suppressed = desc.set_on_unless_sn(urgent=False)
    urgent = desc.set_on_unless_sn(urgent=True)

    assert (first & ON, second & ON) == (0, ON)
    assert suppressed & SN
    assert not suppressed & ON
    assert not urgent & ON
    assert desc.control() & ON


def test_descriptors_are_64_byte_aligned_and_bit_exact(memory):
    desc = PiDesc(memory, 1)
    base = memory.vcpu(1, 0)

    desc.set_pir[0xEC >> 6](1 << (0xEC & 63))
    desc.update_control(0, ON | SN | 0xF2 << 16 | 0x1234_5678 << 32)
    raw = bytes(memory.buffer[base : base + 64])

    assert base % 64 == 0
    assert raw[0xEC >> 3] == 1 << (0xEC & 7)
    assert raw[32] == 3
    assert raw[34] == 0xF2
    assert raw[36:40] == (0x1234_5678).to_bytes(4, "little")
    assert raw[40:] == bytes(24)
