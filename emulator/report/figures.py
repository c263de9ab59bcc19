"""Numbers as a reader wants them: units, thousands, columns, bars.  Plain ASCII.

Shared by every text of this room.  A figure that was not measured is `-`, never 0.
"""

from collections.abc import Sequence
from textwrap import wrap
from typing import Final

COLUMNS: Final = 72  # what a mailing list lets pass
BAR: Final = 40
_UNITS: Final = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns"))


def duration(ns: float | None) -> str:
    """950ns, 41.2us, 1.73ms, 2.50s: three digits, six columns at most up to a day."""
    if ns is None:
        return "-"
    sign, size = ("-", -ns) if ns < 0 else ("", ns)
    for scale, unit in _UNITS:
        # 999.6 of a unit would round to four digits: it is shown as 1.00 of the next.
        if size >= scale * 0.9995 and (scale > 1 or size >= 1):
            value = size / scale
            digits = 0 if scale == 1 or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{sign}{value:.{digits}f}{unit}"
    return "0ns"


def number(value: float | None) -> str:
    """12,345; a rate or a share keeps one digit below 100."""
    if value is None:
        return "-"
    if isinstance(value, int) or value >= 100 or value == int(value):
        return f"{round(value):,}"
    return f"{value:.1f}"


def ratio(value: float | None, base: float | None) -> str:
    """1.3x, of two figures that may be missing."""
    if value is None or not base:
        return "-"
    return f"{value / base:.2g}x" if value / base < 10 else f"{value / base:,.0f}x"


def paragraph(text: str, indent: str = "  ") -> list[str]:
    """The text in lines of at most 72 columns."""
    return wrap(text, COLUMNS, initial_indent=indent, subsequent_indent=indent)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """Lines of columns, the first to the left and the others to the right.

    A first cell too long for its column stands on a line of its own.
    """
    lines = []
    for cells in (header, *rows):
        first, *others = cells
        rest = "".join(f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        if len(first) > widths[0]:
            lines.append(clip(first))
            first = ""
        lines.append(f"{first:<{widths[0]}}{rest}".rstrip())
    return lines


def clip(line: str) -> str:
    """The line, cut with a mark where it is too long for a mail."""
    return line if len(line) <= COLUMNS else line[: COLUMNS - 3] + "..."


def log2_lines(buckets: Sequence[Sequence[int]]) -> list[str]:
    """(low, high, count) as bpftrace prints hist(): the fullest bucket has the whole bar."""
    most = max((count for _, _, count in buckets), default=0)
    lines = []
    for low, high, count in buckets:
        label = f"[{low}]" if high - low == 1 else f"[{_power(low)}, {_power(high)})"
        bar = "@" * (count * BAR // most)
        lines.append(f"{label:<16} {count:>10} |{bar:<{BAR}}|")
    return lines


def _power(value: int) -> str:
    """As bpftrace writes it: 512, 1K, 2M, by 1024."""
    for shift, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if value >= 1 << shift:
            return f"{value >> shift}{unit}"
    return str(value)
