"""Loads: what `from`, `to`, `via`, `on` and the keys of devices mean among a cell's vCPUs.

A load of the config becomes one `Load` for each of its sources.  What a source does with its
vector is decided by where it comes from and where it goes:

    from      to       via, the default first
    device    vCPUs    host-irq, vt-d
    vCPU      self     tsc-deadline, icr, self-ipi
    vCPU      vCPUs    icr

A pattern never means the source itself: `from: web/*, to: web/*` is everyone to the others.
Before: `config/resolve.py` has placed the vCPUs.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from emulator.config.errors import Path, allowed, instead
from emulator.config.model import Arrival, Load, Vcpu, Via
from emulator.config.schema import DEVICE, EACH_VCPU, NAME
from emulator.config.shape import BROKEN
from emulator.config.tree import Report

_PATTERN: Final = re.compile(r"[*?\[]")

Source = int | str  # a vCPU, or a device by its name


@dataclass(frozen=True, slots=True)
class _Around:
    """What a load is checked against."""

    document: dict[str, Any]
    vcpus: list[Vcpu]
    report: Report

    def broken(self, vm: str | None = None) -> bool:
        """Whether that VM's vCPUs, or any VM's, are not known because its entry is wrong."""
        vms = self.document["vms"]
        if vms is BROKEN:
            return True
        entries = vms.values() if vm is None else [vms[vm]] if vm in vms else []
        return any(entry is BROKEN or entry["vcpus"] is BROKEN for entry in entries)


def resolve_loads(
    document: dict[str, Any], vcpus: list[Vcpu], report: Report
) -> tuple[tuple[str, ...], tuple[Load, ...]]:
    """The devices and the loads.  Fills in `via` and `on` where the document leaves them out."""
    around = _Around(document, vcpus, report)
    devices: dict[str, int] = {}
    timers: dict[int, str] = {}
    names: set[str] = set()
    loads: list[Load] = []
    for i, load in enumerate(() if document["load"] is BROKEN else document["load"]):
        if load is BROKEN:
            continue
        if load["name"] is not BROKEN and load["name"] in names:
            report.add(("load", i, "name"), f"must be unique, got {load['name']!r} again")
        names.add(load["name"])
        for source, targets in _pairs(load, i, around):
            if isinstance(source, str):
                devices.setdefault(source, len(devices))
            elif load["via"] == Via.TSC_DEADLINE.value:
                _check_timer(timers, load["name"], source, (("load", i, "from"), around))
            loads.append(
                Load(
                    index=len(loads),
                    name=load["name"],
                    parent=i,
                    vcpu=source if isinstance(source, int) else None,
                    device=devices[source] if isinstance(source, str) else None,
                    targets=targets,
                    vector=load["vector"],
                    rate_per_s=load["rate"],
                    via=Via(load["via"]),
                    on_pcpus=tuple(_pcpu(on) for on in load["on"] or ()),
                    urgent=bool(load["urgent"]),
                    switch_ns=load["switch"],
                    assigned_at_ns=load["assigned_at"] or 0,
                    arrival=Arrival(load["arrival"]),
                    count=load["count"],
                )
            )
    return tuple(devices), tuple(loads)


def _pcpu(on: str) -> int:
    return int(on.removeprefix("pcpu/"))


def _check_timer(timers: dict[int, str], name: str, vcpu: int, at: tuple[Path, _Around]) -> None:
    """A vCPU has one TSC deadline."""
    path, around = at
    first = timers.setdefault(vcpu, name)
    if first != name:
        who = around.vcpus[vcpu].name
        around.report.add(path, f"the TSC deadline of {who} is taken by {first!r}; use via: icr")


def _pairs(load: dict[str, Any], i: int, around: _Around) -> list[tuple[Source, tuple[int, ...]]]:
    """Each source with its targets; nothing if the load has a mistake."""
    before = len(around.report.mistakes.found)
    origin, to = load["from"], load["to"]
    if BROKEN in (origin, to):
        return []
    sources = _sources(origin, ("load", i, "from"), around)
    to_self = to == "self" or (to == origin and not _is_pattern(to))
    targets = [] if to_self else _named(to, ("load", i, "to"), around, ["self"])
    if to_self and origin.startswith(DEVICE + "/"):
        around.report.add(("load", i, "to"), "a device has no self; name a vCPU, such as db/0")
    _fill_via(load, i, to_self, around)
    _check_device_keys(load, i, around)
    _fill_on(load, i, targets, around)
    if len(around.report.mistakes.found) > before or BROKEN in load.values() or around.broken():
        return []
    if to_self:
        return [(source, (source,)) for source in sources if isinstance(source, int)]
    pairs = [(source, tuple(t for t in targets if t != source)) for source in sources]
    pairs = [(source, others) for source, others in pairs if others]
    if not pairs:
        around.report.add(("load", i, "to"), "means the source itself only; write to: self")
    return pairs


def _is_pattern(text: str) -> bool:
    return text == EACH_VCPU or _PATTERN.search(text) is not None


def _sources(text: str, path: Path, around: _Around) -> list[Source]:
    """What `from` means."""
    if text.startswith(DEVICE + "/"):
        name = text.removeprefix(DEVICE + "/")
        if not re.fullmatch(NAME.pattern, name):
            around.report.add(path, f"device/NAME must have {NAME.what}, got {text!r}")
        return [name]
    return list(_named(text, path, around, [EACH_VCPU, "device/NAME"]))


def _named(text: str, path: Path, around: _Around, words: list[str]) -> list[int]:
    """The vCPUs that a name or a pattern means; `words` is what else could stand there."""
    names = {vcpu.name: vcpu.index for vcpu in around.vcpus}
    pattern = "*" if text == EACH_VCPU else text
    if _is_pattern(text):
        found = [index for name, index in names.items() if fnmatchcase(name, pattern)]
        if not found and not around.broken():
            around.report.add(path, f"matches no vCPU, got {text!r}; {allowed([*names, *words])}")
        return found
    if text in names:
        return [names[text]]
    if not around.broken(text.partition("/")[0]):
        around.report.add(path, f"no such vCPU, got {text!r}; {instead(text, [*names, *words])}")
    return []


def _fill_via(load: dict[str, Any], i: int, to_self: bool, around: _Around) -> None:
    """The table of the module's docstring."""
    fitting: tuple[Via, ...]
    if load["from"].startswith(DEVICE + "/"):
        fitting = (Via.HOST_IRQ, Via.VT_D)
    elif to_self:
        fitting = (Via.TSC_DEADLINE, Via.ICR, Via.SELF_IPI)
    else:
        fitting = (Via.ICR,)
    words = [via.value for via in fitting]
    if load["via"] is None:
        load["via"] = words[0]
    elif load["via"] is not BROKEN and load["via"] not in words:
        pair = f"from {load['from']} to {load['to']}"
        problem = f"does not go {pair}, got {load['via']!r}; {allowed(words)}"
        around.report.add(("load", i, "via"), problem)


def _fill_on(load: dict[str, Any], i: int, targets: list[int], around: _Around) -> None:
    """`on`: the pCPU a device interrupts, by default the first target's."""
    path = ("load", i, "on")
    on, cluster = load["on"], around.document["cluster"]
    if on is BROKEN or load["via"] is BROKEN:
        return
    if load["via"] != Via.HOST_IRQ.value and load["switch"] is None:
        if on is not None:
            problem = f"is for via: host-irq, or with switch, got via: {load['via']}"
            around.report.add(path, problem)
    elif on is None:
        load["on"] = [f"pcpu/{around.vcpus[targets[0]].pcpu}"] if targets else None
    elif cluster is not BROKEN and cluster["pcpus"] is not BROKEN:
        pcpus = [f"pcpu/{n}" for n in range(cluster["pcpus"])]
        for wrong in [each for each in on if _pcpu(each) >= len(pcpus)]:
            around.report.add(path, f"no such pCPU, got {wrong!r}; {allowed(pcpus)}")


def _check_device_keys(load: dict[str, Any], i: int, around: _Around) -> None:
    """`urgent` and `switch` are of a posted entry, `assigned_at` is of any device."""
    via = load["via"]
    if via is BROKEN:
        return
    for key in ("urgent", "switch"):
        if load[key] is not None and via != Via.VT_D.value:
            around.report.add(("load", i, key), f"is for via: vt-d, got via: {via}")
    if load["assigned_at"] is not None and not load["from"].startswith(DEVICE + "/"):
        problem = f"is for a device, got from: {load['from']}"
        around.report.add(("load", i, "assigned_at"), problem)
