"""The user's mistakes in a config: where each one is, what was found, what is allowed.

All mistakes of a file are collected in one pass and raised together.  A message names file, line
and column as compilers do, so editors can jump there, and repeats the line with a caret.
Imports nothing of ours: everything in this room reports through it.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MISTAKES_MAX: Final = 50  # printed; the rest is counted
LINE_MAX: Final = 100  # characters of a source line shown around the caret
GOT_MAX: Final = 60  # characters of a wrong value repeated in a message
ALLOWED_MAX: Final = 24  # names listed in a message

Path = tuple[str | int, ...]


class ConfigError(Exception):
    """A config that cannot be run.  `str()` is the complete message, a paragraph a mistake."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file, or in a `-s` override."""

    where: str  # the file's name, or `-s key=value`
    line: int = 0  # from 1; 0: an override, or the file as a whole
    column: int = 0  # from 1, in characters
    source: str = ""  # the line's text, empty if there is none to show
    override: bool = False  # `where` says it all

    def __str__(self) -> str:
        return f"{self.where}:{self.line}:{self.column}" if self.line else self.where

    def right(self, characters: int) -> "Mark":
        """The mark so many characters further on the same line."""
        return Mark(self.where, self.line, self.column + characters, self.source)


@dataclass(slots=True)
class Mistakes:
    """What has been found wrong so far, each thing once."""

    found: dict[tuple[Mark, str], None] = field(default_factory=dict)  # an ordered set

    def add(self, mark: Mark, text: str) -> None:
        """`text` is the sentence after the position."""
        self.found.setdefault((mark, text))

    def raise_if_any(self) -> None:
        """Raise them all as one `ConfigError`, file by file and line by line."""
        if not self.found:
            return
        # Stable: overrides (line 0) and equal places keep the order in which they were found.
        ordered = sorted(self.found, key=lambda m: (m[0].where, m[0].line, m[0].column))
        paragraphs = [_paragraph(mark, text) for mark, text in ordered[:MISTAKES_MAX]]
        if len(ordered) > MISTAKES_MAX:
            paragraphs.append(f"... and {len(ordered) - MISTAKES_MAX} more")
        raise ConfigError("\n\n".join(paragraphs))


def _paragraph(mark: Mark, text: str) -> str:
    """One mistake: position, sentence, source line, caret."""
    head = f"{mark}: {text}"
    if not mark.source:
        return head
    start = max(0, mark.column - 1 - LINE_MAX * 3 // 4) if len(mark.source) > LINE_MAX else 0
    shown = mark.source[start : start + LINE_MAX].rstrip()
    before = mark.source[start : mark.column - 1]
    # A tab stays a tab and a wide character takes two places, so that the caret is below its
    # character in any terminal.
    gap = "".join("\t" if c == "\t" else " " * _width(c) for c in before)
    return f"{head}\n    {shown}\n    {gap}^"


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def spell(path: Path) -> str:
    """A path as `-s` and `matrix:` write it."""
    return ".".join(str(part) for part in path)


def got(value: Any) -> str:
    """A wrong value, as YAML writes it, cut to a line."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case dict():
            return "a mapping"
        case list():
            return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= GOT_MAX else text[: GOT_MAX - 3] + "..."


def allowed(names: Iterable[str]) -> str:
    """The end of a sentence that says what could stand here."""
    listed = list(names)
    more = f", ... ({len(listed)} in all)" if len(listed) > ALLOWED_MAX else ""
    return "allowed: " + (", ".join(listed[:ALLOWED_MAX]) + more if listed else "none here")


def instead(wrong: str, names: Sequence[str]) -> str:
    """`did you mean 'rule'? allowed: ...` for a misspelt name."""
    import difflib  # only for those who make mistakes

    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return hint + allowed(names)
