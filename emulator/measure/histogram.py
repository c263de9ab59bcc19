"""Histograms of samples: powers of two for the eye, HdrHistogram for other tools.

Both count samples that are already there; nothing is sampled here.
Before: `stages`.  Next: `report`, and any reader of `hist.hlog`.

`hist.hlog` is the HdrHistogram interval log, format 1.3 (hdrhistogram.org): one interval a run,
one tagged line a stage.  hdrhistogram 0.10.8 encodes histograms well, but its log writer stops
at the start time (it calls a method that datetime does not have) and knows no tags, so the few
lines of text are written here.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from hdrh.histogram import HdrHistogram

from emulator.measure.records import Samples

SIGNIFICANT_DIGITS: Final = 3
_MANTISSA_BITS: Final = 11  # 2048 sub-buckets hold three digits
_NS_PER_MS: Final = 1_000_000


def log2_histogram(samples: Samples) -> list[tuple[int, int, int]]:
    """(low, high, count) of the buckets [0, 1), [1, 2), [2, 4), [4, 8), … as bpftrace's hist().

    From the first that holds a sample to the last; empty ones between them are kept.
    """
    if not len(samples):
        return []
    bits = np.frexp(samples.astype(np.float64))[1]  # bit length; samples are below 2**53
    counts = np.bincount(bits)
    first = int(bits.min())
    return [(1 << bit >> 1, 1 << bit, int(counts[bit])) for bit in range(first, len(counts))]


def encode_hdr(samples: Samples) -> str:
    """The V2 compressed HdrHistogram of the samples, base64, three significant digits."""
    histogram = HdrHistogram(1, max(2, int(samples.max())), SIGNIFICANT_DIGITS)
    # Samples that share a bucket are counted here: a call a sample would take seconds.
    shift = np.maximum(np.frexp(samples.astype(np.float64))[1].astype(np.int64) - _MANTISSA_BITS, 0)
    values, counts = np.unique(samples >> shift << shift, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, count)
    encoded: bytes = histogram.encode()
    return encoded.decode("ascii")


def write_hlog(
    path: Path | str, samples: Mapping[str, Samples], *, start_s: float, length_s: float
) -> None:
    """Write one interval: every stage that has samples, tagged with its name.

    Values are ns.  `start_s`: seconds since the epoch.  The column Interval_Max is in ms, as the
    format's convention has it.
    """
    when = datetime.fromtimestamp(start_s, tz=UTC).isoformat(sep=" ", timespec="milliseconds")
    lines = [
        "#[Histogram log format version 1.3]",
        f"#[StartTime: {start_s:.3f} (seconds since epoch), {when}]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    interval = f"{start_s:.3f},{length_s:.3f}"
    for stage, of in samples.items():
        if len(of):
            max_ms = int(of.max()) / _NS_PER_MS
            lines.append(f"Tag={stage},{interval},{max_ms:.3f},{encode_hdr(of)}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="ascii")
