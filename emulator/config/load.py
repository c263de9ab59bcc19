"""A file and its overrides to an experiment, and an experiment back to a file.

    read, extends, -s   ->  one tree of nodes            config/tree.py
    matrix              ->  a tree for each cell         here
    check, exclude      ->  plain values                 config/shape.py, config/schema.py
    resolve             ->  a `Cell`                     config/resolve.py

Every cell is checked on its own, so a value that a matrix provides may be missing from the base.
All mistakes of all cells are raised together, each once.  Next: `cli` runs the cells.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from emulator.config.errors import ConfigError, Mark, Mistakes, Path, allowed, got
from emulator.config.hypervisor import fill_preset, given_keys
from emulator.config.model import Cell, Experiment
from emulator.config.resolve import meets, resolve
from emulator.config.schema import AXIS_ROOTS, EXPERIMENT
from emulator.config.shape import check, render
from emulator.config.tree import PATH_KEYED, PathError, Report, canonical, override, put, read
from emulator.config.yaml12 import Node, dump

CELLS_MAX: Final = 1000  # of a matrix, before `exclude`
_OMITTED: Final = object()


@dataclass(frozen=True, slots=True)
class _Axis:
    """One key of the matrix."""

    text: str  # as written
    path: tuple[str, ...]
    values: list[Node]
    mark: Mark


def load_experiment(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that a file describes, with `key.path=value` overrides.

    ConfigError with every mistake, each with its place.
    """
    mistakes = Mistakes()
    source = read(os.fspath(path), mistakes)
    root = override(source.root, overrides, mistakes)
    axes = _axes(root, mistakes)
    cells, documents = _cells(root, axes, mistakes)
    mistakes.raise_if_any()
    if not cells:
        raise ConfigError(f"{os.fspath(path)}: exclude: leaves no cell of the matrix")
    return Experiment(
        name=cells[0].name,
        question=cells[0].question,
        matrix=bool(axes),
        cells=tuple(cells),
        path=os.fspath(path),
        source=source.text,
        base_source=source.base_text,
        overrides=tuple(overrides),
        document=_without_preset(_agreed(documents), root, axes, mistakes),
    )


def resolved_yaml(experiment: Experiment) -> str:
    """The experiment as a config with nothing left to default.

    Loaded again it gives an equal experiment.  With a matrix, what differs between the cells is
    left out: the matrix sets it, or it is derived from what the matrix sets.
    """
    return dump(render(EXPERIMENT, experiment.document))


def _agreed(values: list[Any]) -> Any:
    """What all cells' documents have in common."""
    first = values[0]
    if all(value == first for value in values):
        return first
    if all(isinstance(value, dict) for value in values):
        shared = [key for key in first if all(key in value for value in values)]
        both = {key: _agreed([value[key] for value in values]) for key in shared}
        return {key: value for key, value in both.items() if value is not _OMITTED}
    if all(isinstance(value, list) and len(value) == len(first) for value in values):
        items = [_agreed(list(item)) for item in zip(*values, strict=True)]
        return _OMITTED if _OMITTED in items else items
    return _OMITTED


def _without_preset(
    document: dict[str, Any], root: Node, axes: list[_Axis], mistakes: Mistakes
) -> dict[str, Any]:
    """The document without what a preset set, where the matrix varies the preset.

    The cells that are left may agree on a key, and those that `exclude` takes out would get it too.
    """
    if all(axis.path != ("kvm", "preset") for axis in axes):
        return document
    given = given_keys(Report(root, mistakes))
    kvm = {key: value for key, value in document["kvm"].items() if key in given}
    return {**document, "kvm": kvm}


# -- the matrix -----------------------------------------------------------------------------------


def _axes(root: Node, mistakes: Mistakes) -> list[_Axis]:
    """The axes that are right; none without a matrix."""
    assert isinstance(root.value, dict)
    matrix = root.value.get(PATH_KEYED)
    if matrix is None or matrix.value is None:
        return []
    if not isinstance(matrix.value, dict):
        problem = f"must be a mapping of dotted paths to lists, got {got(matrix.value)}"
        mistakes.add(matrix.mark, f"matrix: {problem}")
        return []
    axes: list[_Axis] = []
    seen: dict[Path, str] = {}
    for key, node in matrix.value.items():
        text = str(key)
        if text.startswith("x-"):
            continue
        axis = _axis(root, text, node, mistakes)
        if axis is None:
            continue
        place = canonical(root, axis.path)
        for other, name in seen.items():
            if place[: len(other)] == other or other[: len(place)] == place:
                mistakes.add(node.key, f"matrix: {text} and {name} set the same key")
        seen[place] = text
        axes.append(axis)
    return axes


def _axis(root: Node, text: str, node: Node, mistakes: Mistakes) -> _Axis | None:
    """One axis, or None after reporting."""
    path = tuple(text.split("."))
    if not all(path) or path[0] not in AXIS_ROOTS:
        problem = f"cannot be varied; {allowed(f'{root}.*' for root in AXIS_ROOTS)}"
        mistakes.add(node.key, f"matrix: {text}: {problem}")
        return None
    if path[0] == "load" and (len(path) == 2 or path[2:] == ("name",)):
        # The resolved config has to find the load again, by its name.
        problem = f"{path[1]} must stay the same load; vary its other keys, or load"
        mistakes.add(node.key, f"matrix: {text}: {problem}")
        return None
    if not isinstance(node.value, list) or not node.value:
        given = "an empty list" if node.value == [] else got(node.value)
        mistakes.add(node.mark, f"matrix: {text}: must be a list of values, got {given}")
        return None
    try:
        put(root, path, node.value[0], node.key)
    except PathError as error:
        mistakes.add(node.key, f"matrix: {error}")
        return None
    return _Axis(text, path, node.value, node.key)


def _cells(
    root: Node, axes: list[_Axis], mistakes: Mistakes
) -> tuple[list[Cell], list[dict[str, Any]]]:
    """The cells that `exclude` leaves, and their documents; mistakes of all of them."""
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > CELLS_MAX:
        mistakes.add(axes[0].mark, f"matrix: has {count} cells; allowed: at most {CELLS_MAX}")
        mistakes.raise_if_any()
    cells: list[Cell] = []
    documents: list[dict[str, Any]] = []
    blame = _Blame(count)
    for values in itertools.product(*(axis.values for axis in axes)):
        tree = root
        for axis, value in zip(axes, values, strict=True):
            tree = put(tree, axis.path, value, axis.mark)
        chosen = {axis.text: value.plain() for axis, value in zip(axes, values, strict=True)}
        found = Mistakes()
        report = Report(tree, found)
        document = check(EXPERIMENT, tree, (), found)
        fill_preset(document, report)
        if not _excluded(document, root, axes, report):
            cell = resolve(document, chosen, report)
            if cell is not None:
                cells.append(cell)
                documents.append(document)
        blame.note(found, chosen, values)
    blame.report(mistakes)
    return cells, documents


def _excluded(document: dict[str, Any], root: Node, axes: list[_Axis], report: Report) -> bool:
    """Whether an entry of `exclude` takes this cell out.  Without a matrix nothing does."""
    assert isinstance(root.value, dict)
    entries = root.value.get("exclude")
    if entries is None or entries.value is None or not axes:
        return False
    if not isinstance(entries.value, list):
        problem = f"must be a list of mappings, got {got(entries.value)}"
        report.mistakes.add(entries.mark, f"exclude: {problem}")
        return False
    taken = [
        meets(document, entry, ("exclude", i), report) and entry.value != {}
        for i, entry in enumerate(entries.value)
    ]
    return any(taken)


class _Blame:
    """Which cells have which mistake: said only if it is not all of them."""

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self.found: dict[tuple[Mark, str], list[dict[str, Any]]] = {}
        self.values: set[Mark] = set()  # where the matrix' own values are

    def note(self, found: Mistakes, chosen: dict[str, Any], values: Sequence[Node]) -> None:
        for mistake in found.found:
            self.found.setdefault(mistake, []).append(chosen)
        self.values.update(node.mark for node in values)

    def report(self, mistakes: Mistakes) -> None:
        """Add them to `mistakes`; a value of the matrix needs no word about where it is used."""
        for (mark, text), cells in self.found.items():
            if len(cells) == self.cells or mark in self.values:
                mistakes.add(mark, text)
            else:
                where = ", ".join(f"{path}={value}" for path, value in cells[0].items())
                mistakes.add(mark, f"{text} (in the cell {where})")
