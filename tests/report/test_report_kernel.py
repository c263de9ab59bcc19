"""The formats that KVM people know."""

import numpy as np

from emulator.events import Event
from emulator.measure.exits import exit_times
from emulator.measure.records import RECORD_DTYPE
from emulator.report.kernel import exits_text, interrupts_text


def records(*exits: tuple[int, int, int]) -> np.ndarray:
    events = np.zeros(len(exits), dtype=RECORD_DTYPE)
    for event, (reason, begin, end) in zip(events, exits, strict=True):
        event["kind"], event["ref"], event["ts"], event["arg"] = Event.EXIT, reason, begin, end
    return events


def test_exits_are_counted_and_timed_by_reason_the_most_frequent_first():
    times = exit_times(records((32, 1000, 3000), (12, 0, 50_000), (32, 5000, 6000)))

    assert [(t.reason, t.samples, t.total_ns, t.min_ns, t.max_ns) for t in times] == [
        ("MSR_WRITE", 2, 3000, 1000, 2000),
        ("HLT", 1, 50_000, 50_000, 50_000),
    ]


def test_the_exit_table_has_perfs_columns_and_its_shares_add_up():
    text = exits_text(exit_times(records((32, 1000, 3000), (12, 0, 50_000), (32, 5000, 6000))))

    header, msr_write, hlt = (line for line in text.splitlines()[2:6] if line)
    assert header.split()[:4] == ["VM-EXIT", "Samples", "Samples%", "Time%"]
    assert msr_write.split() == [
        "MSR_WRITE", "2", "66.67%", "5.66%", "1.00us", "2.00us", "1.50us"
    ]  # fmt: skip
    assert hlt.split()[:4] == ["HLT", "1", "33.33%", "94.34%"]
    assert "Total Samples:3" in text


def test_a_run_without_exits_has_an_empty_table():
    assert "Total Samples:0" in exits_text(exit_times(records()))


def test_interrupts_have_the_kernels_rows_and_a_column_for_each_pcpu():
    text = interrupts_text([{"irq_pin": 7, "irq_piw": 1}, {"irq_pin": 3, "irq_res": 2}])

    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert lines["PIN"].split()[:3] == ["PIN:", "7", "3"]
    assert lines["PIW"].split()[:3] == ["PIW:", "1", "0"]
    assert lines["RES"].split()[:3] == ["RES:", "0", "2"]
    assert lines["NPI"].split()[:3] == ["NPI:", "0", "0"]
