"""The resolved experiment: what a config means once every default, unit and pattern is resolved.

Plain frozen data, read by every process of a run: this module imports neither yaml nor anything
that does.  Times are ns, rates are per second, vCPUs and pCPUs are numbers from 0.  Everything
here has been checked by `config/resolve.py` and is trusted everywhere else.
Before: `config/load.py` made it from a file.  Next: `machine/cluster.py` runs one `Cell`.
"""

import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, Final, TypeVar

from emulator.kvm.params import Kvm

# The three lists below are all there is to extend: the shapes, the checks, their messages and the
# JSON Schema follow them.
GUEST_PROGRAMS: Final = (
    "spin",
    "hlt-loop",
    "ping-pong",
    "ring",
    "ipi",
    "ipi-halt",
    "self-ipi-halt",
    "tscdeadline-immed",
)
VIOLATIONS: Final = (
    "lost-wakeup",
    "lost-interrupt",
    "posted-harvested",
    "harvested-delivered",
    "delivered-eoi",
    "post-decided",
    "sent-arrived",
    "arrived-accepted",
)

PCPUS_MAX: Final = 256
VCPUS_MAX: Final = 256  # of one VM
MAX_VCPUS_PER_PCPU: Final[int | None] = None  # None: as many as one likes

T = TypeVar("T")


class Fabric(Enum):
    """The transport of notification vectors between pCPUs."""

    IPC = "ipc"
    TCP = "tcp"


class Via(Enum):
    """How a load's vector comes to be posted."""

    TSC_DEADLINE = "tsc-deadline"  # the vCPU's own timer: MSR 0x6e0, one per vCPU
    ICR = "icr"  # a guest's ICR write: an IPI to another vCPU, or to itself
    SELF_IPI = "self-ipi"  # x2APIC self-IPI register, MSR 0x83f
    HOST_IRQ = "host-irq"  # a device interrupts a pCPU, and the host's handler posts
    VT_D = "vt-d"  # a device's interrupt meets a remapping entry in posted format


class Arrival(Enum):
    """The gaps between two due times of one load."""

    EVEN = "even"  # 1/rate
    POISSON = "poisson"  # exponential with mean 1/rate


class Order(Enum):
    """Which order of all processes' steps a run puts on record, for `pirlab check RUN`."""

    NONE = "none"
    TOTAL = "total"  # a shared ticket before and after each step: see `machine/ordered.py`


@dataclass(frozen=True, slots=True, kw_only=True)
class Vcpu:
    """One vCPU, and the pCPU it is pinned to."""

    index: int  # over all VMs, in the order of the file: `vcpu` of events and of `Cpu`
    vm: str
    number: int  # within its VM
    pcpu: int
    guest: str  # one of GUEST_PROGRAMS
    floats: bool = False  # it may move to any pCPU; `pcpu` is where it starts

    @property
    def name(self) -> str:
        """As a config writes it: `db/0`."""
        return f"{self.vm}/{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One source of interrupts.  A config's load with a pattern in `from` becomes several.

    Exactly one of `vcpu` and `device` is set.  `targets` holds one vCPU for TSC_DEADLINE and
    SELF_IPI, and it is `vcpu` itself.
    """

    index: int  # among `Cell.loads`; events carry 1 + index
    name: str  # of the config's load: the key of the summary's `loads`
    parent: int  # its place in the config's list
    vcpu: int | None  # the source, an index into `Cell.vcpus`
    device: int | None  # the source, an index into `Cell.devices`
    targets: tuple[int, ...]  # indexes into `Cell.vcpus`, taken in turn; never empty
    vector: int  # 0x10..0xff
    rate_per_s: float  # of this source alone; > 0
    via: Via
    on_pcpus: tuple[int, ...]  # the pCPUs that a device in remapped mode interrupts, in turn
    urgent: bool  # VT_D: the remapping entry's URG bit
    switch_ns: int | None  # VT_D: how long the entry keeps each format, None = posted for ever
    assigned_at_ns: int  # of a device: when the VM gets it, from the load's start; 0 = before
    arrival: Arrival
    count: int | None  # stop after so many due times (warm-up included), None = no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How long, how often, and when to give up."""

    warmup_ns: int
    duration_ns: int  # `for:` in the file; > 0, the measured part, after the warm-up
    repeat: int
    seed: int
    watchdog_ns: int  # a vCPU that sleeps so long on announced work has lost a wake-up
    drain_ns: int  # how long a run may take to settle after the load has stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """One claim about a run: a `check` that holds, or a violation that comes.  One is None."""

    check: str | None  # an expression of `config/expect.py`
    violates: str | None  # one of VIOLATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run, fully resolved: a point of the matrix, or the whole experiment if there is none."""

    name: str  # the experiment's
    question: str
    set: dict[str, Any] = field(
        default_factory=dict
    )  # dotted path: value as written; {} = no matrix
    pcpus: int
    fabric: Fabric
    vcpus: tuple[Vcpu, ...]  # vcpus[i].index == i
    devices: tuple[str, ...]  # names, in the order in which loads first name them
    loads: tuple[Load, ...]  # loads[i].index == i
    kvm: Kvm
    run: Run
    expect: tuple[Expectation, ...]  # those whose `when` this cell meets
    order: Order = Order.NONE

    @property
    def housekeeping(self) -> int | None:
        """The pCPU that counts exitless timers: the first that no vCPU runs on.

        None if there is none, or nothing for it to count.
        """
        taken = {vcpu.pcpu for vcpu in self.vcpus}
        floating = any(vcpu.floats for vcpu in self.vcpus)
        if not self.kvm.exitless_timer or floating:
            return None
        return next((pcpu for pcpu in range(self.pcpus) if pcpu not in taken), None)

    @property
    def label(self) -> str:
        """The cell's place in the matrix in words, empty if there is no matrix."""
        return ", ".join(f"{path}={value}" for path, value in self.set.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A whole config: one cell, or one for each point of its matrix."""

    name: str
    question: str
    matrix: bool  # False: exactly one cell, with an empty `set`
    cells: tuple[Cell, ...]  # never empty
    # Where it came from: no part of what it means, so no part of equality.
    path: str = field(compare=False)
    source: str = field(compare=False)  # the file's text
    base_source: str | None = field(compare=False)  # the text of the file it extends
    overrides: tuple[str, ...] = field(compare=False)
    document: dict[str, Any] = field(compare=False, repr=False)  # what `resolved_yaml` writes


def to_plain(value: Any) -> Any:
    """A dataclass of this module (or `Kvm`) as dicts, lists, strings and numbers, for msgpack."""
    match value:
        case Enum():
            return value.value
        case tuple() | list():
            return [to_plain(item) for item in value]
        case frozenset():
            return sorted(to_plain(item) for item in value)
        case dict():
            return {key: to_plain(item) for key, item in value.items()}
    if is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    return value


def from_plain(kind: type[T], plain: Any) -> T:
    """The inverse of `to_plain`: `from_plain(Cell, to_plain(cell)) == cell`.

    KeyError or ValueError if `plain` was not made by `to_plain` of the same version.
    """
    result = _decode(kind, plain)
    assert isinstance(result, kind)
    return result


def _decode(kind: Any, plain: Any) -> Any:
    """One value, by its annotation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: _decode(hints[f.name], plain[f.name]) for f in fields(kind)})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(plain)
    if origin is tuple or origin is frozenset:
        return origin(_decode(arguments[0], item) for item in plain)
    if origin is types.UnionType:
        return None if plain is None else _decode(arguments[0], plain)
    return plain
