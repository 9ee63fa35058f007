"""The value of a config's expression, computed from its syntax tree by an allow-list."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from quadriga.errors import UserError
from quadriga.surfaces.mmselfsup.config.budget import MOST_LEVELS, Budget, check_size
from quadriga.surfaces.mmselfsup.config.functions import (
    FUNCTIONS,
    call,
    elements,
    key_of,
    methods_of,
)
from quadriga.surfaces.mmselfsup.config.operators import binary, compare, unary
from quadriga.surfaces.mmselfsup.config.templates import BaseValue
from quadriga.surfaces.mmselfsup.config.text import scalar_text
from quadriga.surfaces.mmselfsup.config.values import ImportedName
from quadriga.surfaces.mmselfsup.config.words import kind_of, suggest

_REFUSED = (TypeError, ValueError, LookupError, ArithmeticError, RecursionError)
_WHAT: Mapping[type[ast.AST], str] = {
    ast.Set: "a set; write a list",
    ast.Lambda: "a lambda; write the value that it gives",
    ast.NamedExpr: "an assignment within an expression; write it on a line of its own",
    ast.SetComp: "a set; write a list",
    ast.Await: "await; write the value",
    ast.Yield: "yield; write the value",
}


class Expressions:
    """Expressions of one file over the names assigned in it.

    Args:
        file: Name of the file, for messages.
        names: Name -> value; assignments change it.
        budget: What evaluation may cost.
        swaps: Strings that stand for a value of a base file until the file is read.
    """

    def __init__(
        self, file: str, names: dict[str, Any], budget: Budget, swaps: Mapping[str, BaseValue]
    ) -> None:
        self.file = file
        self.names = names
        self.budget = budget
        self._swaps = swaps
        self._inner: list[dict[str, Any]] = []
        self._levels = 0
        self._of: Mapping[type[ast.AST], Callable[[Any], Any]] = {
            ast.Attribute: self._attribute,
            ast.BinOp: self._binary,
            ast.BoolOp: self._boolean,
            ast.Call: self._call,
            ast.Compare: self._compare,
            ast.Constant: self._constant,
            ast.Dict: self._dict,
            ast.DictComp: self._dict_comprehension,
            ast.GeneratorExp: self._list_comprehension,
            ast.IfExp: self._conditional,
            ast.JoinedStr: self._joined,
            ast.List: lambda node: self._items(node.elts),
            ast.ListComp: self._list_comprehension,
            ast.Name: self._name,
            ast.Subscript: self._subscript,
            ast.Tuple: lambda node: tuple(self._items(node.elts)),
            ast.UnaryOp: lambda node: unary(type(node.op), self.value(node.operand)),
        }

    def refuse(self, node: ast.AST, message: str) -> NoReturn:
        """Raise a `UserError` that names the file and the line of a node."""
        raise UserError(f"{self.file}:{getattr(node, 'lineno', 1)}: {message}")

    @contextlib.contextmanager
    def at(self, node: ast.AST) -> Iterator[None]:
        """Return a context that turns errors of plain Python values into one that names a line."""
        try:
            yield
        except _REFUSED as error:
            self._blame(node, error)

    def _blame(self, node: ast.AST, error: Exception) -> NoReturn:
        if isinstance(error, RecursionError):
            self.refuse(node, "this is nested too deeply; write simpler values")
        self.refuse(node, str(error.args[-1] if error.args else type(error).__name__))

    def value(self, node: ast.expr) -> Any:
        """Return the value of an expression.

        Raises:
            UserError: It is not of the kinds that are read, or it has no value.
        """
        compute = self._of.get(type(node))
        if compute is None:
            what = _WHAT.get(type(node), f"{type(node).__name__}; write the value")
            self.refuse(node, f"a config is read and not executed, so it cannot have {what}")
        self._levels += 1
        try:
            if self._levels > 2 * MOST_LEVELS:
                raise ValueError(f"an expression has more than {2 * MOST_LEVELS} levels")
            self.budget.spend()
            return compute(node)
        except _REFUSED as error:
            self._blame(node, error)
        finally:
            self._levels -= 1

    def store(self, target: ast.expr, value: Any, names: dict[str, Any] | None = None) -> None:
        """Give a value to a name, an element or a key, or several values to several.

        Args:
            target: What stands to the left of the equals sign.
            value: The value.
            names: Where names are kept; those of the file unless given.
        """
        with self.at(target):
            if isinstance(target, ast.Name):
                if target.id == "_base_":
                    raise ValueError("_base_ is assigned once, on a line of its own")
                (self.names if names is None else names)[target.id] = value
            elif isinstance(target, (ast.Tuple, ast.List)):
                values = elements(value, self.budget)
                if len(values) != len(target.elts):
                    raise ValueError(f"{len(values)} values for {len(target.elts)} names")
                for each, item in zip(target.elts, values, strict=True):
                    self.store(each, item, names)
            elif isinstance(target, ast.Subscript):
                holder = self.value(target.value)
                self._put(holder, self._index(target.slice), value)
            elif isinstance(target, ast.Attribute):
                self._put(self._group(target), target.attr, value)
            else:
                raise ValueError("a value can be given to names, elements and keys alone")

    def delete(self, target: ast.expr) -> None:
        """Remove a name, an element or a key."""
        with self.at(target):
            if isinstance(target, ast.Name):
                self._name(target)
                self.names.pop(target.id, None)
            elif isinstance(target, (ast.Subscript, ast.Attribute)):
                if isinstance(target, ast.Attribute):
                    holder, key = self._group(target), target.attr
                else:
                    holder, key = self.value(target.value), self._index(target.slice)
                if not isinstance(holder, (dict, list)):
                    raise TypeError(f"nothing can be deleted from {kind_of(holder)}")
                self.budget.spend(len(holder))
                self._found(holder, key)
                del holder[key]
            else:
                raise ValueError("names, elements and keys alone can be deleted")

    def _put(self, holder: Any, key: Any, value: Any) -> None:
        self.budget.measure(value)
        if isinstance(key, slice) and isinstance(holder, list):
            self.budget.spend(len(holder))
            holder[key] = elements(value, self.budget)
        elif isinstance(holder, (dict, list)):
            holder[key] = value
        else:
            raise TypeError(f"{kind_of(holder)} has no elements that can be replaced")

    def _constant(self, node: ast.Constant) -> Any:
        value = node.value
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"a constant of type {type(value).__name__} has no place in a config")
        check_size(value)
        return self._swaps.get(value, value) if isinstance(value, str) else value

    def _scopes(self) -> Iterator[dict[str, Any]]:
        yield from (*reversed(self._inner), self.names)

    def _name(self, node: ast.Name) -> Any:
        for names in self._scopes():
            if node.id in names:
                return names[node.id]
        if node.id in FUNCTIONS:
            raise ValueError(f"{node.id} is a function; it can be called, and nothing else")
        known = [name for name in self.names if name != "_base_"]
        raise ValueError(f"nothing named {node.id} is assigned before{suggest(node.id, known)}")

    def _items(self, nodes: Sequence[ast.expr]) -> list[Any]:
        items: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                items.extend(elements(self.value(node.value), self.budget))
            else:
                items.append(self.value(node))
        return items

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        group: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                group.update(self._mapping(value))
            else:
                group[key_of(self.value(key), self.budget)] = self.value(value)
        return group

    def _mapping(self, node: ast.expr) -> dict[Any, Any]:
        value = self.value(node)
        if not isinstance(value, dict):
            raise TypeError(f"** needs a group, but gets {kind_of(value)}")
        self.budget.spend(len(value))
        return dict(value)

    def _binary(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        return binary(type(node.op), left, right, self.budget)

    def _boolean(self, node: ast.BoolOp) -> Any:
        value = None
        for operand in node.values:
            value = self.value(operand)
            if bool(value) is isinstance(node.op, ast.Or):
                break
        return value

    def _compare(self, node: ast.Compare) -> bool:
        left = self.value(node.left)
        for kind, operand in zip(node.ops, node.comparators, strict=True):
            right = self.value(operand)
            if not compare(type(kind), left, right, self.budget):
                return False
            left = right
        return True

    def _conditional(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.value(node.test) else node.orelse)

    def _joined(self, node: ast.JoinedStr) -> str:
        parts: list[str] = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                spec = self._joined(part.format_spec) if part.format_spec is not None else ""  # type: ignore[arg-type]
                conversion = None if part.conversion == -1 else chr(part.conversion)
                parts.append(scalar_text(self.value(part.value), conversion, spec))
            else:
                parts.append(self.value(part))
            check_size("".join(parts[-1:]))
        text = "".join(parts)
        check_size(text)
        return text

    def _subscript(self, node: ast.Subscript) -> Any:
        holder, key = self.value(node.value), self._index(node.slice)
        if not isinstance(holder, (dict, list, tuple, str)):
            raise TypeError(f"{kind_of(holder)} has no elements")
        if isinstance(key, slice):
            self.budget.spend(len(holder))
        return self._found(holder, key)

    def _index(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Slice):
            parts = (node.lower, node.upper, node.step)
            return slice(*(None if part is None else self.value(part) for part in parts))
        return key_of(self.value(node), self.budget)

    def _found(self, holder: Any, key: Any) -> Any:
        if isinstance(holder, dict) and key not in holder:
            raise ValueError(f"there is no key {key!r}{suggest(key, holder)}")
        return holder[key]

    def _group(self, node: ast.Attribute) -> dict[Any, Any]:
        holder = self.value(node.value)
        if node.attr.startswith("__") or not isinstance(holder, dict):
            raise ValueError(
                f".{node.attr} of {kind_of(holder)} is not read; "
                "a dot reaches into groups and base files alone"
            )
        return holder

    def _attribute(self, node: ast.Attribute) -> Any:
        if not node.attr.startswith("__"):
            holder = self.value(node.value)
            if isinstance(holder, ImportedName):
                return ImportedName(f"{holder.dotted}.{node.attr}")
        return self._found(self._group(node), node.attr)

    def _call(self, node: ast.Call) -> Any:
        function = node.func
        if isinstance(function, ast.Attribute):
            holder = self.value(function.value)
            name, methods = function.attr, methods_of(holder)
            if name not in methods:
                raise ValueError(
                    f"{name} of {kind_of(holder)} cannot be called "
                    f"in a config{suggest(name, methods)}"
                )
            values, named = self._arguments(node)
            return call(methods[name], name, [self.budget, holder, *values], named)
        name = function.id if isinstance(function, ast.Name) else "the result of an expression"
        if name not in FUNCTIONS or any(name in names for names in self._scopes()):
            raise ValueError(
                f"{name} cannot be called in a config, which is read and not executed"
                f"{suggest(name, FUNCTIONS)}"
            )
        values, named = self._arguments(node)
        return call(FUNCTIONS[name], name, [self.budget, *values], named)

    def _arguments(self, node: ast.Call) -> tuple[list[Any], dict[str, Any]]:
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                more = self._mapping(keyword.value)
            else:
                more = {keyword.arg: self.value(keyword.value)}
            for name, value in more.items():
                if name in named or not isinstance(name, str):
                    raise ValueError(f"the key {name!r} is given twice, or is no name")
                named[name] = value
        return self._items(node.args), named

    def _list_comprehension(self, node: ast.ListComp | ast.GeneratorExp) -> list[Any]:
        return [self.value(node.elt) for _ in self._rounds(node.generators)]

    def _dict_comprehension(self, node: ast.DictComp) -> dict[Any, Any]:
        return {
            key_of(self.value(node.key), self.budget): self.value(node.value)
            for _ in self._rounds(node.generators)
        }

    def _rounds(self, generators: Sequence[ast.comprehension]) -> Iterator[None]:
        if not generators:
            yield
            return
        first, *others = generators
        for item in elements(self.value(first.iter), self.budget):
            names: dict[str, Any] = {}
            self._inner.append(names)
            try:
                self.store(first.target, item, names)
                if all(self.value(condition) for condition in first.ifs):
                    yield from self._rounds(others)
            finally:
                self._inner.pop()
