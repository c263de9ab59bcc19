"""`events.bin` as a numpy array: the only source of counts, latencies and traces.

The layout is `emulator/events.py`'s, field by field.  Chunks of different processes interleave in
the file; the records of one process stand in its own order, and that order is kept here: where
a clock value cannot decide (a NOTIFY is stamped with its beginning and recorded at its end), the
place in the file does.
Next: `chains`.
"""

from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from emulator.events import RECORD_BYTES, Event
from emulator.hardware.vectors import (
    POSTED_INTR_NESTED_VECTOR,
    POSTED_INTR_VECTOR,
    POSTED_INTR_WAKEUP_VECTOR,
)

RECORD_DTYPE: Final = np.dtype(
    [
        ("ts", "<u8"),
        ("arg", "<u8"),
        ("ref", "<u8"),
        ("kind", "u1"),
        ("vector", "u1"),
        ("pcpu", "<u2"),
        ("vcpu", "<u2"),
        ("load", "<u2"),
    ]
)
assert RECORD_DTYPE.itemsize == RECORD_BYTES

Records: TypeAlias = npt.NDArray[np.void]  # of RECORD_DTYPE
Indices: TypeAlias = npt.NDArray[np.int64]  # positions in a Records array; -1: none
Flags: TypeAlias = npt.NDArray[np.bool_]
Samples: TypeAlias = npt.NDArray[np.int64]  # durations, ns
Times: TypeAlias = npt.NDArray[np.uint64]  # CLOCK_MONOTONIC, ns

# What a sender of the posted-interrupt protocol may put on the wire (PIN, PIW, NPI).
NOTIFICATION_VECTORS: Final = (
    POSTED_INTR_VECTOR,
    POSTED_INTR_WAKEUP_VECTOR,
    POSTED_INTR_NESTED_VECTOR,
)


def read_events(path: Path | str) -> Records:
    """All whole records of the file, in its order.  A torn last record (a killed run) is left out.

    Raises OSError if there is no such file.
    """
    size = Path(path).stat().st_size
    return np.fromfile(path, dtype=RECORD_DTYPE, count=size // RECORD_BYTES)


def positions(events: Records, *kinds: Event) -> Indices:
    """Where records of these kinds stand, in the file's order."""
    return np.flatnonzero(np.isin(events["kind"], kinds)).astype(np.int64)


def is_notification(events: Records) -> Flags:
    """Whether the record's `vector` is one of the protocol's own."""
    flags: Flags = np.isin(events["vector"], NOTIFICATION_VECTORS)
    return flags
