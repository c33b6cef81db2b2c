"""The definitions in classes and modules, from their syntax trees."""

import ast
from collections.abc import Iterator

Function = ast.FunctionDef | ast.AsyncFunctionDef


def methods(cls: ast.ClassDef) -> dict[str, Function]:
    """Methods of a class by name; the last definition of an overload."""
    return {n.name: n for n in statements(cls.body) if isinstance(n, Function)}


def assignments(cls: ast.ClassDef) -> Iterator[tuple[Function, ast.AST]]:
    """Nodes in methods that may set an attribute of an instance."""
    for function in methods(cls).values():
        for node in ast.walk(function):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.Call):
                yield function, node


def assigned(node: ast.AST) -> set[str]:
    """Attributes of ``self`` that a node sets or registers."""
    match node:
        case ast.Call(
            func=ast.Attribute(
                attr="register_buffer" | "register_parameter" | "register_module"
            ),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return {name}
        case ast.Assign() | ast.AnnAssign():
            return {
                target.attr
                for target in targets(node)
                if isinstance(target, ast.Attribute)
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            }
    return set()


def targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.AnnAssign):
        return [node.target]
    if not isinstance(node, ast.Assign):
        return []
    found: list[ast.expr] = []
    for target in node.targets:
        found += target.elts if isinstance(target, ast.Tuple) else [target]
    return found


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, including those inside if, try and with."""
    for node in body:
        match node:
            case ast.If():
                yield from statements(node.body + node.orelse)
            case ast.Try():
                handlers = [s for handler in node.handlers for s in handler.body]
                yield from statements(node.body + node.orelse + handlers)
            case ast.With():
                yield from statements(node.body)
            case _:
                yield node
