"""What a config expects of a run: `check: latency.send.p50_ns <= 1.6 * floor.notify_p50_ns`.

    check      = comparison { "and" comparison }
    comparison = sum ( "<" | "<=" | "==" | "!=" | ">=" | ">" ) sum
    sum        = product { ( "+" | "-" ) product }
    product    = factor { ( "*" | "/" ) factor }
    factor     = "-" factor | number [ unit ] | "text" | path | "(" sum ")"

A path names a value of the run's summary; `lost` is short for `counts.lost`, as is every path
whose first word the summary does not have.  Durations are ns and rates per second, as in the
summary; a VM exit that never happened is 0.  A `-` between two names needs spaces (names have
hyphens).  Imports no world.
Before: `config/load.py` parses every check, so that a typing error costs no run.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from emulator.config import quantity
from emulator.hardware.vectors import ExitReason

DEPTH_MAX: Final = 20  # parentheses and signs within each other
LENGTH_MAX: Final = 500  # characters of one check

_TOKEN: Final = re.compile(
    rf"""\s*(?:
      (?P<quantity>(?:{quantity.RATE_PATTERN}|{quantity.DURATION_PATTERN})(?![\w.]))
    | (?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{{1,3}})?(?![\w.]))
    | (?P<word>[A-Za-z_]\w*(?:-\w+)*(?:\.\w+(?:-\w+)*)*)
    | (?P<text>"[^"]*"|'[^']*')
    | (?P<sign><=|>=|==|!=|[<>()*/+-])
    )""",
    re.VERBOSE,
)
_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}
_COMPUTE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


class CheckError(ValueError):
    """A check that is not one; `offset` is the character where that shows."""

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(problem)
        self.offset = offset


class Outcome(NamedTuple):
    """What became of a check: `text` says why it did not hold, and is empty if it did."""

    held: bool
    value: Any  # the left side's; None if it has none
    text: str


@dataclass(frozen=True, slots=True)
class _Constant:
    value: float | str


@dataclass(frozen=True, slots=True)
class _Path:
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Binary:
    sign: str
    left: "_Term"
    right: "_Term"


_Term = _Constant | _Path | _Binary


@dataclass(frozen=True, slots=True)
class Comparison:
    """`left sign right`; `text` is the left side as written."""

    left: _Term
    sign: str
    right: _Term
    text: str


def parse_check(text: str) -> tuple[Comparison, ...]:
    """The comparisons, all of which must hold.  CheckError with the place of the mistake."""
    return _Parser(text).check()


def evaluate(check: str, summary: Mapping[str, Any]) -> Outcome:
    """Whether `check` holds of a run's summary (`pirlab-run/1`).

    The value is that of the first comparison that fails, or of the first one.  A path without
    value (not there, or null: too few samples) is a failure with value None.
    """
    outcomes = [_compare(comparison, summary) for comparison in parse_check(check)]
    return next((outcome for outcome in outcomes if not outcome.held), outcomes[0])


def _compare(comparison: Comparison, summary: Mapping[str, Any]) -> Outcome:
    value: Any = None
    try:
        value = _value(comparison.left, summary)
        other = _value(comparison.right, summary)
        held = _COMPARE[comparison.sign](value, other)
    except _NoValueError as error:
        return Outcome(False, value, str(error))
    except ZeroDivisionError:
        return Outcome(False, value, f"{comparison.text}: division by zero")
    except TypeError:
        kinds = "a text and a number cannot be compared or computed with"
        return Outcome(False, value, f"{comparison.text}: {kinds}")
    if held:
        return Outcome(True, value, "")
    wanted = f"not {comparison.sign} {other!r}"
    return Outcome(False, value, f"{comparison.text} is {value!r}, {wanted}")


class _NoValueError(LookupError):
    """The summary has no such value."""


def _value(term: _Term, summary: Mapping[str, Any]) -> Any:
    match term:
        case _Constant(value):
            return value
        case _Binary(sign, left, right):
            return _COMPUTE[sign](_value(left, summary), _value(right, summary))
        case _Path(parts):
            return _look_up(parts, summary)


def _look_up(parts: tuple[str, ...], summary: Mapping[str, Any]) -> Any:
    place: Any = summary
    if parts[0] not in summary:
        place = summary.get("counts", {})
    for part in parts:
        if isinstance(place, Mapping) and part in place:
            place = place[part]
        elif isinstance(place, list | tuple) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
        elif parts[-2:] == ("exits", part) and part in ExitReason.__members__:
            place = 0
        else:
            raise _NoValueError(f"{'.'.join(parts)} is not in the summary")
    if place is None:
        raise _NoValueError(f"{'.'.join(parts)} has no value (too few samples)")
    if not isinstance(place, int | float | str):
        raise _NoValueError(f"{'.'.join(parts)} is not a single value")
    return place


class _Token(NamedTuple):
    kind: str
    text: str
    offset: int


class _Parser:
    """Recursive descent over the tokens of one check."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.at = 0
        self.depth = 0

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self, *texts: str) -> str | None:
        """The next token if it is a sign or word of `texts`."""
        token = self.next
        if token.kind in ("sign", "word") and token.text in texts:
            self.at += 1
            return token.text
        return None

    def fail(self, wanted: str) -> CheckError:
        found = repr(self.next.text) if self.next.text else "the end"
        return CheckError(self.next.offset, f"expected {wanted}, got {found}")

    def check(self) -> tuple[Comparison, ...]:
        comparisons = [self.comparison()]
        while self.take("and"):
            comparisons.append(self.comparison())
        if self.next.kind != "end":
            raise self.fail("'and' or the end")
        return tuple(comparisons)

    def comparison(self) -> Comparison:
        start = self.next.offset
        left = self.sum()
        text = self.text[start : self.next.offset].strip()
        sign = self.take(*_COMPARE)
        if sign is None:
            raise self.fail("one of " + " ".join(_COMPARE))
        return Comparison(left, sign, self.sum(), text)

    def sum(self) -> _Term:
        left = self.product()
        while sign := self.take("+", "-"):
            left = _Binary(sign, left, self.product())
        return left

    def product(self) -> _Term:
        left = self.factor()
        while sign := self.take("*", "/"):
            left = _Binary(sign, left, self.factor())
        return left

    def factor(self) -> _Term:
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise CheckError(self.next.offset, f"nested more than {DEPTH_MAX} deep")
        if self.take("-"):
            term: _Term = _Binary("-", _Constant(0), self.factor())
        elif self.take("("):
            term = self.sum()
            if not self.take(")"):
                raise self.fail("')'")
        else:
            term = self.primary()
        self.depth -= 1
        return term

    def primary(self) -> _Term:
        kind, text, offset = self.next
        if kind not in ("number", "quantity", "text", "word") or text == "and":
            raise self.fail("a path, a number or '('")
        self.at += 1
        match kind:
            case "number":
                return _Constant(float(text) if re.search(r"[.eE]", text) else int(text))
            case "text":
                return _Constant(text[1:-1])
            case "word":
                return _Path(tuple(text.split(".")))
        try:
            rate = text.endswith("/s")
            return _Constant(quantity.parse_rate(text) if rate else quantity.parse_duration(text))
        except quantity.QuantityError as error:
            raise CheckError(offset, f"{error}, got {text!r}") from None


def _tokens(text: str) -> list[_Token]:
    """The tokens, and an empty one at the end."""
    if len(text) > LENGTH_MAX:
        raise CheckError(0, f"must be at most {LENGTH_MAX} characters, got {len(text)}")
    result = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            offset = at + len(text[at:]) - len(text[at:].lstrip())
            word = text[offset:].split(maxsplit=1)[0]
            raise CheckError(offset, f"expected a path, a number or a sign, got {word!r}")
        kind = match.lastgroup
        result.append(_Token(kind, match[kind], match.start(kind)))
        at = match.end()
    return [*result, _Token("end", "", end)]
