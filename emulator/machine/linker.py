"""The protocol text as a run executes it: its constants decided, its steps inlined.

The kernel compiles `static inline` functions and patches jump labels at boot; CPython does neither,
and a call costs it as much as a dozen instructions.  So what a pCPU runs is linked first, once a
run, by two rewritings of the same text (`kvm/`, `hardware/posted`) over the same steps (`LiveCpu`):

    jump labels  `cpu.kvm.X` is a constant of the run; tests of it are decided, dead branches go
    inlining     a small step or text function takes the place of its call

No step is added, dropped or moved, and whatever is not plainly inlinable stays a call.  Lines stay
those of the text, so a traceback names them.  The checker explores the text as it stands in the
files; `tests/machine/test_machine_linker.py` holds the linked text against it, step by step.
Before: `kvm/`, `hardware/posted`.  Next: `pcpu` calls what `link_text()` returns.
"""

import ast
import builtins
import inspect
import sys
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, Final, NamedTuple, cast

from emulator.guest.program import INSTRUCTIONS, Guest, Instructions
from emulator.kvm.irq import do_irq
from emulator.kvm.params import Kvm
from emulator.kvm.vcpu import vcpu_run
from emulator.machine.inliner import Body, Scope, class_of_first, text_function
from emulator.machine.syntax import at, copied, instance, statements_of

_PLAIN: Final = (int, str, bytes, bool, type(None))  # what compile() takes as a constant
_STATEMENTS: Final = (
    ast.If, ast.While, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.Expr, ast.Assert,
    ast.Pass, ast.Break, ast.Continue,
)  # fmt: skip
_OTHER_NAMES: Final = (  # expressions with names of their own, or that leave and come back
    ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.NamedExpr,
    ast.Yield, ast.YieldFrom, ast.Await,
)  # fmt: skip


_NEVER_CHANGE: Final = (
    ("words_of_vcpu", "cpu.words[vcpu]"),
    ("desc_of_vcpu", "words_of_vcpu.desc"),
)


class Text(NamedTuple):
    """What a pCPU executes: `vcpu_run(cpu, vcpu)`, `do_irq(cpu, vector)`, its guests' code."""

    vcpu_run: Callable[[Any, int], None]
    do_irq: Callable[[Any, int], None]
    instructions: Instructions


PLAIN: Final = Text(vcpu_run, do_irq, INSTRUCTIONS)  # as it stands in the files

_linked: dict[tuple[type, Kvm], Text] = {}


def link_text(cpu_class: type, kvm: Kvm) -> Text:
    """The text for pCPUs of this class under `kvm`; linked once a process."""
    key = (cpu_class, kvm)
    if key not in _linked:
        linker = Linker(cpu_class, kvm)
        _linked[key] = Text(
            linker.function(vcpu_run),
            linker.function(do_irq),
            {op: linker.function(text, Guest) for op, text in INSTRUCTIONS.items()},
        )
    return _linked[key]


class Linker:
    """The functions linked so far, and the namespace that they share."""

    def __init__(self, cpu_class: type, kvm: Kvm) -> None:
        self.cpu_class = cpu_class
        self.kvm = kvm
        self._namespace: dict[str, Any] = {"__builtins__": builtins}
        self._bodies: dict[FunctionType, Body | None] = {}
        self._serial = 0

    def function(self, text: Callable[..., Any], owner: type | None = None) -> Callable[..., Any]:
        """Link a function and all that it calls.  `owner`: the class of its first argument."""
        name = self.name_of(cast(FunctionType, text), owner or self.cpu_class)
        return cast(Callable[..., Any], self._namespace[name])

    def serial(self) -> int:
        self._serial += 1
        return self._serial

    def name_of(self, function: FunctionType, owner: type) -> str:
        """The linked function's name in the namespace; links it on first sight."""
        name = f"{function.__module__.replace('.', '_')}__{function.__name__}"
        if name not in self._namespace:
            self._namespace[name] = function  # for the case of recursion
            body = self.body(function, owner)
            if body is not None:
                self._namespace[name] = self._compile(function, name, body.tree)
        return name

    def constant(self, value: object) -> str:
        """A name in the namespace for a value that compile() takes for no constant."""
        name = f"constant_{id(value)}"
        self._namespace[name] = value
        return name

    def body(self, function: FunctionType, owner: type) -> Body | None:
        """The function with its constants decided and its calls inlined; None: leave it alone.

        `owner`: the class of its first argument.
        """
        if function not in self._bodies:
            self._bodies[function] = None  # for the case of recursion
            self._bodies[function] = self._body(function, owner)
        return self._bodies[function]

    def _body(self, function: FunctionType, owner: type) -> Body | None:
        if function.__closure__ is not None:
            return None
        tree = copied(_source(function.__module__)[function.__code__.co_firstlineno])
        args = tree.args
        if args.vararg or args.kwarg or args.kwonlyargs or tree.decorator_list:
            return None
        if not _is_plain(tree):
            return None
        tree.body = Scope(self, function, owner, tree).block(tree.body)
        return Body.of(tree, function.__defaults__ or ())

    def _compile(self, function: FunctionType, name: str, tree: ast.FunctionDef) -> Any:
        arguments = [at(tree, ast.arg(arg.arg)) for arg in tree.args.args]
        last = _Last(self, [arg.arg for arg in tree.args.args])
        body = [last.visit(copied(s)) for s in tree.body] or [at(tree, ast.Pass())]
        body = [*last.looks(body[0]), *body]
        whole = ast.FunctionDef(
            name, ast.arguments([], arguments, None, [], [], None, []), body, [], None
        )
        module = ast.fix_missing_locations(ast.Module([at(tree, whole)], []))
        exec(compile(module, function.__code__.co_filename, "exec"), self._namespace)  # noqa: S102
        linked = self._namespace[name]
        linked.__qualname__ = function.__qualname__
        linked.__defaults__ = function.__defaults__
        return linked


class _Last(ast.NodeTransformer):
    """The last pass: names for what compile() takes for no constant, and for what never changes."""

    def __init__(self, linker: Linker, parameters: list[str]) -> None:
        self._linker = linker
        self._of_a_vcpu = parameters == ["cpu", "vcpu"]
        self._found: set[str] = set()

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        value: object = node.value
        if type(value) in _PLAIN:
            return node
        text = text_function(node)
        if text is None:
            name = self._linker.constant(value)
        else:
            name = self._linker.name_of(text, class_of_first(text, self._linker.cpu_class))
        return at(node, ast.Name(name, ast.Load()))

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Subscript(
                value=ast.Attribute(value=ast.Name(id="cpu"), attr="words"),
                slice=ast.Name(id="vcpu"),
            ) if self._of_a_vcpu:
                return self._look("words_of_vcpu", node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Attribute(value=ast.Name(id="words_of_vcpu"), attr="desc"):
                return self._look("desc_of_vcpu", node)
        return node

    def _look(self, name: str, node: ast.expr) -> ast.expr:
        self._found.add(name)
        return at(node, ast.Name(name, ast.Load()))

    def looks(self, where: ast.stmt) -> list[ast.stmt]:
        """`cpu.words[vcpu]` and its descriptor never change: one look at the start will do."""
        return [
            instance(ast.parse(f"{name} = {path}").body[0], {}, where)
            for name, path in _NEVER_CHANGE
            if name in self._found
        ]


def _is_plain(tree: ast.FunctionDef) -> bool:
    """Nothing in it but what the inliner understands."""
    for statement in statements_of(tree.body):
        if not isinstance(statement, _STATEMENTS):
            return False
        if isinstance(statement, ast.While) and statement.orelse:
            return False
    return not any(
        isinstance(node, _OTHER_NAMES) or (isinstance(node, ast.Name) and node.id == "super")
        for node in ast.walk(tree)
    )


@cache
def _source(module: str) -> dict[int, ast.FunctionDef]:
    """A module's functions by the line that each begins on."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.lineno: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
