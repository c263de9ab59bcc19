"""What the records do not say about a run: names, loads, the floor, the state at the end.

The launcher fills `RunFacts` when the run is over; everything here is data, nothing is decided.
Two files of the run directory hold it, so that a run can be analysed again elsewhere and later:
`facts.json` and, for the per-pCPU statistics and the final state, `counters.json`.
Next: `summary`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from emulator.events import DEVICE_BASE, LAUNCHER, NO_VCPU

FACTS_FILE: Final = "facts.json"
COUNTERS_FILE: Final = "counters.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFacts:
    """One load, as records name it: `load` = 1 + its index in `RunFacts.loads`."""

    name: str
    parent: str  # the name in the config; one `from: each-vcpu` makes several loads
    rate_wanted_per_s: float | None  # None: as fast as it goes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """One run.  Times: CLOCK_MONOTONIC in ns, except where a name says otherwise."""

    name: str
    rule: str
    seed: int
    seconds: float  # the measured part, as long as it really was
    status: str  # "complete" | "interrupted" | "died"
    vcpus: tuple[str, ...]
    run_dir: str = ""
    question: str = ""
    host: Mapping[str, Any] = field(default_factory=dict)
    pcpus: tuple[str, ...] = ()
    loads: tuple[LoadFacts, ...] = ()
    counters: Mapping[str, Any] = field(default_factory=dict)
    floor_ns: tuple[int, ...] = ()  # the bare transport, one way, between this run's processes
    measure_from_ns: int = 0  # [from, to): latencies of what was posted then; 0, 0 = everything
    measure_to_ns: int = 0
    dropped: int = 0  # records that did not fit into the rings
    started_s: float = 0.0  # seconds since the epoch at measure_from_ns
    cell: Mapping[str, Any] = field(default_factory=dict)  # what this cell of a matrix sets
    expect: tuple[Mapping[str, Any], ...] = ()  # {check, held, value}
    violations: tuple[Mapping[str, Any], ...] = ()  # found by the launcher

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RunFacts":
        """The inverse of `to_dict`.  Unknown keys are an error (TypeError)."""
        known = dict(data)
        known["loads"] = tuple(LoadFacts(**load) for load in known.get("loads", ()))
        for name in ("vcpus", "pcpus", "floor_ns", "expect", "violations"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)

    def vcpu_name(self, vcpu: int) -> str:
        if vcpu == NO_VCPU:
            return "-"
        return self.vcpus[vcpu] if vcpu < len(self.vcpus) else f"vcpu/{vcpu}"

    def pcpu_name(self, pcpu: int) -> str:
        if pcpu == LAUNCHER:
            return "launcher"
        if pcpu >= DEVICE_BASE:
            return f"device/{pcpu - DEVICE_BASE}"
        return self.pcpus[pcpu] if pcpu < len(self.pcpus) else f"pcpu/{pcpu}"


def write_facts(run_dir: Path | str, facts: RunFacts) -> None:
    """Save facts and counters into the run directory."""
    data = facts.to_dict()
    counters = data.pop("counters")
    for name, content in ((FACTS_FILE, data), (COUNTERS_FILE, counters)):
        Path(run_dir, name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_facts(run_dir: Path | str) -> RunFacts:
    """The facts of a saved run.  Raises OSError if the directory holds none."""
    data = json.loads(Path(run_dir, FACTS_FILE).read_text(encoding="utf-8"))
    counters = Path(run_dir, COUNTERS_FILE)
    if counters.exists():  # a run that died may have left none: then the account is not checked
        data["counters"] = json.loads(counters.read_text(encoding="utf-8"))
    return RunFacts.from_dict(data)
