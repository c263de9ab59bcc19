"""The kinds of value a config is made of: how each is checked, written back and shown to editors.

A shape is data; three functions read it: `check` (a YAML node to a plain value, every mistake
reported), `render` (the plain value to what YAML shows) and `json_schema`.  Shapes look at one
value at a time; what relates two values is in `config/resolve.py`.
Before: `config/yaml12.py`.  The shapes of a config's keys stand in `config/schema.py`.
"""

import copy
import math
import re
from dataclasses import dataclass
from typing import Any, Final

from emulator.config import quantity
from emulator.config.errors import Mistakes, Path, allowed, got, instead, spell
from emulator.config.expect import CheckError, parse_check
from emulator.config.yaml12 import Hex, Node


class _Sentinel:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Sentinel":
        return self


REQUIRED: Final = _Sentinel("REQUIRED")
EMPTY: Final = _Sentinel("EMPTY")  # the default of a record whose fields all have one
BROKEN: Final = _Sentinel("BROKEN")  # the plain value of what has been reported


@dataclass(frozen=True, slots=True)
class Integer:
    """Bounds of None are checked where they are known, in `resolve`."""

    low: int | None = None
    high: int | None = None
    hexadecimal: bool = False


@dataclass(frozen=True, slots=True)
class Duration:
    """ns."""

    positive: bool = False


@dataclass(frozen=True, slots=True)
class Rate:
    """Per second, above 0."""


@dataclass(frozen=True, slots=True)
class Flag:
    """`true` or `false`."""


@dataclass(frozen=True, slots=True)
class Number:
    """A float, of an axis that has no unit."""


@dataclass(frozen=True, slots=True)
class Text:
    """A string that matches a pattern; `what` names it in messages."""

    what: str
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words.  A word such as `2017`, which YAML takes for a number, needs no quotes."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """An expression of `config/expect.py`."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Checked elsewhere, by its dotted paths: `matrix`, `exclude`, `when`.  Kept as written."""

    json: "tuple[tuple[str, Any], ...]"


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    item: "Shape"


@dataclass(frozen=True, slots=True)
class OneOrMore:
    """A value, or a list of several.  The plain value is a list."""

    item: Text


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping whose keys are the user's."""

    key: "Text | Integer"
    value: "Shape"
    nonempty: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """A key of a record.  A default of None is derived from other values, in `resolve`."""

    shape: "Shape"
    default: Any
    doc: str


@dataclass(frozen=True, slots=True)
class Record:
    """A mapping whose keys are ours."""

    fields: dict[str, Field]


@dataclass(frozen=True, slots=True)
class Either:
    """A word, or a mapping that says more."""

    word: Choice
    table: Table


Shape = (
    Integer
    | Duration
    | Rate
    | Flag
    | Number
    | Text
    | Choice
    | Check
    | Opaque
    | Items
    | OneOrMore
    | Table
    | Record
    | Either
)
_COLLECTIONS = (Opaque, Items, Table, Record)


def check(shape: Shape, node: Node, path: Path, mistakes: Mistakes) -> Any:
    """The node's plain value with its units resolved, or BROKEN after reporting why."""
    match shape:
        case Record():
            return _check_record(shape, node, path, mistakes)
        case Table():
            return _check_table(shape, node, path, mistakes)
        case Items():
            return _check_items(shape, node, path, mistakes)
        case Either():
            if node.value is None or isinstance(node.value, list):
                problem = f"must be a mapping or a word; {allowed(shape.word.values)}"
                return wrong(node, path, mistakes, problem)
            inner = shape.table if isinstance(node.value, dict) else shape.word
            return check(inner, node, path, mistakes)
        case OneOrMore(item):
            return _check_one_or_more(item, node, path, mistakes)
        case Opaque():
            return node.plain()
        case Check():
            return _check_expression(node, path, mistakes)
    try:
        return _scalar(shape, node.value)
    except quantity.QuantityError as error:
        return wrong(node, path, mistakes, str(error))


def wrong(node: Node, path: Path, mistakes: Mistakes, problem: str) -> Any:
    """Report a value.  `problem` may go on after a semicolon: `got` is put before it."""
    head, semicolon, tail = problem.partition("; ")
    where = f"{spell(path)}: " if path else ""
    mistakes.add(node.mark, f"{where}{head}, got {got(node.value)}{semicolon}{tail}")
    return BROKEN


def _scalar(
    shape: Integer | Duration | Rate | Flag | Number | Text | Choice,
    value: Any,
) -> Any:
    """The value as `shape` has it.  QuantityError with the problem."""
    match shape:
        case Integer():
            if not isinstance(value, int) or isinstance(value, bool):
                raise quantity.QuantityError(f"must be an integer{_bounds(shape)}")
            if not in_bounds(shape, value):
                raise quantity.QuantityError(f"out of range{_bounds(shape)}")
            return value
        case Duration():
            if not isinstance(value, str):
                raise quantity.QuantityError(f"must be {quantity.DURATION_EXAMPLE}")
            ns = quantity.parse_duration(value)
            if shape.positive and ns == 0:
                raise quantity.QuantityError("must be above 0")
            return ns
        case Rate():
            if not isinstance(value, str):
                raise quantity.QuantityError(f"must be {quantity.RATE_EXAMPLE}")
            return quantity.parse_rate(value)
        case Flag():
            if not isinstance(value, bool):
                raise quantity.QuantityError("must be a truth value; allowed: true, false")
            return value
        case Number():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise quantity.QuantityError("must be a number")
            return float(value)
        case Text():
            if not isinstance(value, str) or not re.fullmatch(shape.pattern or r"(?s).*", value):
                raise quantity.QuantityError(f"must be {shape.what}")
            return value
        case Choice():
            word = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
            if not isinstance(word, str):
                raise quantity.QuantityError(f"must be a word; {allowed(shape.values)}")
            if word not in shape.values:
                raise quantity.QuantityError(f"unknown value; {instead(word, shape.values)}")
            return word


def in_bounds(shape: Integer, value: int) -> bool:
    """Whether `value` is within the bounds that are known."""
    return (shape.low is None or value >= shape.low) and (shape.high is None or value <= shape.high)


def _bounds(shape: Integer) -> str:
    if shape.low is None or shape.high is None:
        return "" if shape.low is None else f"; allowed: {shape.low} or more"
    low, high = (hex(v) if shape.hexadecimal else str(v) for v in (shape.low, shape.high))
    return f"; allowed: {low}..{high}" if low != high else f"; allowed: {low}"


def _check_record(shape: Record, node: Node, path: Path, mistakes: Mistakes) -> Any:
    if not isinstance(node.value, dict):
        return wrong(node, path, mistakes, f"must be a mapping; {allowed(shape.fields)}")
    for key, child in node.value.items():
        if key not in shape.fields and not str(key).startswith("x-"):
            text = f"{spell((*path, key))}: unknown key; {instead(str(key), list(shape.fields))}"
            mistakes.add(child.key, text)
    result: dict[str, Any] = {}
    for name, entry in shape.fields.items():
        given = node.value.get(name)
        # `expect:` with everything below it commented out is an empty list, not a mistake.
        if given and given.value is None and isinstance(entry.shape, _COLLECTIONS):
            given = None
        if given is not None:
            result[name] = check(entry.shape, given, (*path, name), mistakes)
        elif entry.default is REQUIRED:
            where = f"{spell(path)}: " if path else ""
            mistakes.add(node.mark, f"{where}{name!r} is missing: {entry.doc}")
            result[name] = BROKEN
        elif entry.default is EMPTY:
            empty = Node({}, node.mark, node.key)
            result[name] = check(entry.shape, empty, (*path, name), mistakes)
        else:
            result[name] = copy.deepcopy(entry.default)
    return result


def _check_table(shape: Table, node: Node, path: Path, mistakes: Mistakes) -> Any:
    if not isinstance(node.value, dict):
        return wrong(node, path, mistakes, "must be a mapping")
    result: dict[str | int, Any] = {}
    for key, child in node.value.items():
        if str(key).startswith("x-"):
            continue
        try:
            _scalar(shape.key, key)
        except quantity.QuantityError as error:
            head, semicolon, tail = str(error).partition("; ")
            text = f"{spell((*path, key))}: this key {head}, got {got(key)}{semicolon}{tail}"
            mistakes.add(child.key, text)
            continue
        result[key] = check(shape.value, child, (*path, key), mistakes)
    if shape.nonempty and not node.value:
        return wrong(node, path, mistakes, "must have at least one entry")
    return result


def _check_items(shape: Items, node: Node, path: Path, mistakes: Mistakes) -> Any:
    if not isinstance(node.value, list):
        return wrong(node, path, mistakes, "must be a list")
    return [
        check(shape.item, child, (*path, element_name(child, i)), mistakes)
        for i, child in enumerate(node.value)
    ]


def _check_one_or_more(item: Text, node: Node, path: Path, mistakes: Mistakes) -> Any:
    if node.value == []:
        return wrong(node, path, mistakes, f"must be {item.what}, or a list of such")
    nodes = node.value if isinstance(node.value, list) else [node]
    values = [check(item, child, path, mistakes) for child in nodes]
    return BROKEN if BROKEN in values else values


def element_name(node: Node, index: int) -> str | int:
    """How a path names a list's element: by its `name` if it has one."""
    name = node.value.get("name") if isinstance(node.value, dict) else None
    return name.value if name is not None and isinstance(name.value, str) else index


def _check_expression(node: Node, path: Path, mistakes: Mistakes) -> Any:
    if not isinstance(node.value, str):
        return wrong(node, path, mistakes, "must be a comparison such as lost == 0")
    try:
        parse_check(node.value)
    except CheckError as error:
        mistakes.add(node.inside(error.offset), f"{spell(path)}: {error}")
        return BROKEN
    return node.value


def render(shape: Shape, value: Any) -> Any:
    """A plain value as YAML shows it: with units, vectors in hexadecimal, no derived blanks."""
    match shape:
        case Record(fields):
            # No `matrix: {}` and no `when: {}`: empty, they say nothing.
            return {
                key: render(fields[key].shape, item)
                for key, item in value.items()
                if item is not None and (item or not isinstance(fields[key].shape, Opaque))
            }
        case Table():
            return {key: render(shape.value, item) for key, item in value.items()}
        case Items():
            return [render(shape.item, item) for item in value]
        case OneOrMore():
            return value[0] if len(value) == 1 else value
        case Either():
            return render(shape.table if isinstance(value, dict) else shape.word, value)
        case Duration():
            return quantity.format_duration(value)
        case Rate():
            return quantity.format_rate(value)
        case Integer(hexadecimal=True):
            return Hex(value)
    return value
