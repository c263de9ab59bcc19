"""Two runs, metric by metric: what differs, by how much, and what cannot be told apart.

Before: `measure/compare.py`.
"""

from collections.abc import Mapping
from typing import Any

from emulator.report.figures import clip, duration, number, paragraph, table


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """A `pirlab-compare/1` object in at most 72 columns."""
    lines = []
    for side in ("a", "b"):
        run = comparison[side]
        lines.append(clip(f"{side}: {run['name']}, {run['rule']}, seed {run['seed']}"))
        if run["run_dir"]:
            lines.append(f"   {run['run_dir']}")
    if comparison["note"]:
        lines += ["", *paragraph(f"Note: {comparison['note']}.", "")]
    rows = []
    for stage, found in comparison["latency"].items():
        low, high = found["interval_ns"]
        between = "" if low is None else f"[{duration(low)}, {duration(high)}]"
        medians = [duration(median) for median in found["median_ns"]]
        rows.append((stage, *medians, between, _verdict(found["verdict"])))
    header = ("medians", "a", "b", "b - a, 95 %", "b is")
    lines += ["", *table(header, rows, (21, 8, 8, 20, 15))]
    lines += [
        "",
        *paragraph(
            "Intervals hold within these runs, for any distribution, samples near in time taken "
            "together. =: no detectable difference. What differs between any two runs on one "
            "machine they do not contain: repeat the run to see it."
        ),
    ]
    differing = [
        (name, number(a), number(b), number(b - a) if b >= a else f"-{number(a - b)}")
        for name, (a, b) in comparison["counts"].items()
        if a != b
    ]
    if differing:
        header4 = ("counts that differ", "a", "b", "b - a")
        lines += ["", *table(header4, differing, (30, 14, 14, 14))]
    return "\n".join(lines) + "\n"


def _verdict(verdict: str) -> str:
    return {"no detectable difference": "=", "too few samples": "too few"}.get(verdict, verdict)
