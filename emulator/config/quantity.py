"""Quantities: `200us` and `2k/s` to numbers and back, exactly.

A number without a unit is a mistake: the reader of a config must not have to know that a key is
in microseconds.  Arithmetic is decimal, so `0.1s` is 100000000 ns and not one less.
"""

import re
from decimal import Decimal
from typing import Final

DURATION_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
RATE_UNITS: Final = {"/s": 1, "k/s": 1_000, "M/s": 1_000_000}
DURATION_MAX_NS: Final = 24 * DURATION_UNITS["h"]
RATE_MAX: Final = 1e9  # one a nanosecond: the clock cannot tell more apart

_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?"
DURATION_PATTERN: Final = rf"{_NUMBER}(?:{'|'.join(DURATION_UNITS)})"
RATE_PATTERN: Final = rf"{_NUMBER}[kM]?/s"
_SPLIT: Final = re.compile(rf"({_NUMBER})(.*)", re.DOTALL)
DURATION_EXAMPLE: Final = "a duration with its unit, such as 500ms (ns, us, ms, s, m, h)"
RATE_EXAMPLE: Final = "a rate with its unit, such as 2k/s (/s, k/s, M/s)"


class QuantityError(ValueError):
    """What a text should have been, as the end of a sentence."""


def parse_duration(text: str) -> int:
    """Nanoseconds of `10ns`, `200us`, `1.5ms`, `5s`, `1m`, `2h`; at most DURATION_MAX_NS."""
    number, scale = _split(text, DURATION_UNITS, DURATION_EXAMPLE)
    value = number * scale
    if value > DURATION_MAX_NS:
        raise QuantityError(f"must be at most {format_duration(DURATION_MAX_NS)}")
    if value != value.to_integral_value():
        raise QuantityError("must be a whole number of ns")
    return int(value)


def parse_rate(text: str) -> float:
    """Per second, of `500/s`, `2k/s`, `1.5M/s`; above 0 and at most RATE_MAX."""
    number, scale = _split(text, RATE_UNITS, RATE_EXAMPLE)
    value = float(number * scale)
    if not 0 < value <= RATE_MAX:
        raise QuantityError("must be above 0/s and at most 1000M/s")
    return value


def _split(text: str, units: dict[str, int], example: str) -> tuple[Decimal, int]:
    match = _SPLIT.fullmatch(text)
    if match is None or match[2] not in units:
        raise QuantityError(f"must be {example}")
    return Decimal(match[1]), units[match[2]]


def format_duration(ns: int) -> str:
    """The shortest whole number with a unit; `parse_duration` gives `ns` again."""
    for unit in ("h", "m", "s", "ms", "us"):
        if ns and ns % DURATION_UNITS[unit] == 0:
            return f"{ns // DURATION_UNITS[unit]}{unit}"
    return f"{ns}ns"


def format_rate(per_s: float) -> str:
    """In /s, k/s or M/s, whichever is a short number; `parse_rate` gives `per_s` again."""
    for unit in ("M/s", "k/s"):
        number = per_s / RATE_UNITS[unit]
        text = f"{number:g}{unit}"
        if number >= 1 and "e" not in text and parse_rate(text) == per_s:
            return text
    return f"{per_s:g}/s" if float(f"{per_s:g}") == per_s else f"{per_s!r}/s"
