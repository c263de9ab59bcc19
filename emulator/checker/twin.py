"""The generator twin of the protocol text: the same functions, stopping at each call on `cpu`.

An AST pass turns `cpu.step(...)` into `(yield ("step", ...))` and a call of one protocol function
by another into `yield from`.  Nothing else changes and line numbers survive, so that a
counterexample can quote the source.  The live engine never sees the twin.
Next: `automaton` drives the twin and learns its local states.
"""

import ast
import hashlib
import inspect
from collections.abc import Callable, Generator
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import emulator.hardware.posted
import emulator.hardware.senders
import emulator.kvm.apicv
import emulator.kvm.block
import emulator.kvm.deliver
import emulator.kvm.irq
import emulator.kvm.pid
import emulator.kvm.sched
import emulator.kvm.sync
import emulator.kvm.timer
import emulator.kvm.vcpu
import emulator.kvm.wake
from emulator.checker.lint import ProtocolTextError, is_protocol_call, is_step, lint

PROTOCOL: tuple[ModuleType, ...] = (
    emulator.hardware.posted,
    emulator.hardware.senders,
    emulator.kvm.wake,
    emulator.kvm.sync,
    emulator.kvm.apicv,
    emulator.kvm.deliver,
    emulator.kvm.timer,
    emulator.kvm.irq,
    emulator.kvm.pid,
    emulator.kvm.sched,
    emulator.kvm.block,
    emulator.kvm.vcpu,
)

Step = tuple[Any, ...]  # (method of Cpu, *arguments)
TwinFunction = Callable[..., Generator[Step, Any, Any]]


class _Twin(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.expr:
        if is_step(node):
            assert isinstance(node.func, ast.Attribute)
            step = ast.Tuple([ast.Constant(node.func.attr), *node.args], ast.Load())
            return self._at(node, ast.Yield(step))
        if is_protocol_call(node):
            return self._at(node, ast.YieldFrom(node))
        self.generic_visit(node)
        return node

    @staticmethod
    def _at(old: ast.Call, new: ast.expr) -> ast.expr:
        return ast.fix_missing_locations(ast.copy_location(new, old))


def source_of(module: ModuleType) -> tuple[str, str]:
    """(source text, path as it stands in the project) of a protocol module."""
    return inspect.getsource(module), module.__name__.replace(".", "/") + ".py"


@cache
def source_hash() -> str:
    """Names the protocol text that a saved counterexample was found in."""
    digest = hashlib.sha256()
    for module in PROTOCOL:
        digest.update(source_of(module)[0].encode())
    return digest.hexdigest()[:16]


def build_twin(modules: tuple[ModuleType, ...]) -> dict[str, TwinFunction]:
    """The twin functions by name.  Raises ProtocolTextError if the text breaks a coding rule."""
    offences = [str(o) for module in modules for o in lint(*source_of(module))]
    if offences:
        raise ProtocolTextError("\n".join(offences))
    functions: dict[str, TwinFunction] = {}
    spaces: list[dict[str, Any]] = []
    originals: dict[FunctionType, str] = {}
    for module in modules:
        source, path = source_of(module)
        tree = _Twin().visit(ast.parse(source, path))
        space: dict[str, Any] = {"__name__": module.__name__}
        exec(compile(tree, path, "exec"), space)  # noqa: S102 - our own source, transformed
        spaces.append(space)
        for name, original in vars(module).items():
            if isinstance(original, FunctionType) and original.__module__ == module.__name__:
                assert name not in functions, f"two protocol functions are called {name}"
                functions[name] = space[name]
                originals[original] = name
    for space in spaces:  # what a module imported from another is to be the twin, too
        for name, value in space.items():
            if isinstance(value, FunctionType) and value in originals:
                space[name] = functions[originals[value]]
    return functions


@cache
def twin() -> dict[str, TwinFunction]:
    """The twin of the whole protocol text."""
    return build_twin(PROTOCOL)
