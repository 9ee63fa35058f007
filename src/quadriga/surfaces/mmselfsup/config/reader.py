"""The reading of a config file and of what it inherits from."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from quadriga.errors import UserError, reading
from quadriga.files import parse_json
from quadriga.surfaces.mmselfsup.config.budget import MOST_BYTES, MOST_FILES, Budget
from quadriga.surfaces.mmselfsup.config.expressions import Expressions
from quadriga.surfaces.mmselfsup.config.merge import merge
from quadriga.surfaces.mmselfsup.config.statements import Statements, in_standard_library
from quadriga.surfaces.mmselfsup.config.templates import BaseValue, fill_templates
from quadriga.surfaces.mmselfsup.config.values import (
    Inherited,
    inherit,
    untangle,
    with_plain_names,
)
from quadriga.surfaces.mmselfsup.config.words import suggest
from quadriga.surfaces.mmselfsup.config.yaml_text import parse_yaml

BASE = "_base_"
_DEPRECATION = "_deprecation_"
_RESERVED = ("filename", "text", "pretty_text", "env_variables")
_SUFFIXES = (".py", ".json", ".yaml", ".yml")


def read_config(
    path: Path, *, packages: Mapping[str, Path] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the values of a config file of the mmengine family, with all that it inherits.

    A Python config is parsed and never executed: its assignments are followed by an
    interpreter of a small part of the language. Groups are plain dicts; a class that the
    config imports is its name: the last word of it as a ``type``, else the dotted whole.

    Args:
        path: A ``.py``, ``.json``, ``.yaml`` or ``.yml`` file.
        packages: Package -> folder of its configs, for base files ``package::path``. The
            outermost groups with a ``type`` in such a file get the package as ``_scope_``.

    Raises:
        UserError: A file cannot be read, has what is not allowed or contradicts itself; one
            line with the file, the line, what it is and the remedy.
    """
    reader = _Reader(packages)
    try:
        config = with_plain_names(reader.read(Path(os.path.expanduser(path)), str(path)))
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply; write simpler values") from error
    for key in _RESERVED:
        if key in config:
            raise UserError(f"{path}: {key} is a reserved name of configs; rename the key")
    return dict(config)


class _Reader:
    """Reads files that inherit from one another, on one budget."""

    def __init__(self, packages: Mapping[str, Path]) -> None:
        self._packages = packages
        self._budget = Budget()
        self._files = 0
        self._open: list[Path] = []
        self._imported: set[str] = set()

    def read(self, path: Path, shown: str, is_import: bool = False) -> dict[str, Any]:
        """Return the values of a file; names of imports are not yet strings.

        Args:
            path: The file.
            shown: Its name in messages.
            is_import: Whether ``with read_base()`` imports it.
        """
        place = Path(os.path.abspath(path))
        if place in self._open:
            chain = " -> ".join(p.name for p in (*self._open, place))
            raise UserError(f"{shown} inherits from itself ({chain}); remove one of these bases")
        self._files += 1
        if self._files > MOST_FILES:
            raise UserError(f"{shown} inherits from more than {MOST_FILES} files; use fewer bases")
        self._open.append(place)
        text, swaps = fill_templates(_text_of(path, shown), place, shown)
        try:
            if path.suffix == ".py":
                return self._read_python(text, swaps, path, shown, is_import)
            if is_import:
                raise UserError(f"{shown} is imported, but no Python config; import a .py file")
            return self._read_data(text, swaps, path, shown)
        finally:
            self._open.pop()

    def _read_data(
        self, text: str, swaps: Mapping[str, BaseValue], path: Path, shown: str
    ) -> dict[str, Any]:
        kind, parse = ("JSON", parse_json) if path.suffix == ".json" else ("YAML", parse_yaml)
        try:
            values = parse(text)
        except ValueError as error:
            line = getattr(error, "lineno", 1)
            said = getattr(error, "msg", None) or error
            raise UserError(f"{shown}:{line}: this is not {kind}: {said}; mend it") from error
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise UserError(f"{shown} must hold keys with values; put a name before each value")
        base = self._read_bases(values.pop(BASE, []), path, shown, f"{shown}:1")
        return self._merged(values, base, swaps, shown, {})

    def _read_python(
        self, text: str, swaps: Mapping[str, BaseValue], path: Path, shown: str, is_import: bool
    ) -> dict[str, Any]:
        tree = _parse(text, shown, {swap.line for swap in swaps.values()})
        bases, others = _base_lines(tree.body, shown)
        imports = is_import or any(map(_is_import, tree.body))
        if bases is not None and imports:
            raise UserError(
                f"{shown}:{bases.lineno}: {BASE} and imports are two ways to inherit, and all "
                "files of a config use the same one; remove one of them"
            )
        base = Inherited()
        names: dict[str, Any] = {}
        if bases is not None:
            value = Expressions(shown, {}, self._budget, {}).value(bases.value)
            base = self._read_bases(value, path, shown, f"{shown}:{bases.lineno}")
        if not imports:
            names[BASE] = base
        expressions = Expressions(shown, names, self._budget, swaps)
        statements = Statements(
            expressions, lambda node: self._read_import(node, path, expressions)
        )
        statements.follow(others)
        names.pop(BASE, None)
        self._imported |= statements.imported
        dropped = set() if is_import else self._imported
        values = {
            name: value
            for name, value in names.items()
            if not name.startswith("__") and name not in dropped
        }
        return self._merged(values, base, swaps, shown, statements.lines)

    def _merged(
        self,
        values: dict[str, Any],
        base: dict[str, Any],
        swaps: Mapping[str, BaseValue],
        shown: str,
        lines: Mapping[str, int],
    ) -> dict[str, Any]:
        found = _BaseValues(base, swaps, shown)
        merged: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        key = ""
        try:
            for key, value in values.items():
                plain[key] = untangle(value, found, self._budget)
            plain.pop(_DEPRECATION, None)
            merged = untangle(base, {}, self._budget)
            for key, value in plain.items():
                merged.update(merge({key: value}, {key: merged[key]} if key in merged else {}))
        except ValueError as error:
            line = f":{lines[key]}" if key in lines else ""
            said = str(error) if key in str(error) else f"{key}: {error}"
            raise UserError(f"{shown}{line}: {said}") from error
        return {key: value for key, value in merged.items() if not key.startswith("__")}

    def _read_bases(self, value: Any, path: Path, shown: str, line: str) -> Inherited:
        names = list(value) if isinstance(value, (list, tuple)) else [value]
        base = Inherited()
        for name in names:
            if not isinstance(name, str):
                raise UserError(f"{line}: {BASE} must be a path or a list of paths, not {name!r}")
            package, separator, inner = name.partition("::")
            if separator:
                at, said = self._in_package(package, inner, name, line), name
            else:
                at = Path(os.path.normpath(path.parent / os.path.expanduser(name)))
                said = str(at)
            if not at.is_file():
                raise UserError(f"{line}: there is no base file {said}{_nearest_file(at)}")
            values = self.read(at, said)
            twice = sorted(base.keys() & values.keys())
            if twice:
                raise UserError(
                    f"{line}: {', '.join(twice)} stands in {said} and in another base as well; "
                    "a key may stand in one of them"
                )
            for key, item in values.items():
                dict.__setitem__(base, key, inherit(item, package if separator else None))
        return base

    def _in_package(self, package: str, inner: str, name: str, line: str) -> Path:
        if package not in self._packages:
            known = ", ".join(self._packages) or "none"
            raise UserError(
                f"{line}: {name} needs the configs of the package {package}, which is not here "
                f"(here are: {known}); copy that file and name it by its path"
            )
        return self._packages[package] / inner

    def _read_import(
        self, node: ast.ImportFrom, path: Path, expressions: Expressions
    ) -> dict[str, Any]:
        module = node.module or ""
        if node.level:
            at = path.parent.joinpath(*[".."] * (node.level - 1), *module.split("."))
        else:
            package, _, inner = module.partition(".")
            line = f"{expressions.file}:{node.lineno}"
            inner = inner.removeprefix("configs.")
            at = self._in_package(package, inner.replace(".", "/"), module, line)
        at = Path(os.path.normpath(at.with_name(f"{at.name}.py")))
        if not at.is_file():
            expressions.refuse(node, f"there is no config file {at}{_nearest_file(at)}")
        values = self.read(at, str(at), is_import=True)
        return {name: inherit(value) for name, value in values.items()}


def _text_of(path: Path, shown: str) -> str:
    if path.suffix not in _SUFFIXES:
        raise UserError(f"{shown} must be one of {', '.join(_SUFFIXES)}; rename or convert it")
    if not path.is_file():
        raise UserError(f"there is no config file {shown}{_nearest_file(path)}")
    with reading(shown, "a readable file"), path.open("rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{shown} has more than {MOST_BYTES // 1024} KiB; split it into base files")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{shown}:1: a byte order mark stands first; save it as UTF-8 without one")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{shown}:{line}: a byte is not UTF-8; save the file as UTF-8") from error


def _parse(text: str, shown: str, filled: set[int]) -> ast.Module:
    """Return the syntax tree of a Python text; on some lines templates have been filled."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings that Python does not know
            return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        said = getattr(error, "msg", None) or error
        if line in filled:
            said = f"{said}; {{{{_base_...}}}} is a whole value, and has no quotes around it"
        raise UserError(f"{shown}:{line}: this is not Python: {said}; mend the line") from error
    except (RecursionError, MemoryError) as error:
        raise UserError(f"{shown} is nested too deeply; write simpler values") from error


def _is_import(node: ast.stmt) -> bool:
    """Tell whether a statement shows that a config inherits by imports."""
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or not in_standard_library(node.module or "")
    if isinstance(node, ast.Import):
        return not all(in_standard_library(alias.name) for alias in node.names)
    return isinstance(node, ast.With)


def _base_lines(nodes: list[ast.stmt], shown: str) -> tuple[ast.Assign | None, list[ast.stmt]]:
    """Return the assignment of the base files, and all other statements."""
    found = [
        node
        for node in nodes
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == BASE
    ]
    if len(found) > 1:
        raise UserError(f"{shown}:{found[1].lineno}: {BASE} is assigned twice; write one list")
    return (found[0] if found else None), [node for node in nodes if node not in found]


class _BaseValues(Mapping[str, Any]):
    """Mark of a template -> the base value that it stands for.

    One that does not exist is an error where it is used: a template may stand in a comment.
    """

    def __init__(
        self, base: Mapping[str, Any], wanted: Mapping[str, BaseValue], shown: str
    ) -> None:
        self._base, self._wanted, self._shown = base, wanted, shown

    def __len__(self) -> int:
        return len(self._wanted)

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __contains__(self, mark: object) -> bool:
        return mark in self._wanted

    def __getitem__(self, mark: str) -> Any:
        wanted = self._wanted[mark]
        value: Any = self._base
        for word in wanted.path.split("."):
            if not isinstance(value, dict) or word not in value:
                known = value if isinstance(value, dict) else ()
                raise UserError(
                    f"{self._shown}:{wanted.line}: the base files have no {wanted.path}"
                    f"{suggest(word, known)}"
                )
            value = value[word]
        return value


def _nearest_file(path: Path) -> str:
    try:
        names = [other.name for other in path.parent.iterdir() if other.suffix in _SUFFIXES]
    except OSError:
        return f"; there is no folder {path.parent} either"
    return suggest(path.name, sorted(names))
