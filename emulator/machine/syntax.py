"""Syntax trees: copying one with names replaced, and what the inliner asks of statements.

A constant of a tree here may be any object, and copies share it.  Every new node stands at the line
of the node that it comes from.
"""

import ast
from typing import Any, TypeVar, cast

_Node = TypeVar("_Node", bound=ast.AST)


def at(where: ast.AST, node: _Node) -> _Node:
    line = getattr(where, "lineno", None)
    if line is not None and isinstance(node, ast.stmt | ast.expr | ast.arg):
        node.lineno = node.end_lineno = line
        node.col_offset = node.end_col_offset = 0
    return node


def copied(node: _Node) -> _Node:
    """A copy of a tree whose constants are the same objects."""
    return instance(node, {}, None)


def instance(node: _Node, names: dict[str, ast.expr], where: ast.AST | None) -> _Node:
    """A copy in the caller's terms, at the caller's line."""
    if isinstance(node, ast.Constant | ast.expr_context | ast.operator | ast.cmpop | ast.boolop):
        return node
    if isinstance(node, ast.Name):
        new = names.get(node.id, node)
        if isinstance(new, ast.Name):
            return cast(_Node, at(where or node, ast.Name(new.id, node.ctx)))
        return cast(_Node, new)
    fields = {}
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            value = instance(value, names, where)
        elif isinstance(value, list):
            value = [instance(v, names, where) if isinstance(v, ast.AST) else v for v in value]
        fields[name] = value
    return at(where or node, type(node)(**fields))


class Replace(ast.NodeTransformer):
    """One node for another."""

    def __init__(self, old: ast.AST, new: ast.expr) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self._new if node is self._old else super().visit(node)


def is_chain(node: ast.expr) -> bool:
    """`a.b.c`: evaluating it does nothing else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def statements_of(body: list[ast.stmt]) -> list[ast.stmt]:
    """All statements in and below `body`."""
    found = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.If | ast.While):
            found += statements_of(node.body) + statements_of(node.orelse)
    return found


def first_call(node: ast.expr) -> ast.Call | None:
    """The call that evaluating `node` begins with, if it begins with one."""
    match node:
        case ast.Call():
            return node
        case ast.UnaryOp(operand=first) | ast.BoolOp(values=[first, *_]):
            return first_call(first)
        case ast.Compare(left=ast.Name() | ast.Constant(), comparators=[first]):
            return first_call(first)
        case ast.Compare(left=first):
            return first_call(first)
    return None


def without_returns(
    before: list[ast.stmt], body: list[ast.stmt], result: str
) -> tuple[list[ast.stmt], ast.expr] | None:
    """A body that stands in its caller, and its value there; None if it cannot stand there.

    One `return` at the end needs nothing; several break out of a loop that goes round once.
    """
    returns = sum(isinstance(node, ast.Return) for node in statements_of(body))
    nothing = ast.Constant(None)
    if returns == 0:
        return before + body, nothing
    if returns == 1 and isinstance(body[-1], ast.Return):
        return before + body[:-1], body[-1].value or nothing
    if any(isinstance(n, ast.Return) for s in statements_of(body) if isinstance(s, ast.While)
           for n in statements_of(s.body)):  # fmt: skip
        return None
    where = body[0]
    name = ast.Name(result, ast.Store())

    class Leave(ast.NodeTransformer):
        def visit_Return(self, node: ast.Return) -> list[ast.stmt]:
            value = node.value or nothing
            return [at(node, ast.Assign([name], value)), at(node, ast.Break())]

    once = [cast(ast.stmt, n) for s in body for n in _listed(Leave().visit(s))]
    if not isinstance(body[-1], ast.Return):
        once += [at(where, ast.Assign([name], nothing)), at(where, ast.Break())]
    return [*before, at(where, ast.While(ast.Constant(True), once, []))], ast.Name(
        result, ast.Load()
    )


def _listed(node: ast.AST | list[ast.AST]) -> list[ast.AST]:
    return node if isinstance(node, list) else [node]
