"""Trees of YAML nodes: reading a file, `extends:`, dotted paths and `-s key.path=value`.

A tree is never changed; every operation returns a new one that shares what did not change, and
each node keeps the place it came from, so a mistake is reported where its value was written.
Before: `config/yaml12.py`.  Next: `config/load.py`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as File

from emulator.config.errors import ConfigError, Mark, Mistakes, Path, instead, spell
from emulator.config.shape import element_name
from emulator.config.yaml12 import DEPTH_MAX, FILE_BYTES_MAX, Key, Node, parse

PATH_KEYED = "matrix"  # its keys are dotted paths themselves


@dataclass(frozen=True, slots=True)
class Source:
    """The texts a tree was made from."""

    root: Node
    text: str
    base_text: str | None


class PathError(LookupError):
    """A dotted path that leads nowhere; the sentence starts with the part that is wrong."""


def read(path: str | File, mistakes: Mistakes) -> Source:
    """The file's tree, with the file it extends below it.  ConfigError if there is no tree."""
    text, root = _read_one(str(path), mistakes)
    assert isinstance(root.value, dict)
    extends = root.value.get("extends")
    if extends is None or not isinstance(extends.value, str):  # the latter is reported by `check`
        return Source(root, text, None)
    base_path = os.path.join(os.path.dirname(str(path)), extends.value)  # noqa: PTH118, PTH120
    try:
        base_text, base = _read_one(base_path, mistakes)
    except ConfigError as error:
        mistakes.add(extends.mark, f"extends: {error}")
        mistakes.raise_if_any()
        raise  # unreachable, and says so to the type checker
    assert isinstance(base.value, dict)
    if "extends" in base.value:
        problem = f"{base_path} extends another file itself; only one level is allowed"
        mistakes.add(extends.mark, f"extends: {problem}")
    child = {key: node for key, node in root.value.items() if key != "extends"}
    below = {key: node for key, node in base.value.items() if key != "extends"}
    return Source(_merge(replace(base, value=below), replace(root, value=child)), text, base_text)


def _merge(base: Node, over: Node) -> Node:
    """Mappings key by key; anything else, lists too, is replaced."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    merged = dict(base.value)
    for key, node in over.value.items():
        merged[key] = _merge(merged[key], node) if key in merged else node
    return replace(over, value=merged)


def _read_one(path: str, mistakes: Mistakes) -> tuple[str, Node]:
    """One file's text and root."""
    text = _read_text(path)
    root = parse(text, Mark(path), mistakes)
    mistakes.raise_if_any()
    if root is None or root.value is None:
        raise ConfigError(f"{path}: is empty; a config starts with 'pirlab: 1'")
    if not isinstance(root.value, dict):
        kind = "a list" if isinstance(root.value, list) else "a single value"
        mistakes.add(root.mark, f"must be a mapping that starts with 'pirlab: 1', got {kind}")
        mistakes.raise_if_any()
    return text, root


def _read_text(path: str) -> str:
    """The text of a file that may be a config."""
    try:
        with File(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory, not a config") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise ConfigError(f"{path!r}: cannot be read: {error}") from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: is larger than {FILE_BYTES_MAX // 1024} KiB, the limit")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wrong = f"byte {data[error.start]:#04x} in line {line}"
        raise ConfigError(f"{path}: is not UTF-8 text: {wrong}") from None


def override(root: Node, overrides: Sequence[str], mistakes: Mistakes) -> Node:
    """`root` with each `key.path=value` set, in order.  Wrong ones are reported and left out."""
    for text in overrides:
        mark = Mark(f"-s {text}", override=True)
        key, equals, value_text = text.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            mistakes.add(mark, "must be key.path=value")
            continue
        if path[0] == "extends":
            mistakes.add(mark, "extends: cannot be overridden; name the other file instead")
            continue
        before = len(mistakes.found)
        value = parse(value_text, mark, mistakes) or Node(None, mark, mark)
        if len(mistakes.found) > before:
            continue
        try:
            root = put(root, path, value, mark)
        except PathError as error:
            mistakes.add(mark, str(error))
            continue
        if path[0] != PATH_KEYED:
            root = _drop_axis(root, path)
    return root


def _drop_axis(root: Node, path: Sequence[str]) -> Node:
    """A value given on the command line is meant: the file's matrix no longer varies that key."""
    assert isinstance(root.value, dict)
    matrix = root.value.get(PATH_KEYED)
    if matrix is None or not isinstance(matrix.value, dict):
        return root
    same = canonical(root, path)
    kept = {
        key: node
        for key, node in matrix.value.items()
        if canonical(root, str(key).split(".")) != same
    }
    return replace(root, value={**root.value, PATH_KEYED: replace(matrix, value=kept)})


def put(root: Node, path: Sequence[str], value: Node, mark: Mark) -> Node:
    """`root` with `value` at `path`; `mark` is where the path is written.

    Missing mappings are made (whether their keys exist is for `check` to say); a list's element
    must be there, and is named by its `name` or its index.  PathError if the way is barred.
    """
    if len(path) > DEPTH_MAX:
        raise PathError(f"{path[0]}: more than {DEPTH_MAX} parts in a dotted path")
    if path[0] == PATH_KEYED and len(path) > 1:
        path = (PATH_KEYED, ".".join(path[1:]))
    return _put(root, tuple(path), 0, replace(value, key=mark))


def _put(node: Node, path: tuple[str, ...], at: int, value: Node) -> Node:
    if at == len(path):
        return value
    if isinstance(node.value, list):
        index = _index(node, path, at)
        items = list(node.value)
        items[index] = _put(items[index], path, at + 1, value)
        return replace(node, value=items)
    if node.value is not None and not isinstance(node.value, dict):
        raise PathError(f"{spell(path[:at])}: has nothing below it, so no {path[at]!r}")
    entries = node.value or {}
    key = _key(entries, path[at])
    below = entries.get(key) or Node(None, value.mark, value.key)
    return replace(node, value={**entries, key: _put(below, path, at + 1, value)})


def _key(entries: dict[Key, Node], part: str) -> Key:
    """The key that `part` names: `0` is an integer in `pin`, as it is in a file."""
    return int(part) if part.isdecimal() and len(part) < 10 and part not in entries else part


def _index(node: Node, path: tuple[str, ...], at: int) -> int:
    """Where in a list the element is that a path's part names."""
    assert isinstance(node.value, list)
    names = [str(element_name(item, i)) for i, item in enumerate(node.value)]
    part = path[at]
    if part in names:
        return names.index(part)
    if part.isdecimal() and len(part) < 10 and int(part) < len(names):
        return int(part)
    raise PathError(f"{spell(path[: at + 1])}: no such element; {instead(part, names)}")


def canonical(root: Node, path: Sequence[str]) -> Path:
    """The path with a list's elements by index, so that two spellings compare equal."""
    node: Node | None = root
    result: list[str | int] = []
    for at, part in enumerate(path):
        if node is not None and isinstance(node.value, list):
            try:
                result.append(_index(node, tuple(path), at))
            except PathError:
                return tuple(path)
            node = node.value[int(result[-1])]
        else:
            result.append(part)
            entries = node.value if node is not None and isinstance(node.value, dict) else {}
            node = entries.get(_key(entries, part))
    return tuple(result)


def find(root: Node, path: Path) -> Node:
    """The node at a path of keys, names and indexes, or the last one on the way to it."""
    node = root
    for part in path:
        match node.value:
            case dict() as entries if part in entries:
                node = entries[part]
            case list() as items if isinstance(part, int) and part < len(items):
                node = items[part]
            case _:
                break
    return node


@dataclass(frozen=True, slots=True)
class Report:
    """Where one cell's mistakes go; the tree knows the place of each path."""

    tree: Node
    mistakes: Mistakes

    def add(self, path: Path, problem: str, at_key: bool = False) -> None:
        """Report the value at `path` (or its key), or the nearest one above that is written."""
        node = find(self.tree, path)
        self.mistakes.add(node.key if at_key else node.mark, f"{self.spell(path)}: {problem}")

    def spell(self, path: Path) -> str:
        """The path with list elements by name, where they have one."""
        named = list(path)
        for at, part in enumerate(path):
            if isinstance(part, int):
                named[at] = element_name(find(self.tree, path[: at + 1]), part)
        return spell(tuple(named))
