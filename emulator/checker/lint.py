"""The coding rules of protocol text, without which the checker would be wrong without noticing.

The checker knows an actor's local state as (position, live locals) down its call chain
(`automaton`).  That is the whole state only if nothing hides elsewhere: not on the evaluation
stack, not in an iterator, not in a mutable object, not in a module.  Hence the rules below; they
are checked when the twin is built (`twin`), and each is refused by name.

    one-call     a statement calls `cpu`, or a function that takes `cpu`, at most once:
                 `if cpu.load_a() == cpu.load_b()` would keep the first result on the stack
    loop         `for` has no step inside it (its position is not in a local); `while` has one
    local        nothing mutable is built, and nothing but a local name is assigned
    construct    no try, with, lambda, nested function, comprehension, yield, await, del, global
    call         only `cpu`, protocol functions, pure builtins, and methods of immutable locals
    cpu          `cpu` is the first argument or the object of a call, and nothing else
    step         a method of `Cpu`, with positional arguments
    import       nothing from outside the protocol's rooms: no clock, randomness, socket, memory map
    module       module level holds constants, functions and types
"""

import ast
import builtins
from dataclasses import dataclass
from typing import Final

from emulator.hardware.cpu import KIND_ATTRIBUTE, Kind
from emulator.kvm.cpu import Cpu

KINDS: Final[dict[str, Kind]] = {
    name: getattr(getattr(Cpu, name), KIND_ATTRIBUTE)
    for name in dir(Cpu)
    if hasattr(getattr(Cpu, name), KIND_ATTRIBUTE)
}

IMPORTABLE: Final = ("emulator.events", "emulator.hardware", "emulator.kvm")
STANDARD: Final = ("collections.abc", "dataclasses", "enum", "typing")
PURE_BUILTINS: Final = frozenset({"abs", "bool", "divmod", "int", "len", "max", "min"})
HIDING: Final = (
    *(ast.Try, ast.TryStar, ast.With, ast.AsyncWith, ast.AsyncFor, ast.Await, ast.Yield),
    *(ast.YieldFrom, ast.Lambda, ast.Global, ast.Nonlocal, ast.Import, ast.ImportFrom),
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Delete, ast.GeneratorExp),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.JoinedStr),
)
MUTABLE: Final = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


class ProtocolTextError(Exception):
    """Protocol text breaks a coding rule; the message has one line for each offence."""


@dataclass(frozen=True, slots=True)
class Offence:
    """One broken rule.  `rule` is a name of the table above."""

    filename: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.filename}:{self.line}: {self.rule}: {self.text}"


def is_protocol_function(node: ast.AST) -> bool:
    """True for a function that takes `cpu` as its first argument."""
    return isinstance(node, ast.FunctionDef) and [a.arg for a in node.args.args[:1]] == ["cpu"]


def is_step(node: ast.AST) -> bool:
    """True for `cpu.method(...)`."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "cpu"
    )


def is_protocol_call(node: ast.AST) -> bool:
    """True for `function(cpu, ...)`."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and bool(node.args)
        and isinstance(node.args[0], ast.Name)
        and node.args[0].id == "cpu"
    )


def lint(source: str, filename: str) -> list[Offence]:
    """Every offence in one module of protocol text, in the order of its lines."""
    tree = ast.parse(source, filename)
    found = [
        Offence(filename, line, rule, text)
        for node in tree.body
        for line, rule, text in (
            _function(node)
            if isinstance(node, ast.FunctionDef) and is_protocol_function(node)
            else _module_level(node)
        )
    ]
    return sorted(found, key=lambda offence: offence.line)


Finding = tuple[int, str, str]


def _module_level(node: ast.stmt) -> list[Finding]:
    found: list[Finding] = []
    match node:
        case ast.Import(names=names):
            found += [(node.lineno, "import", f"imports {name.name}") for name in names]
        case ast.ImportFrom(module=module):
            if module not in STANDARD and not (module or "").startswith(IMPORTABLE):
                found.append((node.lineno, "import", f"imports from {module}"))
        case ast.Assign() | ast.AnnAssign():
            if any(isinstance(inner, MUTABLE) for inner in ast.walk(node)):
                found.append((node.lineno, "module", "a mutable object at module level"))
        case ast.FunctionDef():
            if any(isinstance(i, ast.Name) and i.id == "cpu" for i in ast.walk(node)):
                found.append((node.lineno, "cpu", f"{node.name}: `cpu` is not its first argument"))
        case ast.ClassDef() | ast.Expr(value=ast.Constant()):
            pass
        case _:
            found.append((node.lineno, "module", "a statement that is no definition"))
    return found


def _function(function: ast.FunctionDef) -> list[Finding]:
    found: list[Finding] = []
    local = {a.arg for a in function.args.args} | {
        n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.stmt) and node is not function:
            found += _statement(node)
        if isinstance(node, HIDING) and node is not function:
            found.append((_line(node), "construct", f"{type(node).__name__} in protocol text"))
        if isinstance(node, MUTABLE):
            found.append((_line(node), "local", f"{type(node).__name__} is mutable"))
        if isinstance(node, ast.Call):
            found += _call(node, local)
    return found + _uses_of_cpu(function)


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def _own_expressions(node: ast.stmt) -> list[ast.AST]:
    """The expressions that belong to this statement and not to one nested in it."""
    return [
        inner
        for child in ast.iter_child_nodes(node)
        if not isinstance(child, ast.stmt)
        for inner in ast.walk(child)
    ]


def _statement(node: ast.stmt) -> list[Finding]:
    found: list[Finding] = []
    calls = [e for e in _own_expressions(node) if is_step(e) or is_protocol_call(e)]
    if len(calls) > 1:
        found.append((node.lineno, "one-call", f"{len(calls)} steps or calls in one statement"))
    inside = [n for n in ast.walk(node) if is_step(n) or is_protocol_call(n)]
    if isinstance(node, ast.For) and inside:
        found.append((node.lineno, "loop", "a step inside `for`: write `while` with a local"))
    if isinstance(node, ast.While) and not inside:
        found.append((node.lineno, "loop", "`while` without a step inside"))
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    for target in targets:
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        if not all(isinstance(name, ast.Name) for name in names):
            found.append((node.lineno, "local", "assigns to what is no local"))
    return found


def _call(node: ast.Call, local: set[str]) -> list[Finding]:
    if is_step(node):
        assert isinstance(node.func, ast.Attribute)
        if node.func.attr not in KINDS:
            return [(node.lineno, "step", f"cpu.{node.func.attr} is no method of Cpu")]
        if node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            return [(node.lineno, "step", f"cpu.{node.func.attr}: positional arguments only")]
        return []
    match node.func:
        case ast.Name(id=name):
            if hasattr(builtins, name) and name not in PURE_BUILTINS:
                return [(node.lineno, "call", f"{name}() is not for protocol text")]
            if name in local:
                return [(node.lineno, "call", f"{name} is a local")]
        case ast.Attribute() as attribute:
            root: ast.expr = attribute
            while isinstance(root, ast.Attribute):
                root = root.value
            if not (isinstance(root, ast.Name) and root.id in local and root.id != "cpu"):
                return [(node.lineno, "call", f"{ast.unparse(attribute)}() is not a step")]
        case _:
            return [(node.lineno, "call", "what is called has no name")]
    return []


def _uses_of_cpu(function: ast.FunctionDef) -> list[Finding]:
    """`cpu` may stand before a dot, and first in a call; anything else would smuggle it away."""
    proper = {id(n.value) for n in ast.walk(function) if isinstance(n, ast.Attribute)}
    proper |= {
        id(n.args[0]) for n in ast.walk(function) if isinstance(n, ast.Call) and is_protocol_call(n)
    }
    attributes = {id(n.func) for n in ast.walk(function) if isinstance(n, ast.Call)}
    found = [
        (_line(n), "cpu", "`cpu` is used as a value")
        for n in ast.walk(function)
        if isinstance(n, ast.Name) and n.id == "cpu" and id(n) not in proper
    ]
    return found + [
        (_line(n), "cpu", f"cpu.{n.attr} is taken without being called")
        for n in ast.walk(function)
        if isinstance(n, ast.Attribute)
        and isinstance(n.value, ast.Name)
        and n.value.id == "cpu"
        and n.attr != "kvm"
        and id(n) not in attributes
    ]
