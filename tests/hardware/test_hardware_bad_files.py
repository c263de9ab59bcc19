"""A file that cannot be used is one clear sentence; a case that cannot is a failure."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from emulator.conformance import ConformanceError, format_text, run_file
from emulator.conformance.document import Case

GOLDEN = Path(__file__).parent.parent / "golden" / "apicv_cases.json"
CASE = {"id": "a", "group": "eoi", "setup": {}, "steps": [], "expect": {"rvi": 0}}
GOOD = {"format": "apicv-golden-cases/1", "defaults": {}, "cases": [CASE], "matrices": []}


def written(tmp_path, content):
    path = tmp_path / "cases.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


BAD = {
    "truncated": (GOLDEN.read_bytes()[:5000], "not JSON"),
    "not UTF-8": (b'{"format": "\xff"}', "not UTF-8 at byte 12"),
    "empty": (b"", "not JSON"),
    "a list": ([], "the top level is not an object"),
    "of another version": (GOOD | {"format": "apicv-golden-cases/2"}, "apicv-golden-cases/2"),
    "without a format": ({"cases": [CASE]}, "format is None"),
    "without defaults": ({k: v for k, v in GOOD.items() if k != "defaults"}, "'defaults'"),
    "without cases": (GOOD | {"cases": []}, "no cases"),
    "with cases of a wrong type": (GOOD | {"cases": {"a": 1}}, "not a list of objects"),
    "with a case without id": (GOOD | {"cases": [{}]}, "has no id"),
    "with a case without steps": (GOOD | {"cases": [CASE | {"steps": 3}]}, "'steps' is missing"),
    "with an id twice": (GOOD | {"cases": [CASE, CASE]}, "'a' stands 2 times"),
    "nested too deep": (b"[" * 200_000, "nested too deep"),
    "with a number of 5000 digits": (b"1" * 5000, "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence_with_its_name(tmp_path, name):
    content, words = BAD[name]
    path = written(tmp_path, content)
    with pytest.raises(ConformanceError) as caught:
        run_file(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert words in sentence
    assert "\n" not in sentence


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(ConformanceError, match="no such file"):
        run_file(tmp_path / "absent.json")
    with pytest.raises(ConformanceError, match="directory"):
        run_file(tmp_path)


def test_a_file_of_one_case_runs_and_its_summary_names_what_failed(tmp_path):
    wrong = CASE | {"id": "b", "expect": {"rvi": 1}}
    result = run_file(written(tmp_path, GOOD | {"cases": [CASE, wrong]}))
    assert (result.passed, result.failed, result.skipped) == (1, 1, 0)
    assert format_text(result).splitlines() == [
        "FAILED b: rvi: expected 1, got 0",
        "1 passed, 1 failed, 0 skipped",
    ]


MALFORMED = {
    "a vector that is a word": {"steps": [{"op": "phys_interrupt", "vector": "high"}]},
    "a vector that is too high": {"steps": [{"op": "phys_interrupt", "vector": 256}]},
    "a step that is no object": {"steps": [7]},
    "an unknown instruction": {"steps": [{"op": "vm_entry"}, {"op": "guest", "insn": "fly"}]},
    "an instruction without its operand": {
        "steps": [{"op": "vm_entry"}, {"op": "guest", "insn": "wrmsr"}]
    },
    "an unknown operand": {
        "steps": [{"op": "vm_entry"}, {"op": "guest", "insn": "nop", "speed": 1}]
    },
    "a guest instruction in root mode": {"steps": [{"op": "guest", "insn": "nop"}]},
    "an unknown agent": {"steps": [{"op": "post", "agent": "postman", "vectors": [1]}]},
    "an unknown control": {"setup": {"controls": {"fast": 1}}},
    "a control that is no switch": {"setup": {"controls": {"hlt_exiting": 2}}},
    "an unknown section": {"setup": {"weather": {}}},
    "a section of a wrong type": {"setup": {"vmcs": 3}},
    "an unknown activity": {"setup": {"guest": {"activity": "asleep"}}},
    "an unknown handler": {"setup": {"handler": "none"}},
    "an unknown exit reason": {"expect": {"exits": [{"reason": "BOREDOM"}]}},
    "a reason with another's code": {"expect": {"exits": [{"reason": "HLT", "code": 1}]}},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_a_case_says_and_nobody_understands_is_a_failure_with_a_reason(tmp_path, name):
    result = run_file(written(tmp_path, GOOD | {"cases": [CASE | MALFORMED[name]]}))
    assert result.failed == 1
    assert result.cases[0].why


def test_free_form_groups_fail_on_sentences_they_do_not_know():
    from emulator.conformance.runner import run_case

    defaults = json.loads(GOLDEN.read_text())["defaults"]
    case = Case(
        id="a", group="", title="", defaults=defaults, setup={}, steps=[], expect={"rvi": 0}
    )
    for group, steps, expect in (
        ("interleaving", [["T", "whistle"]], {"nv_sent": 0}),
        ("interleaving", [["S", "set PIR[0x51], whistle"]], {"nv_sent": 0}),
        ("interleaving", ["ack NV"], {"nv_sent": 0}),
        ("kvm_selftests", [{"n": 1, "do": "whistle"}], {"received_total": 0}),
        ("kvm_selftests", [{"cpu": 0, "loop": ["whistle"]}], {"per_ipi": {}}),
        ("kvm_selftests", [{"mode": "xapic", "write": "?", "read": "?"}], {"all": "as listed"}),
        ("kvm_selftests", [{"whistle": 1}], {"received_total": 0}),
        ("lapic", [{"op": "whistle"}], {"received": {"0": 0}}),
        ("lapic", [{"op": "icr", "value": 0, "dest": "nowhere"}], {"received": {"0": 0}}),
    ):
        result = run_case(replace(case, group=group, steps=steps, expect=expect))
        assert not result.ok
        assert result.why.startswith("not understood")
