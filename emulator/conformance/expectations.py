"""What a case of the shared vocabulary expects, key by key.

Every key that is present is asserted; a key that is not known fails the case.
"""

from typing import Any, Final

from emulator.conformance.bench import ACTIVITIES, Bench, Exit
from emulator.conformance.words import (
    MismatchError,
    NotUnderstoodError,
    check,
    known_keys,
    number,
    switch,
    vector_set,
    vectors_in,
)
from emulator.hardware import pi_desc
from emulator.hardware.apicv import VIRR, VISR, VPPR, VTPR
from emulator.hardware.vectors import ExitReason
from emulator.hardware.vmcs import BLOCKING_BY_MOV_SS, BLOCKING_BY_STI, INFO_VALID

VM_FAIL: Final = "VMfailValid"


def check_all(bench: Bench, expect: dict[str, Any]) -> None:
    """`MismatchError` at the first key of `expect` that `bench` does not fulfil."""
    if not expect:
        raise NotUnderstoodError("the case expects nothing")
    for key, expected in expect.items():
        check_key(bench, key, expected)


def check_key(bench: Bench, key: str, expected: Any) -> None:
    """One key."""
    match key:
        case "exits":
            check_exits(bench.exits, expected)
        case "pid":
            check_descriptor("pid", bench.descriptor, expected)
        case "lapic":
            _check_lapic(bench, expected)
        case "vapic_dword":
            _check_dwords(bench, expected)
        case "virr" | "visr":
            base = VIRR if key == "virr" else VISR
            bits = bench.vmcs.vapic.page.bits(base)
            check(key, vectors_in(bits), vectors_in(vector_set(expected)))
        case "in_root" | "if" | "recognized" | "recognised" | "blocking_by_sti":
            check(key, _switch(bench, key), switch(expected))
        case "blocking_by_mov_ss":
            check(key, _switch(bench, key), switch(expected))
        case "activity":
            if expected not in ACTIVITIES:
                raise NotUnderstoodError(f"unknown activity {expected!r}")
            check(key, bench.vmcs.guest.activity.name, ACTIVITIES[expected].name)
        case "vm_entry":
            got = VM_FAIL if bench.vm_entry_failed else "ok"
            check("; ".join(["vm_entry", *bench.vm_entry_failed]), got, expected)
        case _:
            check(key, _value(bench, key), expected)


def _switch(bench: Bench, key: str) -> bool:
    guest = bench.vmcs.guest
    match key:
        case "in_root":
            return bench.processor.in_root
        case "if":
            return guest.interrupt_flag
        case "blocking_by_sti":
            return guest.interruptibility & BLOCKING_BY_STI != 0
        case "blocking_by_mov_ss":
            return guest.interruptibility & BLOCKING_BY_MOV_SS != 0
        case _:
            return bench.vmcs.vapic.recognised


def _value(bench: Bench, key: str) -> Any:
    """A number, or a list of numbers in the order in which things happened."""
    vmcs, page = bench.vmcs, bench.vmcs.vapic.page
    match key:
        case "rvi":
            return vmcs.rvi if bench.processor.in_root else vmcs.vapic.rvi
        case "svi":
            return vmcs.svi if bench.processor.in_root else vmcs.vapic.svi
        case "vppr":
            return page.read32(VPPR) & 0xFF
        case "vtpr":
            return page.read32(VTPR) & 0xFF
        case "delivered":
            return bench.delivered
        case "reads":
            return bench.reads
        case "notifications_sent":
            return [sent.vector for sent in bench.cpu.sent]
        case "gp_faults":
            return bench.gp_faults
        case "pi_processings":
            return bench.pi_processings
        case "physical_eois":
            return bench.physical_eois + bench.cpu.physical_eois
        case "vm_instruction_error":
            return 7 if bench.vm_entry_failed else None
        case _:
            raise NotUnderstoodError(f"unknown key {key!r} in expect")


def check_exits(exits: list[Exit], expected: Any) -> None:
    """The exits in order; of each, the members that are listed."""
    if not isinstance(expected, list):
        raise NotUnderstoodError("exits is not a list")
    got_names = [exit_.reason.name for exit_ in exits]
    want_names = [_reason(entry).name for entry in expected]
    check("exits", got_names, want_names)
    for i, (exit_, entry) in enumerate(zip(exits, expected, strict=True)):
        _check_exit(f"exits[{i}]", exit_, entry)


def _reason(entry: Any) -> ExitReason:
    """The exit reason by name or code; both, if both stand there."""
    if not isinstance(entry, dict) or not {"reason", "code"} & set(entry):
        raise NotUnderstoodError(f"exit {entry!r} names no reason")
    try:
        if "reason" not in entry:
            return ExitReason(entry["code"])
        reason = ExitReason[entry["reason"]]
    except (KeyError, ValueError) as error:
        raise NotUnderstoodError(f"unknown exit reason in {entry!r}") from error
    if entry.get("code", reason) != reason:
        raise NotUnderstoodError(f"exit reason {reason.name} does not have code {entry['code']}")
    return reason


def _check_exit(name: str, exit_: Exit, entry: dict[str, Any]) -> None:
    known_keys(
        name, entry, ("reason", "code", "qualification", "interruption_info_valid", "vector")
    )
    valid = exit_.interruption_info & INFO_VALID != 0
    if "qualification" in entry:
        qualification = exit_.qualification
        if exit_.reason is ExitReason.APIC_ACCESS and entry["qualification"] < 0x1000:
            qualification &= 0xFFF  # without the access type in bits 15:12
        check(f"{name}.qualification", qualification, entry["qualification"])
    if "interruption_info_valid" in entry:
        check(f"{name}.interruption_info_valid", valid, switch(entry["interruption_info_valid"]))
    if "vector" in entry:
        got = exit_.interruption_info & 0xFF if valid else None
        check(f"{name}.vector", got, entry["vector"])


def check_descriptor(name: str, descriptor: bytearray, expected: Any) -> None:
    """A PI descriptor; only the listed members."""
    if not isinstance(expected, dict):
        raise NotUnderstoodError(f"{name} is not an object")
    control = pi_desc.unpack_control(pi_desc.read_control(descriptor))
    for member, value in expected.items():
        match member:
            case "pir":
                pir = vectors_in(pi_desc.read_pir(descriptor))
                check(f"{name}.pir", pir, vectors_in(vector_set(value)))
            case "on":
                check(f"{name}.on", control.on, switch(value))
            case "sn":
                check(f"{name}.sn", control.sn, switch(value))
            case "nv":
                check(f"{name}.nv", control.nv, value)
            case "ndst":
                check(f"{name}.ndst", control.ndst, value)
            case _:
                raise NotUnderstoodError(f"unknown key {member!r} in {name}")


def _check_lapic(bench: Bench, expected: Any) -> None:
    if not isinstance(expected, dict):
        raise NotUnderstoodError("lapic is not an object")
    for member, value in expected.items():
        match member:
            case "irr":
                check("lapic.irr", vectors_in(bench.lapic.irr), vectors_in(vector_set(value)))
            case "isr":
                check("lapic.isr", vectors_in(bench.lapic.isr), vectors_in(vector_set(value)))
            case "tpr":
                check("lapic.tpr", bench.lapic.tpr, value)
            case _:
                raise NotUnderstoodError(f"unknown key {member!r} in lapic")


def _check_dwords(bench: Bench, expected: Any) -> None:
    """{"offset": o, "value": v}, {"0x310": v}, [o, v], or a list of any of these."""
    for offset, value in _dwords(expected):
        if not 0 <= offset < 0x1000 or offset % 4:
            raise NotUnderstoodError(f"vapic_dword: {offset:#x} is not the offset of a dword")
        got = bench.vmcs.vapic.page.read32(offset)
        if got != value:
            raise MismatchError(f"vapic_dword {offset:#x}: expected {value:#x}, got {got:#x}")


def _dwords(expected: Any) -> list[tuple[int, int]]:
    match expected:
        case {"offset": offset, "value": value}:
            known_keys("vapic_dword", expected, ("offset", "value"))
            return [(number(offset), number(value))]
        case dict() if expected:
            return [(number(offset), number(value)) for offset, value in expected.items()]
        case [int(offset), int(value)]:
            return [(offset, value)]
        case list() if expected:
            return [pair for entry in expected for pair in _dwords(entry)]
        case _:
            raise NotUnderstoodError(f"vapic_dword {expected!r}")
