"""Is there a difference between two runs, or only noise?

Medians with 95 % intervals that assume no distribution.  Neighbouring samples of one run resemble
each other (the same cache, the same placement by the host), so the samples themselves would give
intervals that are far too narrow: the unit is a stretch of the run, or a whole run where a side
has enough of them.  Two runs of one config on one machine still drift apart for reasons that
neither contains; how much the bare transport drifted is said beside every verdict.
Before: `stages`, `summary`.  Next: `report`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Final

import numpy as np

from emulator.measure.records import Samples

BLOCKS: Final = 20  # stretches of a run
MIN_UNITS: Final = 7  # fewer give no 97.5 % interval: 2 * 0.5**7 = 1.6 %
MIN_PER_BLOCK: Final = 10
MAX_FLOOR_DRIFT: Final = 0.10
# Each side's interval holds with 97.5 %, so both hold, and the difference with them, with 95 %.
_ERROR_PER_SIDE: Final = 0.025


@dataclass(frozen=True, slots=True)
class Comparison:
    """b against a.  ns; None where there are too few samples for an interval."""

    n_a: int
    n_b: int
    median_a: float | None
    median_b: float | None
    low: float | None  # of median_b - median_a
    high: float | None
    verdict: str  # "lower" | "higher" | "no detectable difference" | "too few samples"

    @property
    def difference(self) -> float | None:
        if self.median_a is None or self.median_b is None:
            return None
        return self.median_b - self.median_a


def compare(a: Sequence[Samples], b: Sequence[Samples]) -> Comparison:
    """The medians of two sides, each one or more runs' samples in the order of posting.

    "No detectable difference" when the two intervals overlap.
    """
    left, right = _interval(a), _interval(b)
    n_a, n_b = sum(map(len, a)), sum(map(len, b))
    median_a, median_b = _median(a), _median(b)
    if left is None or right is None:
        return Comparison(n_a, n_b, median_a, median_b, None, None, "too few samples")
    low, high = right[0] - left[1], right[1] - left[0]
    verdict = "no detectable difference" if low <= 0 <= high else "lower" if high < 0 else "higher"
    return Comparison(n_a, n_b, median_a, median_b, low, high, verdict)


def median_interval(units: Samples, error: float = _ERROR_PER_SIDE) -> tuple[float, float] | None:
    """The order statistics between which the median lies with probability 1 - `error`.

    Binomial: the k-th smallest of n is above the median with P(B(n, 1/2) < k).  None if even the
    whole range does not reach that.
    """
    n = len(units)
    tail, k = 0.0, 0
    while k < n // 2 and 2 * (tail + comb(n, k) / 2**n) <= error:
        tail += comb(n, k) / 2**n
        k += 1
    if k == 0:
        return None
    ordered = np.sort(units)
    return float(ordered[k - 1]), float(ordered[n - k])


def compare_runs(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    samples_a: Mapping[str, Samples],
    samples_b: Mapping[str, Samples],
) -> dict[str, Any]:
    """Two runs, metric by metric: counts as they are, latencies with intervals.

    a, b: their summaries; samples: `stages.latencies` of each.  Schema `pirlab-compare/1`.
    """
    floors = [run["floor"]["notify_p50_ns"] for run in (a, b)]
    drift = floors[1] / floors[0] - 1 if all(floors) else None
    return {
        "schema": "pirlab-compare/1",
        "a": _identity(a),
        "b": _identity(b),
        "floor_drift": drift,
        "note": _note(drift),
        "latency": {
            stage: _as_dict(compare([of], [samples_b[stage]]))
            for stage, of in samples_a.items()
            if len(of) or len(samples_b[stage])
        },
        "counts": {
            name: [value, _flat(b["counts"])[name]]
            for name, value in _flat(a["counts"]).items()
            if name in _flat(b["counts"])
        },
    }


def _interval(runs: Sequence[Samples]) -> tuple[float, float] | None:
    whole = [run for run in runs if len(run)]
    if len(whole) >= MIN_UNITS:
        return median_interval(np.array([np.median(run) for run in whole]))
    blocks = [
        np.median(block)
        for run in whole
        if len(run) >= MIN_PER_BLOCK * MIN_UNITS
        for block in np.array_split(run, min(BLOCKS, len(run) // MIN_PER_BLOCK))
    ]
    return median_interval(np.array(blocks))


def _median(runs: Sequence[Samples]) -> float | None:
    together = np.concatenate(runs) if runs else np.zeros(0)
    return float(np.median(together)) if len(together) else None


def _note(drift: float | None) -> str:
    if drift is None:
        return "no floor was measured: how far the machine drifted is not known"
    if abs(drift) > MAX_FLOOR_DRIFT:
        return f"the bare transport itself moved by {drift:+.0%} between the runs"
    return ""


def _identity(run: Mapping[str, Any]) -> dict[str, Any]:
    return {key: run[key] for key in ("name", "run_dir", "rule", "seed", "seconds")}


def _as_dict(comparison: Comparison) -> dict[str, Any]:
    return {
        "n": [comparison.n_a, comparison.n_b],
        "median_ns": [comparison.median_a, comparison.median_b],
        "difference_ns": comparison.difference,
        "interval_ns": [comparison.low, comparison.high],
        "verdict": comparison.verdict,
    }


def _flat(counts: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    flat: dict[str, int] = {}
    for name, value in counts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
