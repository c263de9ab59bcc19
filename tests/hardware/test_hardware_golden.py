"""The golden cases hold, none is skipped, and none of them is a formality."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from emulator.conformance import run_file
from emulator.conformance.document import Matrix, load
from emulator.conformance.runner import run_case, run_matrix

GOLDEN = Path(__file__).parent.parent / "golden" / "apicv_cases.json"
DOCUMENT = load(GOLDEN)


def test_every_golden_case_and_matrix_passes_and_none_is_skipped():
    result = run_file(GOLDEN)
    assert [case for case in result.cases if not case.ok] == []
    assert (result.passed, result.failed, result.skipped) == (131, 0, 0)
    assert result.as_json()["schema"] == "pirlab-conformance/1"
    assert len(result.as_json()["cases"]) == 131


def falsified(value):
    """Every variant of `value` with one thing in it made wrong."""
    match value:
        case bool():
            yield not value
        case int():
            yield value + 1
        case str():
            yield value + "?"
        case None:
            yield [{"reason": "HLT"}]
        case dict():
            for key, member in value.items():
                for wrong in falsified(member):
                    yield value | {key: wrong}
            yield value | {"unheard-of": 1}
        case list():
            for i, member in enumerate(value):
                for wrong in falsified(member):
                    yield [*value[:i], wrong, *value[i + 1 :]]
            yield [*value, 0x77]
            if value:
                yield value[:-1]


def variants(case):
    for key, expected in case.expect.items():
        for wrong in falsified(expected):
            # Fewer transitions are still true, and "rule" is found anywhere in its sentence.
            if key == "transitions" and wrong == expected[:-1]:
                continue
            yield replace(case, expect=case.expect | {key: wrong})
    yield replace(case, expect=case.expect | {"unheard-of": 0})
    yield replace(case, expect={})
    yield replace(case, group="unheard-of")
    yield replace(case, setup=case.setup | {"unheard-of": 0})
    yield replace(case, steps=[*case.steps, {"op": "unheard-of"}])


@pytest.mark.parametrize("case", DOCUMENT.cases, ids=lambda case: case.id)
def test_a_case_with_anything_wrong_in_it_fails(case):
    for bad in variants(case):
        result = run_case(bad)
        assert not result.ok, bad
        assert result.why


def wrong_outcomes(row):
    """Each outcome that `row` claims, made wrong."""
    match row:
        case str():
            for c, cell in enumerate(row):
                yield row[:c] + ("1" if cell == "0" else "0") + row[c + 1 :]
        case [*controls, str() as outcome] if 0 in controls or 1 in controls:
            yield [*controls, "ok: plain memory" if "VMfail" in outcome else "VMfail 7"]
        case list():
            yield from ([*row[:c], "ff", *row[c + 1 :]] for c in range(len(row)))
        case {"match": match}:
            yield row | {"match": not match}
        case {"result": result}:
            yield row | {"result": "PIR[V]=0"}
            yield row | {"result": "PIR[V]=1, nothing sent" if "send" in result else "send NV"}
        case _:
            for direction in ("read", "write"):
                registers = row[direction]
                for here, there in permutations(registers, 2):
                    moved = {
                        here: registers[here][1:],
                        there: [*registers[there], registers[here][0]],
                    }
                    yield row | {direction: registers | moved}


def wrong_matrices(data):
    if "rows" not in data:  # a sweep
        yield from (data | {key: next(falsified(data[key]))} for key in ("lines", "sha256"))
        yield data | {"deliveries_total": data["deliveries_total"] - 1}
        return
    for i, row in enumerate(data["rows"]):
        for wrong in wrong_outcomes(row):
            yield data | {"rows": [*data["rows"][:i], wrong, *data["rows"][i + 1 :]]}


@pytest.mark.parametrize("matrix", DOCUMENT.matrices, ids=lambda matrix: matrix.id)
def test_a_matrix_with_any_outcome_wrong_fails(matrix):
    for wrong in wrong_matrices(matrix.data):
        result = run_matrix(Matrix(id=matrix.id, data=wrong))
        assert not result.ok, wrong


def test_an_unknown_matrix_fails():
    result = run_matrix(Matrix(id="unheard-of", data={"rows": [1]}))
    assert (result.ok, result.why) == (False, "not understood: unknown matrix 'unheard-of'")


def test_a_wrong_order_is_refused_by_the_protocol_text_and_not_merely_expected():
    race = next(case for case in DOCUMENT.cases if case.id == "race-04")
    harmless = replace(race, expect={key: v for key, v in race.expect.items() if key != "lost"})
    assert "refuses this order" in run_case(harmless).why
