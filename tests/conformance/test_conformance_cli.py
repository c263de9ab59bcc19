"""`pirlab conformance FILE`, from outside: codes, one JSON object, one sentence."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent.parent / "golden" / "apicv_cases.json"
DEADLINE_S = 60.0


def conformance(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emulator", "conformance", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def written(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "cases.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def with_one_wrong(folder: Path, group: str) -> tuple[Path, str]:
    """The golden file with one expectation made wrong, and the id of that case."""
    data = golden()
    case = next(case for case in data["cases"] if case["group"] == group)
    case["expect"]["rvi"] += 1
    return written(folder, data), case["id"]


def test_the_golden_file_passes_with_code_0_and_says_how_much_it_was():
    done = conformance(GOLDEN)

    assert done.returncode == 0, done.stderr
    data = golden()
    total = len(data["cases"]) + len(data["matrices"])
    assert f"{total} passed, 0 failed, 0 skipped" in done.stdout
    assert done.stderr == ""


def test_json_is_one_object_of_the_schema_with_every_case_and_matrix_in_it():
    done = conformance(GOLDEN, "--json")

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    data = golden()
    ids = [entry["id"] for entry in data["cases"] + data["matrices"]]
    assert result["schema"] == "pirlab-conformance/1"
    assert [case["id"] for case in result["cases"]] == ids
    assert (result["passed"], result["failed"], result["skipped"]) == (len(ids), 0, 0)
    assert all(case.keys() == {"id", "ok", "why"} for case in result["cases"])
    assert all(case["ok"] is True and case["why"] == "" for case in result["cases"])


def test_a_case_that_fails_is_code_1_and_named_with_its_reason(tmp_path):
    path, name = with_one_wrong(tmp_path, "pi_suite")
    done = conformance(path)

    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith(f"FAILED {name}: rvi:")]
    assert "1 failed" in done.stdout


def test_a_case_that_fails_is_code_1_with_json_too(tmp_path):
    path, name = with_one_wrong(tmp_path, "eoi")
    done = conformance(path, "--json")

    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert [case["id"] for case in result["cases"] if not case["ok"]] == [name]
    assert result["failed"] == 1
    assert all(case["why"] for case in result["cases"] if not case["ok"])


def test_a_case_of_an_unknown_group_fails_and_is_not_skipped(tmp_path):
    data = golden()
    data["cases"][0]["group"] = "unheard-of"
    result = json.loads(conformance(written(tmp_path, data), "--json").stdout)

    assert (result["failed"], result["skipped"]) == (1, 0)
    assert "unheard-of" in result["cases"][0]["why"]


UNUSABLE = {
    "truncated": GOLDEN.read_bytes()[:5000],
    "empty": b"",
    "not JSON": b"cases: []\n",
    "not UTF-8": b'{"format": "\xff"}',
    "of another format": b'{"pirlab": 1}',
    "of an unknown version": json.dumps(golden() | {"format": "apicv-golden-cases/2"}).encode(),
    "without cases": json.dumps(golden() | {"cases": [], "matrices": []}).encode(),
}


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_file_that_cannot_be_used_is_code_2_and_one_sentence_that_names_it(
    tmp_path, name, options
):
    path = tmp_path / "cases.json"
    path.write_bytes(UNUSABLE[name])
    done = conformance(path, *options)

    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr


def test_a_file_that_is_not_there_and_a_directory_are_code_2_and_one_sentence(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        done = conformance(path)

        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert str(path) in done.stderr


def test_live_runs_the_posted_interrupt_cases_and_keeps_codes_and_schema(tmp_path):
    done = conformance(GOLDEN, "--live", "--json")

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    wanted = [c["id"] for c in golden()["cases"] if c["group"] in ("pi_suite", "pi_rules")]
    assert result["schema"] == "pirlab-conformance/1"
    assert [case["id"] for case in result["cases"] if case["ok"]] == wanted

    path, name = with_one_wrong(tmp_path, "pi_suite")
    done = conformance(path, "--live", "--json")
    assert done.returncode == 1
    assert [case["id"] for case in json.loads(done.stdout)["cases"] if not case["ok"]] == [name]


def test_live_refuses_an_unusable_file_with_the_same_sentence(tmp_path):
    path = tmp_path / "cases.json"
    path.write_bytes(UNUSABLE["truncated"])
    live, memory = conformance(path, "--live"), conformance(path)

    assert live.returncode == 2
    assert live.stderr == memory.stderr
