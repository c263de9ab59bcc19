"""How golden cases write things: vectors and sets of them, numbers, switches; and what goes wrong.

Next: `bench` and the other benches build their state from these.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final


class NotUnderstoodError(Exception):
    """The case says something that this runner does not know.  It fails, and says what."""


class MismatchError(Exception):
    """The model did not do what the case expects."""


def check(name: str, got: object, expected: object) -> None:
    """`MismatchError` with both values unless they are equal."""
    if got != expected:
        raise MismatchError(f"{name}: expected {show(expected)}, got {show(got)}")


def show(value: object) -> str:
    """A value for a message: integers also in hexadecimal, as vectors are best read."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value} ({value:#x})" if value > 9 else str(value)
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return "[" + ", ".join(f"{item:#x}" for item in value) + "]"
    return repr(value)


# -- vectors ------------------------------------------------------------------------------------


def vector_of(value: Any) -> int:
    """One vector."""
    vector = number(value)
    if not 0 <= vector <= 0xFF:
        raise NotUnderstoodError(f"{value!r} is not a vector")
    return vector


def vector_set(values: Any) -> int:
    """A list of vectors as a 256-bit number; the word "all" is all of them."""
    if values == "all":
        return (1 << 256) - 1
    if not isinstance(values, list):
        raise NotUnderstoodError(f"{values!r} is not a list of vectors")
    bits = 0
    for value in values:
        bits |= 1 << vector_of(value)
    return bits


def vectors_in(bits: int) -> list[int]:
    """The set as an ascending list."""
    return [vector for vector in range(bits.bit_length()) if bits >> vector & 1]


# -- numbers ------------------------------------------------------------------------------------

_OPERATORS: Final[Mapping[type, Callable[[int, int], int]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.Pow: operator.pow,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
    ast.BitXor: operator.xor,
}
SHIFT_MAX: Final = 256


def number(value: Any, **names: int) -> int:
    """An integer, or integer arithmetic in words: "1<<MAXPHYADDR", "(id >> 4) << 16"."""
    if isinstance(value, int):
        return int(value)
    if not isinstance(value, str):
        raise NotUnderstoodError(f"{value!r} is not a number")
    try:
        tree = ast.parse(value.strip(), mode="eval")
    except SyntaxError as error:
        raise NotUnderstoodError(f"{value!r} is not a number") from error
    return _evaluate(tree.body, value, names)


def _evaluate(node: ast.expr, text: str, names: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(constant)):
            return constant
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, text, names)
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_evaluate(operand, text, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _evaluate(left, text, names), _evaluate(right, text, names)
            if isinstance(op, ast.LShift | ast.RShift | ast.Pow) and not 0 <= b <= SHIFT_MAX:
                raise NotUnderstoodError(f"{text!r}: {b} is too many bits")
            return _OPERATORS[type(op)](a, b)
        case _:
            raise NotUnderstoodError(f"{text!r} is not a number")


def switch(value: Any) -> bool:
    """0 or 1, false or true."""
    if value not in (0, 1):
        raise NotUnderstoodError(f"{value!r} is neither 0 nor 1")
    return bool(value)


# -- keys ---------------------------------------------------------------------------------------


def known_keys(where: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Every key in `found` is known, or the case is not understood."""
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise NotUnderstoodError(f"unknown key {unknown[0]!r} in {where}")


def plain(word: Any) -> str:
    """A word without case, space and punctuation: "IOMMU, urgent" is "iommuurgent"."""
    return re.sub(r"[^a-z0-9]", "", str(word).lower())
