"""Inlining: a function's tree with its constants decided and the small calls replaced by bodies.

What `linker` does to one function.  A call is replaced where it is the first thing that its
statement does, so that nothing changes place; a body that returns from its middle becomes a loop
that goes round once.  What does not fit that stays a call.
"""

import ast
import builtins
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

from emulator.guest.program import Guest
from emulator.hardware.apicv import VirtualApic
from emulator.hardware.lapic import LocalApic
from emulator.hardware.vmx import LogicalProcessor
from emulator.kvm.params import Kvm
from emulator.machine.memory import PiDesc, SharedApicPage
from emulator.machine.syntax import (
    Replace,
    at,
    first_call,
    instance,
    is_chain,
    without_returns,
)

if TYPE_CHECKING:
    from emulator.machine.linker import Linker

SIZE_MAX: Final = 1500  # nodes of a body that is inlined
_TEXT: Final = ("emulator.kvm.", "emulator.hardware.")
_COMPARE: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
    ast.Eq: lambda a, b: bool(a == b),
    ast.NotEq: lambda a, b: bool(a != b),
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}

# What a name says about the object behind it, wherever in the run's code it stands.
_TYPES: Final[dict[str, type]] = {
    "lp": LogicalProcessor,
    "vapic": VirtualApic,
    "lapic": LocalApic,
    "page": SharedApicPage,
    "desc": PiDesc,
    "guest": Guest,  # GuestState, which has the name too, has nothing to call there
    "p": LogicalProcessor,
    "processor": LogicalProcessor,
}


@dataclass(frozen=True, slots=True)
class Body:
    """A linked function, and what one has to know to inline it."""

    tree: ast.FunctionDef
    nodes: int
    uses: Counter[str]  # of each name
    assigned: frozenset[str]
    defaults: tuple[object, ...]

    @classmethod
    def of(cls, tree: ast.FunctionDef, defaults: tuple[object, ...]) -> "Body":
        nodes = list(ast.walk(tree))
        names = [node for node in nodes if isinstance(node, ast.Name)]
        assigned = frozenset(name.id for name in names if isinstance(name.ctx, ast.Store))
        uses = Counter(name.id for name in names)
        return cls(tree, len(nodes), uses, assigned, defaults)

    def is_expression(self) -> bool:
        return len(self.tree.body) == 1 and isinstance(self.tree.body[0], ast.Return)


class Scope(ast.NodeTransformer):
    """One function under way.  As a transformer of expressions it decides what is constant."""

    def __init__(
        self, linker: "Linker", function: FunctionType, owner: type, tree: ast.FunctionDef
    ) -> None:
        self._linker = linker
        self._globals = function.__globals__
        self._owner = owner
        self._self = tree.args.args[0].arg if tree.args.args else ""
        self._stored = [arg.arg for arg in tree.args.args]
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._stored.append(node.id)
        self._known: dict[str, ast.Constant] = {}  # locals that are constants

    # -- statements --------------------------------------------------------------------------------

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Linked statements, up to the first that does not go on."""
        out: list[ast.stmt] = []
        for statement in statements:
            out += self._statement(statement)
            if out and isinstance(out[-1], ast.Return | ast.Break | ast.Continue):
                break
        return out

    def _statement(self, node: ast.stmt) -> list[ast.stmt]:
        match node:
            case ast.If():
                before, test = self._hoist(self.visit(node.test))
                if isinstance(test, ast.Constant):
                    return before + self.block(node.body if test.value else node.orelse)
                body = self.block(node.body) or [ast.Pass()]
                return [*before, at(node, ast.If(test, body, self.block(node.orelse)))]
            case ast.While():
                body = self.block(node.body) or [ast.Pass()]
                return [at(node, ast.While(self.visit(node.test), body, []))]
            case ast.Assign(targets=[target]) | ast.AnnAssign(target=target) if node.value:
                before, value = self._hoist(self.visit(node.value))
                if (
                    isinstance(value, ast.Constant)
                    and isinstance(target, ast.Name)
                    and self._stored.count(target.id) == 1
                ):
                    self._known[target.id] = value
                    return before
                return [*before, at(node, ast.Assign([self.visit(target)], value))]
            case ast.Return(value=value) if value is not None:
                before, value = self._hoist(self.visit(value))
                return [*before, at(node, ast.Return(value))]
            case ast.Expr():
                before, value = self._hoist(self.visit(node.value))
                if isinstance(value, ast.Constant | ast.Name):
                    return before
                return [*before, at(node, ast.Expr(value))]
            case ast.Assert(test=ast.Compare(ops=[ast.IsNot()])):
                return []  # "is not None": said to the type checker
            case _:
                return [cast(ast.stmt, self.generic_visit(node))]

    def _hoist(self, expression: ast.expr) -> tuple[list[ast.stmt], ast.expr]:
        """While the first thing that `expression` does is a call that can be inlined: inline it."""
        before: list[ast.stmt] = []
        while True:
            call = first_call(expression)
            inlined = call and self._inline(call)
            if not call or not inlined:
                return before, expression
            before += inlined[0]
            expression = Replace(call, inlined[1]).visit(expression)

    def _inline(self, call: ast.Call) -> tuple[list[ast.stmt], ast.expr] | None:
        """The statements that take the place of `call`, and the expression that is its value."""
        callee = self._callee(call)
        if callee is None or callee.nodes > SIZE_MAX:
            return None
        if call.keywords or any(isinstance(arg, ast.Starred) for arg in call.args):
            return None
        args = callee.tree.args
        given = [call.func.value] if isinstance(call.func, ast.Attribute) else []
        given = [*given, *call.args]
        missing = len(args.args) - len(given)
        given += [_constant(value) for value in callee.defaults[-missing:]] if missing else []
        serial = self._linker.serial()
        names: dict[str, ast.expr] = {
            name: ast.Name(f"{name}_{serial}", ast.Load()) for name in callee.assigned
        }
        before: list[ast.stmt] = []
        for parameter, value in zip((arg.arg for arg in args.args), given, strict=True):
            if parameter not in names and (
                isinstance(value, ast.Name | ast.Constant)
                or (callee.is_expression() and callee.uses[parameter] == 1 and is_chain(value))
            ):
                names[parameter] = value
            else:
                local = f"{parameter}_{serial}"
                first, rest = self._hoist(value)
                store = at(call, ast.Assign([ast.Name(local, ast.Store())], rest))
                before += [*first, store]
                names[parameter] = ast.Name(local, ast.Load())
        body = [instance(statement, names, call) for statement in callee.tree.body]
        return without_returns(before, body, f"return_{serial}")

    def _callee(self, call: ast.Call) -> Body | None:
        """What `call` calls, linked: a step of the pCPU's class, or a text function."""
        match call.func:
            case ast.Attribute(value=receiver, attr=attr) if not attr.startswith("_"):
                # Private helpers stay calls: they are what is seldom needed.
                owner = self._class_of(receiver)
                method = owner and inspect.getattr_static(owner, attr, None)
                if owner and isinstance(method, FunctionType):
                    return self._linker.body(method, owner)
            case ast.Constant():
                text = text_function(call.func)
                if text is not None:
                    return self._linker.body(text, class_of_first(text, self._linker.cpu_class))
        return None

    def _class_of(self, receiver: ast.expr) -> type | None:
        match receiver:
            case ast.Name(id=name) if name == self._self:
                return self._owner
            case ast.Attribute(attr="idt" | "platform"):
                return self._linker.cpu_class
            case ast.Name(id=name) | ast.Attribute(attr=name) if is_chain(receiver):
                return _TYPES.get(name)
        return None

    # -- expressions -------------------------------------------------------------------------------

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if isinstance(node.ctx, ast.Store):
            return node
        if node.id in self._known:
            return self._known[node.id]
        if node.id in self._stored:
            return node
        if node.id in self._globals:
            return at(node, _constant(self._globals[node.id]))
        return at(node, _constant(getattr(builtins, node.id)))

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        match node.value:
            case ast.Name(id=name) if name == self._self and node.attr == "kvm":
                return at(node, _constant(self._linker.kvm))
        self.generic_visit(node)
        value: object = node.value.value if isinstance(node.value, ast.Constant) else None
        if isinstance(value, Kvm | ModuleType) or (
            isinstance(value, type) and issubclass(value, Enum)
        ):
            return at(node, _constant(getattr(value, node.attr)))
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        operator = _COMPARE.get(type(node.ops[0]))
        match node.left, node.comparators:
            case ast.Constant(value=left), [ast.Constant(value=right)] if operator:
                return at(node, ast.Constant(operator(left, right)))
        if isinstance(node.ops[0], ast.Eq | ast.NotEq):
            # Found equal to a member, found equal to its value: which is cheaper to ask.
            node.comparators = [
                at(c, ast.Constant(int(cast(Any, c.value))))
                if isinstance(c, ast.Constant) and isinstance(cast(object, c.value), IntEnum)
                else c
                for c in node.comparators
            ]
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not) and isinstance(node.operand, ast.Constant):
            return at(node, ast.Constant(not node.operand.value))
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        """A constant that decides ends the list, one that does not leaves it."""
        self.generic_visit(node)
        decides = isinstance(node.op, ast.Or)
        values: list[ast.expr] = []
        for value in node.values:
            if isinstance(value, ast.Constant):
                if bool(value.value) is decides:
                    values.append(value)
                    break
                if value is not node.values[-1]:
                    continue
            values.append(value)
        if len(values) == 1:
            return values[0]
        node.values = values
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.test, ast.Constant):
            return node.body if node.test.value else node.orelse
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        text = text_function(node.func)
        if text is not None:
            values = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if len(values) == len(node.args):  # no `cpu` among them: a question about `kvm`
                return at(node, ast.Constant(text(*values)))
        callee = self._callee(node)
        if callee is not None and callee.is_expression():
            inlined = self._inline(node)
            if inlined and not inlined[0]:
                return inlined[1]
        return node


def _constant(value: Any) -> ast.Constant:
    """Any object: `linker` gives a name to what compile() takes for no constant."""
    return ast.Constant(value)


def text_function(node: ast.expr) -> FunctionType | None:
    """The function that a constant is, if it is protocol text."""
    value: object = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, FunctionType) and value.__module__.startswith(_TEXT):
        return value
    return None


def class_of_first(text: FunctionType, otherwise: type) -> type:
    """The class of a text function's first argument, by its name."""
    return _TYPES.get(text.__code__.co_varnames[0], otherwise)
