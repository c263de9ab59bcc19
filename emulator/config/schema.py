"""The keys of a config: the one table from which checking, messages and `pirlab schema` come.

To add a key, add a `Field` here and its meaning in `config/resolve.py`; to add an axis of the
hypervisor, add a field to `kvm.params.Kvm` and nothing here; guest programs and violations are
lists in `config/model.py`.  Next: `config/shape.py` checks a file against `EXPERIMENT`.
"""

import dataclasses
import typing
from enum import Enum
from typing import Any, Final

from emulator.config import quantity
from emulator.config.model import (
    GUEST_PROGRAMS,
    PCPUS_MAX,
    VCPUS_MAX,
    VIOLATIONS,
    Arrival,
    Fabric,
    Order,
    Via,
)
from emulator.config.shape import (
    EMPTY,
    REQUIRED,
    Check,
    Choice,
    Duration,
    Either,
    Field,
    Flag,
    Integer,
    Items,
    Number,
    OneOrMore,
    Opaque,
    Rate,
    Record,
    Shape,
    Table,
    Text,
)
from emulator.hardware.vectors import FIRST_LEGAL_VECTOR
from emulator.kvm.params import Kvm
from emulator.kvm.presets import PRESETS

FORMAT: Final = 1
AXIS_ROOTS: Final = ("cluster", "vms", "load", "kvm", "run")  # what a matrix may vary
DEFAULT_GUEST: Final = "hlt-loop"
EACH_VCPU: Final = "each-vcpu"
DEVICE: Final = "device"

NAME: Final = Text("a name of letters, digits, - and _", r"(?!device$)[A-Za-z][A-Za-z0-9_-]*")
_MS: Final = 1_000_000
_S: Final = 1_000_000_000


def words(kind: type[Enum]) -> Choice:
    """The values of an enum, as the words of a config."""
    return Choice(tuple(member.value for member in kind))


def kvm_key(field_name: str) -> str:
    """How a config writes a field of `Kvm`: durations carry their unit in the value."""
    return field_name.removesuffix("_ns")


def _kvm_record() -> Record:
    """The axes of `Kvm`, by the type of each field."""
    hints = typing.get_type_hints(Kvm)
    doc = "a kernel's axes, set together; keys that stand beside it win"
    fields = {"preset": Field(Choice(tuple(PRESETS)), None, doc)}
    for field in dataclasses.fields(Kvm):
        shape, default = _axis(field.name, hints[field.name], field.default)
        fields[kvm_key(field.name)] = Field(shape, default, _doc(hints[field.name]))
    return Record(fields)


def _axis(name: str, hint: Any, default: Any) -> tuple[Shape, Any]:
    """An axis' shape, and its default as a config's plain value."""
    if typing.get_origin(hint) is frozenset:
        (kind,) = typing.get_args(hint)
        # A set says "none" by being empty.
        names = tuple(member.value for member in kind if member.value != "none")
        return Items(Choice(names)), sorted(member.value for member in default)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return words(hint), default.value
    if name.endswith("_ns"):
        return Duration(), default
    assert hint in (bool, int, float), f"Kvm.{name}: no config shape for {hint}"
    shapes: dict[Any, Shape] = {bool: Flag(), int: Integer(low=0), float: Number()}
    return shapes[hint], default


def _doc(hint: Any) -> str:
    """The first sentence of an axis' enum: an editor shows it."""
    kind = (typing.get_args(hint) or (hint,))[0]
    if isinstance(kind, type) and issubclass(kind, Enum) and kind.__doc__:
        return kind.__doc__.splitlines()[0]
    return ""


_VM: Final = Record(
    {
        "vcpus": Field(Integer(1, VCPUS_MAX), REQUIRED, "how many virtual CPUs"),
        "pin": Field(
            Either(Choice(("spread", "float")), Table(Integer(), Integer())),
            None,
            "vCPU: pCPU; those not named, and `spread`, go round: the i-th vCPU of all VMs "
            "to pCPU i mod pcpus",
        ),
        "guest": Field(
            Either(Choice(GUEST_PROGRAMS), Table(Integer(), Choice(GUEST_PROGRAMS))),
            DEFAULT_GUEST,
            "the guest program, or vCPU: program",
        ),
    }
)
_LOAD: Final = Record(
    {
        "name": Field(NAME, REQUIRED, "a name for the summary and for dotted paths"),
        "from": Field(
            Text("each-vcpu, a vCPU such as db/0, a pattern such as web/*, or device/NAME", r"\S+"),
            REQUIRED,
            "each-vcpu, a vCPU such as db/0, a pattern such as web/*, or device/NAME",
        ),
        "to": Field(
            Text("self, a vCPU such as db/0, or a pattern such as web/*", r"\S+"),
            REQUIRED,
            "self, a vCPU such as db/0, or a pattern such as web/* (its vCPUs in turn)",
        ),
        "vector": Field(
            Integer(FIRST_LEGAL_VECTOR, 0xFF, hexadecimal=True), REQUIRED, "guest vector"
        ),
        "rate": Field(Rate(), REQUIRED, "of each source, such as 2k/s"),
        "via": Field(
            words(Via),
            None,
            "how the vector comes to be posted; by default tsc-deadline to self, icr between "
            "vCPUs, host-irq from a device",
        ),
        "on": Field(
            OneOrMore(Text("a pCPU such as pcpu/0", r"pcpu/[0-9]{1,3}")),
            None,
            "host-irq: the pCPU that the device interrupts, or several in turn; by default the "
            "target's",
        ),
        "urgent": Field(Flag(), None, "vt-d: the entry's URG bit, which overrides SN"),
        "switch": Field(
            Duration(positive=True),
            None,
            "vt-d: how long the entry stays in posted format, then so long remapped, and so on",
        ),
        "assigned_at": Field(
            Duration(), None, "of a device: when it is given to the VM, from the load's start"
        ),
        "arrival": Field(words(Arrival), Arrival.EVEN.value, "the gaps between due times"),
        "count": Field(Integer(low=1), None, "stop after so many"),
    }
)
_RUN: Final = Record(
    {
        "warmup": Field(Duration(), 500 * _MS, "load that is not measured, first"),
        "for": Field(Duration(positive=True), 5 * _S, "the measured part"),
        "repeat": Field(Integer(1, 1000), 1, "runs of each cell"),
        "seed": Field(Integer(0, 2**32 - 1), 42, "of every random choice"),
        "watchdog": Field(
            Duration(positive=True), 2 * _S, "a vCPU asleep so long on announced work is lost"
        ),
        "drain": Field(Duration(), 2 * _S, "how long the run may take to settle at its end"),
    }
)
_ANY_PATH: Final[dict[str, Any]] = {"type": "object"}
_WHEN: Final = Opaque(tuple(_ANY_PATH.items()))
EXPECTATION: Final = Record(
    {
        "check": Field(Check(), None, "a comparison of values of the run's summary"),
        "violates": Field(Choice(VIOLATIONS), None, "a violation that must come"),
        "when": Field(_WHEN, {}, "dotted path: value; only for cells that have these"),
    }
)
EXPERIMENT: Final = Record(
    {
        "pirlab": Field(Integer(FORMAT, FORMAT), REQUIRED, f"the format's version, {FORMAT}"),
        "name": Field(
            Text("a name of a-z, 0-9 and -", r"[a-z0-9][a-z0-9-]{0,63}"),
            REQUIRED,
            "of the experiment: a-z, 0-9 and -",
        ),
        "question": Field(Text("a text"), "", "what the experiment answers"),
        "extends": Field(Text("a file name"), None, "a config to start from, relative to this one"),
        "cluster": Field(
            Record(
                {
                    "pcpus": Field(
                        Integer(1, PCPUS_MAX), REQUIRED, "physical CPUs, one process each"
                    ),
                    "fabric": Field(words(Fabric), Fabric.IPC.value, "what carries notifications"),
                }
            ),
            REQUIRED,
            "the machine, such as {pcpus: 2}",
        ),
        "vms": Field(Table(NAME, _VM, nonempty=True), REQUIRED, "NAME: {vcpus: N, ...}"),
        "load": Field(Items(_LOAD), [], "what interrupts whom, how often"),
        "kvm": Field(_kvm_record(), EMPTY, "the hypervisor's axes"),
        "matrix": Field(
            Opaque(
                (
                    ("type", "object"),
                    ("additionalProperties", {"type": "array", "minItems": 1}),
                )
            ),
            {},
            "dotted path: list of values; one cell for each combination",
        ),
        "exclude": Field(
            Opaque((("type", "array"), ("items", _ANY_PATH))),
            [],
            "cells to leave out: those that have all of an entry's values",
        ),
        "run": Field(_RUN, EMPTY, "how long, how often"),
        "record": Field(
            Record(
                {
                    "order": Field(
                        words(Order),
                        Order.NONE.value,
                        "total: put every step on record with its place in one order of all "
                        "processes, for `pirlab check RUN`; the run is slower for it",
                    )
                }
            ),
            EMPTY,
            "what is put on record besides events",
        ),
        "expect": Field(Items(EXPECTATION), [], "what must come out"),
    }
)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a config, for editors.  Looser than `load_experiment`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pirlab experiment",
        **_json(EXPERIMENT),
        "required": ["pirlab"],
    }


def _json(shape: Shape) -> dict[str, Any]:
    """One shape."""
    match shape:
        case Integer(low, high):
            bounds = {"minimum": low, "maximum": high}
            return {"type": "integer"} | {k: v for k, v in bounds.items() if v is not None}
        case Duration():
            return {"type": "string", "pattern": f"^{quantity.DURATION_PATTERN}$"}
        case Rate():
            return {"type": "string", "pattern": f"^{quantity.RATE_PATTERN}$"}
        case Flag():
            return {"type": "boolean"}
        case Number():
            return {"type": "number"}
        case Text(_, pattern):
            return {"type": "string"} | ({"pattern": f"^{pattern}$"} if pattern else {})
        case Choice(values):
            return {"enum": [*values, *(int(v) for v in values if v.isdecimal())]}
        case Check():
            return {"type": "string"}
        case Opaque(json):
            return dict(json)
        case Items(item):
            required = _required(item) if isinstance(item, Record) else {}
            return {"type": "array", "items": _json(item) | required}
        case Either(word, table):
            return {"anyOf": [_json(word), _json(table)]}
        case OneOrMore(item):
            return {"anyOf": [_json(item), {"type": "array", "minItems": 1, "items": _json(item)}]}
        case Table(key, value):
            names = r"^[0-9]+$" if isinstance(key, Integer) else f"^{key.pattern}$"
            return {
                "type": "object",
                "patternProperties": {"^x-": True, names: _json(value)},
                "additionalProperties": False,
            }
        case Record(fields):
            return _json_record(fields)


def _json_record(fields: dict[str, Field]) -> dict[str, Any]:
    properties = {}
    for name, field in fields.items():
        properties[name] = _json(field.shape) | ({"description": field.doc} if field.doc else {})
        if field.default not in (REQUIRED, EMPTY, None):
            properties[name]["default"] = _shown(field)
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": {"^x-": True},
        "additionalProperties": False,
    }


def _required(shape: Record) -> dict[str, Any]:
    """Of a list's element.  Elsewhere a file may leave to another what it extends."""
    names = [name for name, field in shape.fields.items() if field.default is REQUIRED]
    return {"required": names} if names else {}


def _shown(field: Field) -> Any:
    """A default with its unit."""
    if isinstance(field.shape, Duration):
        return quantity.format_duration(field.default)
    return field.default
