"""Matrices and schedules that the golden file does not hold, in forms that such files may take."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from emulator.conformance.document import Case, Matrix
from emulator.conformance.runner import run_case, run_matrix

GOLDEN = Path(__file__).parent.parent / "golden" / "apicv_cases.json"
CASE = Case(
    id="a",
    group="interleaving",
    title="",
    defaults=json.loads(GOLDEN.read_text())["defaults"],
    setup={"pid": {"pir": [], "on": 0, "sn": 0}},
    steps=[],
    expect={},
)
PAIRS = [(high, low) for high in range(0x21, 0x100) for low in range(0x21, high)]


def sweep_eoi(line_format, line, pairs=PAIRS):
    text = "".join(line(high, low) + "\n" for high, low in pairs)
    data = {
        "line_format": line_format,
        "lines": len(pairs),
        "deliveries_total": 2 * len(pairs),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return run_matrix(Matrix(id="sweep-eoi", data=data))


def test_every_pair_is_delivered_twice_and_exits_twice_with_the_bitmap():
    assert len(PAIRS) == 24_753
    form = "'{vector:02x} {lower:02x} {deliveries} {exits, bitmap 0} {exits, bitmap 1} {final RVI}'"
    assert sweep_eoi(form, lambda high, low: f"{high:02x} {low:02x} 2 0 2 0").ok
    assert not sweep_eoi(form, lambda high, low: f"{high:02x} {low:02x} 2 1 2 0").ok


def test_a_sweep_may_run_over_its_pairs_in_the_other_order():
    by_low = sorted(PAIRS, key=lambda pair: (pair[1], pair[0]))
    assert sweep_eoi("'{low:02x} {high:02x}'", lambda high, low: f"{low:02x} {high:02x}", by_low).ok


def sender_rows():
    """The rules of each sender, row by row: 8 for an IOMMU, 4 for IPI virtualization, 2 for KVM."""
    for sender, urgent in (("IOMMU", 0), ("IOMMU", 1), ("IPI virtualization", None)):
        for on in (0, 1):
            for sn in (0, 1):
                sends = int(not on and (urgent == 1 or not sn))
                yield [sender, urgent, 0, on, sn, on | sends, sends]
    yield ["software", None, 0, 0, 1, 1, 1]
    yield ["software", None, 1, 0, 0, 0, 0]


COLUMNS = ["sender", "URG", "PIR bit was", "ON was", "SN", "ON after", "notification"]


def test_the_senders_keep_their_rules_and_any_other_outcome_fails():
    rows = list(sender_rows())
    assert len(rows) == 14
    data = {"columns": COLUMNS, "rows": rows}
    assert run_matrix(Matrix(id="sender-rules", data=data)).why == ""
    for i, row in enumerate(rows):
        for column in (5, 6):
            wrong = [*row]
            wrong[column] ^= 1
            rows_ = [*rows[:i], wrong, *rows[i + 1 :]]
            assert not run_matrix(Matrix(id="sender-rules", data=data | {"rows": rows_})).ok


@pytest.mark.parametrize(
    ("row", "ok"),
    [
        ({"agent": "iommu urgent", "on": 0, "sn": 1, "result": "PIR[V]=1, ON=1, send NV"}, True),
        ({"agent": "iommu", "on": 0, "sn": 1, "result": "PIR only"}, True),
        ({"agent": "iommu", "on": 0, "sn": 0, "result": "PIR only"}, False),
        ({"agent": "iommu", "pir": 1, "on": "any", "sn": 1, "sent": 0}, True),
        ({"agent": "iommu", "on": "any", "sn": 0, "sent": 0}, False),
        ({"agent": "software", "before": {"on": 1}, "after": {"on": 1, "sent": 0}}, True),
        ({"agent": "postman", "on": 1, "sent": 0}, False),
        ({"agent": "software", "on": 1}, False),
        ({"agent": "software", "on": 1, "sent": 0, "weather": 1}, False),
    ],
)
def test_a_row_of_sender_rules_is_read_by_its_words(row, ok):
    assert run_matrix(Matrix(id="sender-rules", data={"rows": [row]})).ok is ok


# -- schedules ------------------------------------------------------------------------------------

ROUND = [["T", "ack NV"], ["T", "clear ON"], ["T", "physical EOI"], ["T", "harvest PIR"]]


def outcome(steps, expect, setup=CASE.setup):
    return run_case(replace(CASE, steps=steps, expect=expect, setup=setup))


def test_a_harvest_between_pir_and_on_leaves_a_spurious_notification_and_loses_nothing():
    steps = [["S1", "set PIR[0x51]"], ["S1", "ON 0->1, send NV"], ["S2", "set PIR[0x61]"]]
    steps += [*ROUND, ["S2", "ON 0->1, send NV"], *ROUND[:3], ["T", "harvest PIR (empty)"]]
    expect = {"virr_after": [0x51, 0x61], "rvi_after": 0x61, "nv_sent": 2, "lost": []}
    assert outcome(steps, expect).why == ""


def test_a_notification_in_root_mode_leaves_the_descriptor_to_software():
    steps = [["S1", "set PIR[0x51]"], ["S1", "ON 0->1, send NV"]]
    steps += [["T", "in root mode: NV taken through the host IDT, EOI"], ["S2", "set PIR[0x61]"]]
    steps += [["S2", "ON already 1, no NV"]]
    expect = {"pid": {"pir": [0x51, 0x61], "on": 1}, "nv_sent": 1, "virr_after": [], "lost": []}
    assert outcome(steps, expect).why == ""
    steps += [["T", "VMM clears ON, harvests PIR into VIRR/RVI"], ["T", "VM entry"]]
    expect = {"pid": {"pir": [], "on": 0}, "virr_after": [0x51, 0x61], "deliveries": 2}
    assert outcome(steps, expect).why == ""


def test_a_suppressed_iommu_stops_after_its_look_at_on():
    steps = [["IOMMU", "set PIR[0x51]"], ["IOMMU", "ON stays 0, no NV"]]
    expect = {"pid": {"pir": [0x51], "on": 0}, "nv_sent": 0}
    assert outcome(steps, expect, {"pid": {"sn": 1}}).why == ""
    assert not outcome(steps, expect, {"pid": {"sn": 0}}).ok


@pytest.mark.parametrize(
    "steps",
    [
        [["S1", "ON 0->1, send NV"]],
        [["S1", "set PIR[0x51]"], ["S1", "send NV"]],
        [["S1", "set PIR[0x51] (was 1: stop)"]],
        [["S1", "set PIR[0x51]"], ["S1", "ON already 1, no NV"]],
        [["S1", "set PIR[0x51]"], ["S1", "ON 0->1"], ["S1", "no NV"]],
        [["T", "ack NV"]],
        [["T", "clear ON"]],
        [["S1", "set PIR[0x51]"], ["S1", "ON 0->1, send NV"], ["T", "ack NV"], ["T", "EOI"]],
        [["S1", "set PIR[0x51]"], ["S1", "ON 0->1, send NV"], *ROUND[:2], ["T", "ack NV"]],
        [["S1", "set PIR_B[0x51]"]],
    ],
)
def test_a_schedule_that_the_text_does_not_follow_fails(steps):
    result = outcome(steps, {"lost": []})
    assert not result.ok
    assert result.why
