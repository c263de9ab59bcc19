"""A golden-case file, read and checked once; everything behind it may trust its shape.

Wrong files are the user's mistake: `ConformanceError`, one sentence.  What a *case* says is not
judged here.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FORMAT: Final = "apicv-golden-cases/1"
BYTES_MAX: Final = 64 << 20


class ConformanceError(Exception):
    """The file cannot be run.  One sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case.  `defaults` is the file's; `setup` is merged over it."""

    id: str
    group: str
    title: str
    defaults: dict[str, Any]
    setup: dict[str, Any]
    steps: list[Any]
    expect: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One matrix: a truth table or the digest of a sweep, as the file has it."""

    id: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The file."""

    cases: list[Case]
    matrices: list[Matrix]


def load(path: Path | str) -> Document:
    """Read `path`.  `ConformanceError` if there is no such file or it is not of this format."""
    data = _parse(Path(path))
    if not isinstance(data, dict):
        raise ConformanceError(f"{path}: not a golden-case file: the top level is not an object")
    if data.get("format") != FORMAT:
        raise ConformanceError(
            f"{path}: format is {data.get('format')!r}, this version reads {FORMAT!r}"
        )
    defaults = data.get("defaults")
    if not isinstance(defaults, dict):
        raise ConformanceError(f"{path}: 'defaults' is missing or not an object")
    cases = [_case(path, entry, defaults) for entry in _entries(path, data, "cases")]
    matrices = [
        Matrix(id=_id(path, entry, "matrices"), data=entry)
        for entry in _entries(path, data, "matrices")
    ]
    if not cases and not matrices:
        raise ConformanceError(f"{path}: no cases and no matrices")
    ids = Counter([case.id for case in cases] + [matrix.id for matrix in matrices])
    name, times = ids.most_common(1)[0]
    if times > 1:
        raise ConformanceError(f"{path}: id {name!r} stands {times} times")
    return Document(cases=cases, matrices=matrices)


def _parse(path: Path) -> Any:
    try:
        if path.stat().st_size > BYTES_MAX:
            raise ConformanceError(f"{path}: larger than {BYTES_MAX >> 20} MiB")
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConformanceError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise ConformanceError(f"{path}: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConformanceError(f"{path}: not JSON: {error.msg} at {where}") from error
    except RecursionError as error:
        raise ConformanceError(f"{path}: nested too deep") from error
    except ValueError as error:  # an integer literal of thousands of digits, a path with NUL
        raise ConformanceError(f"{path}: cannot be read: {error}") from error


def _entries(path: Path | str, data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = data.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConformanceError(f"{path}: {key!r} is not a list of objects")
    return entries


def _id(path: Path | str, entry: dict[str, Any], key: str) -> str:
    name = entry.get("id")
    if not isinstance(name, str) or not name:
        raise ConformanceError(f"{path}: an entry of {key!r} has no id")
    return name


def _case(path: Path | str, entry: dict[str, Any], defaults: dict[str, Any]) -> Case:
    name = _id(path, entry, "cases")
    for key, kind in (("group", str), ("setup", dict), ("steps", list), ("expect", dict)):
        if not isinstance(entry.get(key), kind):
            raise ConformanceError(f"{path}: case {name!r}: {key!r} is missing or has a wrong type")
    return Case(
        id=name,
        group=entry["group"],
        title=str(entry.get("title", "")),
        defaults=defaults,
        setup=entry["setup"],
        steps=entry["steps"],
        expect=entry["expect"],
    )
