"""The statements of a config, followed one by one by an allow-list."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quadriga.surfaces.mmselfsup.config.expressions import Expressions
from quadriga.surfaces.mmselfsup.config.functions import elements
from quadriga.surfaces.mmselfsup.config.operators import binary
from quadriga.surfaces.mmselfsup.config.values import ImportedName
from quadriga.surfaces.mmselfsup.config.words import suggest

LoadModule = Callable[[ast.ImportFrom], Mapping[str, Any]]
_READ_BASE = "read_base"
_WHAT: Mapping[type[ast.AST], str] = {
    ast.While: "while; write for over a list",
    ast.FunctionDef: "a function; write the values that it gives",
    ast.AsyncFunctionDef: "a function; write the values that it gives",
    ast.ClassDef: "a class; put it in a method's file and name it as a type",
    ast.Try: "try; write the values",
}


def in_standard_library(module: str) -> bool:
    """Tell whether a module comes with Python, by its name alone."""
    return module.partition(".")[0] in sys.stdlib_module_names


class Statements:
    """Statements of one file.

    Args:
        expressions: The values and names of the file.
        load_module: Returns the names of a config that ``with read_base()`` imports from.
    """

    def __init__(self, expressions: Expressions, load_module: LoadModule) -> None:
        self._values = expressions
        self._load_module = load_module
        self._modules: dict[tuple[int, str], Mapping[str, Any]] = {}
        self.lines: dict[str, int] = {}
        """Name -> the last line that assigned it."""
        self.imported: set[str] = set()
        """Names that imports made; they are no part of the config."""
        self._of: Mapping[type[ast.AST], Callable[[Any], None]] = {
            ast.AnnAssign: self._annotated,
            ast.Assign: self._assign,
            ast.AugAssign: self._augmented,
            ast.Delete: self._delete,
            ast.Expr: self._expression,
            ast.For: self._for,
            ast.If: self._if,
            ast.Import: self._import,
            ast.ImportFrom: self._import_from,
            ast.Pass: lambda node: None,
            ast.With: self._with,
        }

    def follow(self, nodes: Sequence[ast.stmt]) -> None:
        """Follow statements in their order.

        Raises:
            UserError: One of them is not of the kinds that are read, or cannot be followed.
        """
        for node in nodes:
            follow = self._of.get(type(node))
            if follow is None:
                what = _WHAT.get(type(node), f"{type(node).__name__}; write the values")
                self._values.refuse(
                    node, f"a config is read and not executed, so it cannot have {what}"
                )
            with self._values.at(node):
                self._values.budget.spend()
                follow(node)

    def _store(self, target: ast.expr, value: Any) -> None:
        self._values.store(target, value)
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                self.lines[node.id] = node.lineno

    def _assign(self, node: ast.Assign) -> None:
        value = self._values.value(node.value)
        for target in node.targets:
            self._store(target, value)

    def _annotated(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._store(node.target, self._values.value(node.value))

    def _augmented(self, node: ast.AugAssign) -> None:
        # The target is read as an expression: kinds of targets are kinds of expressions too.
        old = self._values.value(node.target)
        new = self._values.value(node.value)
        if isinstance(old, list) and isinstance(node.op, ast.Add):
            old.extend(elements(new, self._values.budget))
            return
        value = binary(type(node.op), old, new, self._values.budget)
        self._store(node.target, value)

    def _delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._values.delete(target)

    def _expression(self, node: ast.Expr) -> None:
        self._values.value(node.value)

    def _if(self, node: ast.If) -> None:
        self.follow(node.body if self._values.value(node.test) else node.orelse)

    def _for(self, node: ast.For) -> None:
        if node.orelse:
            raise ValueError("else after for is not read; write its lines after the loop")
        for item in elements(self._values.value(node.iter), self._values.budget):
            self._store(node.target, item)
            self.follow(node.body)

    def _import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._refuse_standard_library(node, alias.name)
            first = alias.name.partition(".")[0]
            dotted = alias.name if alias.asname else first
            self._bind(alias.asname or first, ImportedName(dotted))

    def _import_from(self, node: ast.ImportFrom) -> None:
        if node.module in ("mmengine.config", "mmengine.config.config") and not node.level:
            if [alias.name for alias in node.names] == [_READ_BASE]:
                return
        if node.level or node.module is None:
            raise ValueError("a config is imported from within 'with read_base():'; move the line")
        self._refuse_standard_library(node, node.module)
        for alias in node.names:
            if alias.name == "*":
                raise ValueError("import * is read within 'with read_base():' alone; name each")
            dotted = f"{node.module}.{alias.name}"
            self._bind(alias.asname or alias.name, ImportedName(dotted))

    def _refuse_standard_library(self, node: ast.stmt, module: str) -> None:
        if in_standard_library(module):
            raise ValueError(
                f"a config is read and not executed, so {module} cannot be imported; "
                "write the value that it would compute"
            )

    def _bind(self, name: str, value: ImportedName) -> None:
        self._values.names[name] = value
        self.imported.add(name)

    def _with(self, node: ast.With) -> None:
        for item in node.items:
            call = item.context_expr
            if not (isinstance(call, ast.Call) and ast.unparse(call) == f"{_READ_BASE}()"):
                raise ValueError("with is read as 'with read_base():' alone")
        for inner in node.body:
            if not isinstance(inner, ast.ImportFrom) or inner.module is None:
                self._values.refuse(
                    inner, "'with read_base():' holds lines 'from .file import *' alone"
                )
            # As in Python, a second import gives the objects of the first one.
            module = (inner.level, inner.module)
            if module not in self._modules:
                self._modules[module] = self._load_module(inner)
            self._take(inner, self._modules[module])

    def _take(self, node: ast.ImportFrom, module: Mapping[str, Any]) -> None:
        for alias in node.names:
            if alias.name == "*":
                self._values.names.update(module)
            elif alias.name in module:
                self._values.names[alias.asname or alias.name] = module[alias.name]
            else:
                near = suggest(alias.name, module)
                self._values.refuse(node, f"that file has no name {alias.name}{near}")
