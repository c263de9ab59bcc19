"""An actor's program as a small automaton, unrolled on demand from the generator twin.

An actor's next step depends only on what its steps have returned so far.  Its local state is read
from the suspended generator's frames: position and live locals down the `yield from` chain.  Each
new (local state, result) pair costs one replay of the generator from its start; it is remembered,
and from then on the search moves integers about.

What makes it sound are the coding rules (`lint`), and, as a second line, an assertion at each
merge: where two histories have led to the same local state, both are replayed with each result,
and must lead to the same next one.
"""

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import CodeType
from typing import Any, Final

from emulator.checker.lint import KINDS
from emulator.checker.twin import Step, TwinFunction, twin
from emulator.hardware.cpu import Kind
from emulator.kvm.params import Kvm

DONE: Final = 0  # the node of a program that has returned
WARN_ON: Final = "WARN_ON"  # the `op` of a node where an assertion of the text has failed
MAX_NODES: Final = 1 << 12  # node numbers are packed into this many values

_NO_FALL_THROUGH: Final = ("RETURN_V", "RETURN_C", "RERAISE", "RAISE", "JUMP_F", "JUMP_B")

_Local = tuple[object, ...]
_Generator = Generator[Step, Any, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """A local state: about to do `op(*args)`.  `functions` is the call chain, outermost first."""

    op: str
    args: tuple[Any, ...]
    kind: Kind
    functions: tuple[str, ...]
    line: str  # "emulator/kvm/deliver.py:31"


@dataclass(frozen=True, slots=True)
class _Origin:
    """How a node was first reached: the replay recipe."""

    entry: tuple[Any, ...]  # (function, *arguments)
    results: tuple[Any, ...]


class _Constants:
    """The twin's `cpu`: all that is left of it is the constant attribute `kvm`."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm


class Automaton:
    """The programs of all actors under one `Kvm`; node numbers are shared by all of them."""

    def __init__(self, kvm: Kvm, functions: dict[str, TwinFunction] | None = None) -> None:
        self.kvm = kvm
        self.replays = 0
        self.nodes: list[Node | None] = [None]  # by number; DONE has none
        self._functions = twin() if functions is None else functions
        self._cpu = _Constants(kvm)
        self._numbers: dict[_Local, int] = {}
        self._origins: list[_Origin] = [_Origin((), ())]
        self._other: dict[int, _Origin] = {}  # a second history that leads to the same node
        self._entries: dict[tuple[Any, ...], int] = {}
        self._edges: dict[tuple[int, Any], int] = {}

    def entry(self, function: str, *args: object) -> int:
        """The node at which `function(cpu, *args)` starts."""
        key = (function, *args)
        node = self._entries.get(key)
        if node is None:
            node = self._entries[key] = self._replay(_Origin(key, ()))
        return node

    def next(self, node: int, result: object) -> int:
        """The node after `node`, whose step returned `result`."""
        key = (node, result)
        after = self._edges.get(key)
        if after is None:
            after = self._edges[key] = self._replay(_longer(self._origins[node], result))
            if node in self._other:
                again = self._replay(_longer(self._other[node], result))
                assert again == after, (
                    f"one local state, two futures: {self.nodes[node]} returned {result!r}, then "
                    f"{self.nodes[after]} or {self.nodes[again]}"
                )
        return after

    def _replay(self, origin: _Origin) -> int:
        self.replays += 1
        function, *args = origin.entry
        generator = self._functions[function](self._cpu, *args)
        try:
            step = next(generator)
            for result in origin.results:
                step = generator.send(result)
        except StopIteration:
            return DONE
        except AssertionError as warning:
            local, node = _warning(warning)
        else:
            local, node = _suspended(generator, step)
        number = self._numbers.get(local)
        if number is None:
            number = self._numbers[local] = len(self.nodes)
            assert number < MAX_NODES, "an actor has more local states than a node number can say"
            self.nodes.append(node)
            self._origins.append(origin)
        elif self._origins[number] != origin:
            self._other.setdefault(number, origin)
        generator.close()
        return number


def _warning(warning: AssertionError) -> tuple[_Local, Node]:
    """A WARN_ON() of the text has fired: a node at which the checker stops."""
    frame = warning.__traceback__
    assert frame is not None
    while frame.tb_next is not None:
        frame = frame.tb_next
    code = frame.tb_frame.f_code
    line = f"{code.co_filename}:{frame.tb_lineno}"
    return (WARN_ON, line), Node(WARN_ON, (), Kind.LOCAL, (code.co_name,), line)


def _longer(origin: _Origin, result: object) -> _Origin:
    return _Origin(origin.entry, (*origin.results, result))


def _suspended(generator: _Generator, step: Step) -> tuple[_Local, Node]:
    """(local state, node) of a generator that stands at a step."""
    chain: list[object] = []
    functions: list[str] = []
    inner: Any = generator
    while inner is not None:
        frame = inner.gi_frame
        code = frame.f_code
        position = _places(code)[frame.f_lasti // 2]
        kept = tuple(
            (name, _immutable(value)) for name, value in frame.f_locals.items() if name != "cpu"
        )
        chain.append((code.co_filename, code.co_name, position, kept))
        functions.append(code.co_name)
        line = f"{code.co_filename}:{position[0]}"
        inner = inner.gi_yieldfrom
    # The arguments are part of the state: the locals they came from may be dead by now.
    chain.append(tuple(_immutable(value) for value in step))
    op, *args = step
    return tuple(chain), Node(op, tuple(args), KINDS[op], tuple(functions), line)


def _immutable(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(_immutable(v) for v in value)
    assert value is None or isinstance(value, int | str | Enum | frozenset), (
        f"a mutable local: {value!r}"
    )
    return value


@cache
def _places(code: CodeType) -> tuple[tuple[int, int], ...]:
    """For each code unit, its (line, column).

    The place and not the offset, since the compiler may lay out one expression twice (`while`).
    """
    return tuple((line or 0, column or 0) for line, _, column, _ in code.co_positions())
