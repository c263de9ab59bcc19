"""YAML text to a tree whose every node knows its place, and back.

YAML 1.2 core schema: `on`, `yes`, `off`, `no` and `1:30` are strings, `012` is twelve, `0o17` and
`0x41` are integers; no merge keys, no tags of one's own.  Duplicate keys are mistakes.  Everything
is bounded before it is expanded: the file's size, its depth, the nodes that aliases unfold into.
PyYAML scans and composes; its constructors, which know no places, are not used.
Next: `config/load.py` puts trees together, `config/shape.py` checks them.
"""

import io
import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import yaml
from yaml.composer import Composer
from yaml.emitter import Emitter
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.representer import SafeRepresenter
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner
from yaml.serializer import Serializer

from emulator.config.errors import Mark, Mistakes

FILE_BYTES_MAX: Final = 256 * 1024  # a config is a page; PyYAML reads about 0.2 MB a second
DEPTH_MAX: Final = 24  # a config's own nesting is 5
NODES_MAX: Final = 20_000  # after aliases have been followed

Key = str | int
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands.  `key` is where its key stands (or the value, in a list)."""

    value: "Scalar | dict[Key, Node] | list[Node]"
    mark: Mark
    key: Mark
    style: str = ""  # of a scalar: its quote, or `|` or `>`; positions inside depend on it

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def inside(self, offset: int) -> Mark:
        """The mark of a character of a text that stands on one line, else the text's own."""
        start = self.mark.source[self.mark.column - 1 : self.mark.column]
        if self.style in ("|", ">") or start in ("", "&", "!"):  # an anchor or a tag comes first
            return self.mark
        return self.mark.right(offset + len(self.style))


class _Core(BaseResolver):
    """Scalars of the YAML 1.2 core schema (YAML 1.2.2, section 10.3.2)."""


_NULL, _BOOL, _INT, _FLOAT, _STR = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")
)
_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what ends a line for PyYAML
for _tag, _pattern, _first in (
    (_NULL, r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    (_BOOL, r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    (_INT, r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        _FLOAT,
        (
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
):
    _Core.add_implicit_resolver(_tag, re.compile(_pattern), _first)


class _Loader(Reader, Scanner, Parser, Composer, _Core):
    """PyYAML up to the node graph, and no deeper than DEPTH_MAX."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Core.__init__(self)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As PyYAML's, which recurses until Python's stack ends."""
        self.depth += 1
        if self.depth > DEPTH_MAX:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            problem = f"nested more than {DEPTH_MAX} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse(text: str, origin: Mark, mistakes: Mistakes) -> Node | None:
    """The document's root, or None if there is none to speak of; mistakes are added.

    `origin` is a file, whose nodes get lines and columns, or an override, whose nodes share it.
    """
    lines = _Lines(text, origin)
    try:
        root: Any = _Loader(text).get_single_node()
    except ReaderError as error:
        before = text[: error.position]
        mark = lines.mark(before.count("\n"), len(before) - before.rfind("\n") - 1)
        problem = f"not text: it has the character U+{ord(text[error.position]):04X}"
        mistakes.add(Mark(mark.where, mark.line, mark.column), problem)
        return None
    except yaml.MarkedYAMLError as error:
        place: Any = error.problem_mark or error.context_mark
        told = ", ".join(part for part in (error.context, error.problem) if part)
        mistakes.add(lines.mark(place.line, place.column), f"not YAML: {told}")
        return None
    except (ValueError, OverflowError) as error:  # an escape such as "\Uffffffff"
        mistakes.add(lines.mark(0, 0), f"not YAML: {error}")
        return None
    if root is None:
        return None
    try:
        return _Tree(lines, mistakes).node(root, None, 0)
    except _TooLargeError as error:
        mistakes.add(error.args[0], error.args[1])
        return None


class _TooLargeError(Exception):
    """Unfolding stopped at a limit."""


class _Lines:
    """Where things are in a text.  In an override everything is where the override is."""

    def __init__(self, text: str, origin: Mark) -> None:
        self.origin = origin
        self.lines = _BREAK.split(text)

    def mark(self, line: int, column: int) -> Mark:
        """Line and column from 0, as PyYAML counts them."""
        if self.origin.override:
            return self.origin
        source = self.lines[line] if line < len(self.lines) else ""
        return Mark(self.origin.where, line + 1, column + 1, source)


class _Tree:
    """PyYAML's nodes, a graph because of aliases, unfolded into ours."""

    def __init__(self, lines: _Lines, mistakes: Mistakes) -> None:
        self.lines, self.mistakes = lines, mistakes
        self.nodes = 0

    def mark(self, node: yaml.Node) -> Mark:
        return self.lines.mark(node.start_mark.line, node.start_mark.column)

    def refuse(self, node: yaml.Node, problem: str) -> NoReturn:
        raise _TooLargeError(self.mark(node), problem)

    def node(self, node: yaml.Node, key: Mark | None, depth: int) -> Node:
        """One node and all below it."""
        self.nodes += 1
        if self.nodes > NODES_MAX:
            self.refuse(node, f"aliases unfold into more than {NODES_MAX} values")
        if depth > DEPTH_MAX:  # only an alias to a node around itself gets here
            self.refuse(node, "an alias stands inside its own anchor")
        mark = self.mark(node)
        place = key or mark
        if isinstance(node, yaml.MappingNode):
            return Node(self.mapping(node, depth), mark, place)
        if isinstance(node, yaml.SequenceNode):
            items = [self.node(item, None, depth + 1) for item in node.value]
            return Node(items, mark, place)
        assert isinstance(node, yaml.ScalarNode)
        return Node(self.scalar(node), mark, place, node.style or "")

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[Key, Node]:
        result: dict[Key, Node] = {}
        for key_node, value_node in node.value:
            mark = self.mark(key_node)
            key = self.scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if isinstance(key, bool) or not isinstance(key, str | int):
                self.mistakes.add(mark, "a key must be a name or an integer")
            elif key in result:
                first = result[key].key.line
                self.mistakes.add(mark, f"key {key!r} is there twice, first in line {first}")
            else:
                result[key] = self.node(value_node, mark, depth + 1)
        return result

    def scalar(self, node: yaml.ScalarNode) -> Scalar:
        text: str = node.value
        match node.tag:
            case "tag:yaml.org,2002:null":
                return None
            case "tag:yaml.org,2002:bool":
                return text.lower() == "true"
            case "tag:yaml.org,2002:int":
                base = {"0x": 16, "0o": 8}.get(text[:2], 10)
                # Python refuses to convert thousands of digits; no value here has 20.
                return int(text, base) if len(text) <= 40 else float("inf")
            case "tag:yaml.org,2002:float":
                return float(text.replace(".inf", "inf").replace(".nan", "nan"))
            case "tag:yaml.org,2002:str":
                if any("\ud800" <= character <= "\udfff" for character in text):
                    self.mistakes.add(self.mark(node), "half a surrogate pair is no text")
                return text
        self.mistakes.add(self.mark(node), f"tag {node.tag!r} means nothing here")
        return None


class Hex(int):
    """An integer that is written in hexadecimal: a vector."""


class _Dumper(Emitter, Serializer, SafeRepresenter, _Core):
    """PyYAML's writer, which quotes what *this* reader would not take for a string."""

    def __init__(self, stream: io.StringIO) -> None:
        Emitter.__init__(self, stream, width=100, allow_unicode=True)
        Serializer.__init__(self)
        SafeRepresenter.__init__(self, sort_keys=False)
        # None: leaves on one line, the rest in blocks.  (types-PyYAML knows only bool here.)
        self.default_flow_style = None  # type: ignore[assignment]
        _Core.__init__(self)

    def ignore_aliases(self, data: Hashable) -> bool:
        """Write equal things twice: the reader should not have to follow anchors."""
        return True


def _represent_hex(dumper: SafeRepresenter, value: Hex) -> yaml.ScalarNode:
    return dumper.represent_scalar(_INT, hex(value))


_Dumper.add_representer(Hex, _represent_hex)


def dump(plain: dict[str, Any]) -> str:
    """YAML text of dicts, lists and scalars, leaf collections on one line."""
    stream = io.StringIO()
    dumper = _Dumper(stream)
    dumper.open()
    dumper.represent(plain)
    dumper.close()
    return stream.getvalue()
