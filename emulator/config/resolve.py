"""From one cell's checked values to a `Cell`: what relates two values of a config.

Which vCPU stands on which pCPU, what interrupts what (`config/loads.py`), which expectations
apply.  Derived values are written back into the document, so that `pirlab config` shows them.
A value that is BROKEN has been reported; what depends on it is left unchecked, the rest is not.
Before: `config/shape.py`.  Next: `config/load.py` collects the cells.
"""

import dataclasses
from typing import Any, Final

from emulator.config.errors import Path, instead, spell
from emulator.config.hypervisor import check_timer, fill_hardware
from emulator.config.loads import resolve_loads
from emulator.config.model import (
    MAX_VCPUS_PER_PCPU,
    Cell,
    Expectation,
    Fabric,
    Order,
    Run,
    Vcpu,
    from_plain,
)
from emulator.config.schema import DEFAULT_GUEST, EXPERIMENT, kvm_key
from emulator.config.shape import BROKEN, Either, Items, Record, Shape, Table, check, wrong
from emulator.config.tree import PathError, Report, find
from emulator.config.yaml12 import Node
from emulator.kvm.params import Kvm

_KVM_FIELDS: Final = dataclasses.fields(Kvm)


def resolve(document: dict[str, Any], chosen: dict[str, Any], report: Report) -> Cell | None:
    """The cell, or None after reporting.  `document` is `check`'s result; its blanks are filled.

    `chosen` is the cell's place in the matrix.
    """
    vcpus = _vcpus(document, report)
    devices, loads = resolve_loads(document, vcpus, report)
    fill_hardware(document, loads, report)
    check_timer(document, vcpus, report)
    expect = _expect(document, report)
    if report.mistakes.found:
        return None
    run = document["run"]
    return Cell(
        name=document["name"],
        question=document["question"],
        set=chosen,
        pcpus=document["cluster"]["pcpus"],
        fabric=Fabric(document["cluster"]["fabric"]),
        vcpus=tuple(vcpus),
        devices=devices,
        loads=loads,
        kvm=from_plain(Kvm, {f.name: document["kvm"][kvm_key(f.name)] for f in _KVM_FIELDS}),
        run=Run(
            warmup_ns=run["warmup"],
            duration_ns=run["for"],
            repeat=run["repeat"],
            seed=run["seed"],
            watchdog_ns=run["watchdog"],
            drain_ns=run["drain"],
        ),
        expect=expect,
        order=Order(document["record"]["order"]),
    )


# -- vCPUs on pCPUs -------------------------------------------------------------------------------


def _vcpus(document: dict[str, Any], report: Report) -> list[Vcpu]:
    """Every vCPU that can be told; a VM whose number of vCPUs is BROKEN has none."""
    cluster, vms = document["cluster"], document["vms"]
    pcpus = BROKEN if cluster is BROKEN else cluster["pcpus"]
    result: list[Vcpu] = []
    sound = pcpus is not BROKEN  # whether every pin is known: only then can a pCPU be full
    for name, vm in () if vms is BROKEN else vms.items():
        if vm is BROKEN or vm["vcpus"] is BROKEN:
            sound = False
            continue
        before = len(report.mistakes.found)
        count = vm["vcpus"]
        floats = vm["pin"] == "float"
        pin = _per_vcpu(vm["pin"], ("vms", name, "pin"), count, report)
        guest = _per_vcpu(vm["guest"], ("vms", name, "guest"), count, report)
        for number, pcpu in pin.items():
            if pcpus is not BROKEN and not 0 <= pcpu < pcpus:
                report.add(
                    ("vms", name, "pin", number),
                    f"no such pCPU, got {pcpu}; allowed: {_upto(pcpus)} (cluster.pcpus: {pcpus})",
                )
        broken = vm["pin"] is BROKEN or (
            isinstance(vm["pin"], dict) and BROKEN in vm["pin"].values()
        )
        sound = sound and not broken and len(report.mistakes.found) == before
        for number in range(count):
            spread = len(result) % (1 if pcpus is BROKEN else pcpus)
            vcpu = Vcpu(
                index=len(result),
                vm=name,
                number=number,
                pcpu=pin.get(number, spread),
                guest=guest.get(number, DEFAULT_GUEST),
                floats=floats,
            )
            result.append(vcpu)
        if not floats:
            vm["pin"] = {vcpu.number: vcpu.pcpu for vcpu in result[-count:]}
        if isinstance(vm["guest"], dict):
            vm["guest"] = {vcpu.number: vcpu.guest for vcpu in result[-count:]}
    if sound:
        _check_crowding(result, report)
    return result


def _per_vcpu(given: Any, path: tuple[str, ...], count: int, report: Report) -> dict[int, Any]:
    """A mapping of vCPUs, those that do not exist reported; a word other than `spread` for all."""
    if not isinstance(given, dict):
        word = path[-1] == "guest" and given is not BROKEN
        return dict.fromkeys(range(count), given) if word else {}
    for number in given:
        if not 0 <= number < count:
            problem = f"no such vCPU, got {number}; allowed: {_upto(count)} (vcpus: {count})"
            report.add((*path, number), problem, at_key=True)
    return {n: value for n, value in given.items() if 0 <= n < count and value is not BROKEN}


def _upto(count: int) -> str:
    """`0..3`, or `0` if there is only that."""
    return f"0..{count - 1}" if count > 1 else "0"


def _check_crowding(vcpus: list[Vcpu], report: Report) -> None:
    """At most MAX_VCPUS_PER_PCPU on each pCPU, where there is such a limit."""
    limit = MAX_VCPUS_PER_PCPU
    if limit is None:
        return
    tenants: dict[int, list[str]] = {}
    for vcpu in vcpus:
        here = tenants.setdefault(vcpu.pcpu, [])
        here.append(vcpu.name)
        if len(here) == limit + 1:  # one more than fits is one mistake, not many
            report.add(
                ("vms", vcpu.vm, "pin", vcpu.number),
                f"{vcpu.name} would share pCPU {vcpu.pcpu} with {', '.join(here[:-1])}; "
                f"allowed: {limit} vCPU on each pCPU",
            )


# -- expectations ---------------------------------------------------------------------------------


def _expect(document: dict[str, Any], report: Report) -> tuple[Expectation, ...]:
    """The expectations whose `when` this cell meets."""
    result = []
    for i, entry in enumerate(() if document["expect"] is BROKEN else document["expect"]):
        if entry is BROKEN:
            continue
        told = [key for key in ("check", "violates") if entry[key] is not None]
        if len(told) != 1:
            report.add(("expect", i), "must have one of check and violates")
        node = find(report.tree, ("expect", i)).value
        when = node.get("when") if isinstance(node, dict) else None
        met = when is None or meets(document, when, ("expect", i, "when"), report)
        if met and BROKEN not in entry.values():
            result.append(Expectation(check=entry["check"], violates=entry["violates"]))
    return tuple(result)


def meets(document: dict[str, Any], wanted: Node, path: Path, report: Report) -> bool:
    """Whether the document has all of a mapping's values at their dotted paths.

    Values are compared as what they mean: `2000/s` is `2k/s`.  Wrong ones are reported.
    """
    if not isinstance(wanted.value, dict):
        wrong(wanted, path, report.mistakes, "must be a mapping of dotted paths to values")
        return False
    held = True
    for key, node in wanted.value.items():
        if str(key).startswith("x-"):
            continue
        try:
            shape, value = _look_up(EXPERIMENT, document, str(key).split("."), 0)
        except PathError as error:
            report.mistakes.add(node.key, f"{report.spell(path)}: {error}")
            continue
        if value is BROKEN:
            held = False
        else:
            held = check(shape, node, (*path, key), report.mistakes) == value and held
    return held


def _look_up(shape: Shape, value: Any, parts: list[str], at: int) -> tuple[Shape, Any]:
    """The shape and the value at a dotted path.  PathError if there is no such key."""
    if at == len(parts) or value is BROKEN:
        return shape, value
    part = parts[at]
    match shape:
        case Either(_, table):
            return _look_up(table, value, parts, at)
        case Record(fields):
            below = {name: (field.shape, value[name]) for name, field in fields.items()}
        case Table(_, item) if isinstance(value, dict):
            below = {str(key): (item, entry) for key, entry in value.items()}
        case Items(item):
            below = {_element(entry, i): (item, entry) for i, entry in enumerate(value)}
        case _:
            raise PathError(f"{spell(tuple(parts[:at]))}: has nothing below it, so no {part!r}")
    if part not in below:
        wrong_part = spell(tuple(parts[: at + 1]))
        raise PathError(f"{wrong_part}: unknown key; {instead(part, list(below))}")
    return _look_up(*below[part], parts, at + 1)


def _element(entry: Any, index: int) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else str(index)
