"""ICR read-back rules: what a write of the interrupt command register reads as, in each mode.

The words stand for sets of values; every one of a set of samples is written to a local APIC.
Linux: tools/testing/selftests/kvm/x86/xapic_state_test.c.
"""

import re
from typing import Any, Final

from emulator.conformance.document import Case
from emulator.conformance.words import MismatchError, NotUnderstoodError, check, known_keys
from emulator.hardware.lapic import ApicMode, LocalApic

_ALL = (1 << 64) - 1
SAMPLES: Final = (
    *(0, _ALL, 0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA, 0x0123_4567_89AB_CDEF),
    *(1 << bit for bit in range(64)),
    *(_ALL ^ 1 << bit for bit in range(64)),
)


def run_readback(case: Case) -> None:
    """Steps {mode, write, read}; "otherwise" is what no earlier step of its mode has named."""
    known_keys("setup", case.setup, ())
    named = dict.fromkeys(ApicMode, 0)
    for step in case.steps:
        known_keys("step", step, ("mode", "write", "read", "n"))
        modes = [mode for mode in ApicMode if mode.value == step.get("mode")]
        if not modes:
            raise NotUnderstoodError(f"unknown mode {step.get('mode')!r}")
        words = str(step["write"])
        for value in _values(words, named[modes[0]]):
            _write_one(modes[0], value, str(step["read"]))
        named[modes[0]] |= _bits_in(words)
    check("all", "as listed", case.expect.get("all"))
    known_keys("expect", case.expect, ("all",))


def _values(words: str, named: int) -> list[int]:
    if words == "any 64-bit value":
        return list(SAMPLES)
    if words == "otherwise":
        return [value & ~named for value in SAMPLES]
    bits = _bits_in(words)
    if not bits or not words.endswith(" set"):
        raise NotUnderstoodError(f"write {words!r}")
    single = [1 << bit for bit in range(64) if bits >> bit & 1]
    return [one | value & ~bits for one in single for value in SAMPLES] + [bits]


def _bits_in(words: str) -> int:
    """The bits that "any of bits 31:20, 17:16, 13 set" names, as a mask."""
    found = re.fullmatch(r"any of bits? ([\d:, ]+) set", words)
    bits = 0
    for part in re.findall(r"(\d+)(?::(\d+))?", found[1]) if found else []:
        high, low = int(part[0]), int(part[1] or part[0])
        bits |= (1 << high + 1) - (1 << low)
    return bits


def _write_one(mode: ApicMode, value: int, read: str) -> None:
    apic = LocalApic(mode=mode)
    apic.write_icr(0x0300_0000 << 32 | 0xF1 if mode is ApicMode.XAPIC else 0x3_0000_00F1)
    before = apic.icr
    accepted = apic.write_icr(value)
    expected = _read_as(read, value)
    name = f"{mode.value}: ICR = {value:#x}"
    if expected is None:
        if accepted or apic.icr != before:
            raise MismatchError(f"{name}: expected {read}, got {apic.icr:#x}")
        return
    check(f"{name}: accepted", accepted, True)
    check(f"{name}: read", apic.icr, expected)


def _read_as(read: str, value: int) -> Any:
    """The value that the words promise; None for a fault that changes nothing."""
    if read == "#GP, no change":
        return None
    if read == "same 64-bit value":
        return value
    found = re.fullmatch(
        r"low 32 bits(?: with bit (\d+)(?: \(\w+\))? clear)?"
        r"; high dword keeps only bits (\d+):(\d+)",
        read,
    )
    if found is None:
        raise NotUnderstoodError(f"read {read!r}")
    low = value & 0xFFFF_FFFF & ~(1 << int(found[1]) if found[1] else 0)
    kept = (1 << int(found[2]) + 1) - (1 << int(found[3]))
    return low | (value >> 32 & kept) << 32
