"""Typed, frozen configuration: values only, with overrides, provenance and one error grammar.

A `Config` is a pydantic model that refuses unknown keys. A `Choice` is a Config with several
kinds, which live in one package, its room. A file at the room's top level defines the kind of its
name: ``{"kind": "mae"}`` in the room ``quadriga.methods`` is the config in
``quadriga/methods/mae.py``. Kinds in nested folders, and kinds that share a file, are listed in a
table in the room's ``__init__.py``: name -> ``module:Class``. The base class itself lists kinds
that are spread over several rooms. ``./mine.py:Method`` is a kind in a file of the user's own,
which `quadriga.config.own_code` has imported.

A config's *tree* is its plain form: nested dicts, lists and scalars.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quadriga.config.messages import sentence
from quadriga.config.own_code import is_own, own_class
from quadriga.errors import UserError, did_you_mean
from quadriga.files import parse_json

_LOCATION = "location"
T = TypeVar("T")
Location = Annotated[T, _LOCATION]
"""The type of a field that holds a location, such as ``root: Location[Path]``. Two configs that
differ only in locations mean the same run, since files may be moved."""

_FILE = "file"
NamedFile = Annotated[T, _FILE]
"""The type of a field that names a file or folder whose content decides what a run computes."""

_LATER = "later"
Later = Annotated[T, _LATER]
"""The type of a field that older saved runs lack: its default behaves as those runs did."""

Number = Annotated[float, Field(ge=-1e6, le=1e6)]
"""A number in a list. Every number in a config is bounded, so that no later sum overflows."""
Depth = Annotated[int, Field(ge=0, le=10_000)]
"""A number of blocks, or a module's, in a list."""


def leaves_of(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and value of each leaf; the items of a list of dicts by position.

    Args:
        tree: The plain tree.
        prefix: Path of the tree's root.
    """
    if isinstance(tree, dict) and tree:
        items = tree.items()
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        items = {str(i): item for i, item in enumerate(tree)}.items()
    else:
        yield prefix, tree
        return
    for name, value in items:
        yield from leaves_of(value, f"{prefix}.{name}" if prefix else name)


def within(path: str, ancestor: str) -> bool:
    """Return whether `path` is `ancestor` or below it."""
    return path == ancestor or path.startswith(f"{ancestor}.")


def child_of(node: Any, part: str, path: str) -> Any:
    """Return the child `part` of `node`; an absent or None child is replaced by an empty dict.

    Raises:
        UserError: The child is a single value, or the position does not exist.
    """
    if isinstance(node, list):
        return node[position_in(node, part, path)]
    if node.get(part) is None:
        node[part] = {}
    if not isinstance(node[part], (dict, list)):
        raise UserError(f"{path} is a single value, {node[part]!r}, and has no keys below it")
    return node[part]


def position_in(items: list[Any], part: str, path: str) -> int:
    """Return `part` as a position in `items`.

    Raises:
        UserError: `part` is not a number, or is outside the list.
    """
    if not part.isdecimal() or int(part) >= len(items):
        raise UserError(f"{path} must end in a position from 0 to {len(items) - 1}")
    return int(part)


class Config(BaseModel):
    """Base of every config: frozen, unknown keys refused, every default validated."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values from which `from_dict` rebuilds an equal config."""
        return {name: _plain(getattr(self, name)) for name in type(self).model_fields}

    def as_json(self) -> str:
        """Return `as_dict` as indented JSON text."""
        return json.dumps(self.as_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from plain values.

        Args:
            values: Nested mappings, lists and scalars; strings are read as the field's type.

        Raises:
            UserError: An unknown key or a value that breaks a rule, with the full path.
        """
        return construct(cls, values, _Context({}, cls, values))

    def override(self, values: Mapping[str, Any], source: str = "override") -> Self:
        """Return a new config with dotted keys replaced.

        Args:
            values: Dotted path to value, for example ``{"optim.lr": "3e-4"}``. Strings are read
                as the field's type; ``[..]`` and ``{..}`` are JSON. Setting ``x.kind`` changes
                the kind of ``x`` and keeps the fields that both kinds have.
            source: Where the values come from, for error sentences.

        Raises:
            UserError: An unknown key or a value that breaks a rule, with the full path.
        """
        tree = _tree_with(self, values)
        context = _Context(dict.fromkeys(values, source), type(self), self.as_dict())
        return construct(type(self), tree, context)

    @classmethod
    def upgraded(cls, values: dict[str, Any], sources: dict[str, str]) -> None:
        """Update in place a config that an older version saved.

        Args:
            values: The saved plain values.
            sources: Dotted path of each leaf -> where its value came from.
        """
        return None

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Yield each dotted path with its plain value; a tuple of configs is walked by index."""
        yield from leaves_of(self.as_dict(), prefix)

    def locations(self) -> Iterator[str]:
        """Yield the dotted path of each field that is a `Location`."""
        return (path for path, _, _ in self._marked(_LOCATION, ""))

    def anchored(self, keys: Iterable[str] = ("",)) -> Self:
        """Return the config with each `Location` and `NamedFile` as an absolute path.

        Relative ones are seen from the current folder; ``~`` is the user's home folder.

        Args:
            keys: Dotted paths: those at or below them are changed, by default all.
        """
        values: dict[str, Any] = {}
        for path, owner, name in (*self._marked(_LOCATION, ""), *self._marked(_FILE, "")):
            value = getattr(owner, name)
            if not any(key == "" or within(path, key) for key in keys):
                continue
            if isinstance(value, tuple):
                values[path] = [owner.anchor(name, str(item)) for item in value]
            elif value is not None:
                values[path] = owner.anchor(name, str(value))
        return self.override(values) if values else self

    def anchor(self, name: str, text: str) -> str:
        """Return the absolute path for a value of the field `name`; kinds may do it otherwise."""
        if text.startswith("@"):  # a node of the same workflow
            return text
        return os.path.abspath(os.path.expanduser(text))

    def unused_later(self) -> Iterator[str]:
        """Yield the dotted path of each field that is `Later` and has its default."""
        return (
            path
            for path, owner, name in self._marked(_LATER, "")
            if getattr(owner, name) == type(owner).model_fields[name].default
        )

    def _marked(self, mark: str, prefix: str) -> Iterator[tuple[str, Config, str]]:
        """Yield the path of each field with a mark, the config that has it, and its name there."""
        for name, field in type(self).model_fields.items():
            path = f"{prefix}.{name}" if prefix else name
            value = getattr(self, name)
            if mark in field.metadata:
                yield path, self, name
            items: Iterable[tuple[Any, Any]] = ()
            if isinstance(value, Config):
                yield from value._marked(mark, path)
            elif isinstance(value, tuple):
                items = enumerate(value)
            elif isinstance(value, dict):
                items = value.items()
            for place, item in items:
                if isinstance(item, Config):
                    yield from item._marked(mark, f"{path}.{place}")


class Choice(Config):
    """A config with several kinds, found in the files of `room`, its table, or `listed`."""

    room: ClassVar[str] = ""
    """The package of the kinds, for example ``quadriga.methods``."""
    table: ClassVar[str] = "KINDS"
    """Name of the room's table of nested kinds and of kinds that share a file."""
    listed: ClassVar[Mapping[str, str]] = {}
    """The kinds, where they have no common room: name -> ``module:Class``."""

    @classmethod
    def kind(cls) -> str:
        """Return the name of this kind: from the table, else its file, else ``module:Class``."""
        target = f"{cls.__module__}:{cls.__qualname__}"
        for listed, of_listed in _table(cls).items():
            if of_listed == target:
                return listed
        module, _, name = cls.__module__.rpartition(".")
        return name if module == cls.room else target

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with the kind first."""
        return {"kind": self.kind(), **super().as_dict()}


ConfigT = TypeVar("ConfigT", bound=Config)


class _Context:
    """What an error message needs beside the value: sources and all valid paths."""

    def __init__(
        self, sources: Mapping[str, str], root: type[Config], tree: Mapping[str, Any]
    ) -> None:
        self.sources = sources
        self.root = root
        self.tree = tree

    def source_of(self, path: str) -> str | None:
        return next((s for name, s in self.sources.items() if within(path, name)), None)

    def unknown(self, path: str, siblings: Sequence[str]) -> UserError:
        """Return the error for a key that does not exist; it suggests the nearest valid key."""
        prefix = path.rpartition(".")[0]
        near = [f"{prefix}.{name}" if prefix else name for name in siblings]
        everywhere = [known for known, _ in leaves_of(self.tree, "")]
        leaf = path.rpartition(".")[2]
        candidates = near + [
            k for k in everywhere if k.rpartition(".")[2] == leaf and k not in (*near, path)
        ]
        source = self.source_of(path)
        where = f" ({_set_where(source)})" if source else ""
        return UserError(f"unknown key {path}{where}{did_you_mean(path, candidates)}")


def construct(
    cls: type[ConfigT], values: Any, context: _Context | None = None, path: str = ""
) -> ConfigT:
    """Build `cls` from plain values, children first, so that each error names the full path.

    Raises:
        UserError: An unknown key or a value that breaks a rule.
    """
    if context is None:
        context = _Context({}, cls, values if isinstance(values, Mapping) else {})
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise UserError(f"{path or cls.__name__} must be a group of keys, but is {values!r}")
    values = dict(values)
    if issubclass(cls, Choice):
        cls = _concrete(cls, values.pop("kind", None), path)
    fields = cls.model_fields
    built: dict[str, Any] = {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        if name not in fields:
            siblings = [*fields, *(["kind"] if issubclass(cls, Choice) else [])]
            told = _of_another_kind(cls, name, path) or _of_kind(cls, name, where)
            raise told or context.unknown(where, siblings)
        built[name] = _read(fields[name].annotation, value, where, context)
    try:
        return cls(**built)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in (path, *first["loc"]) if part != "")
        source = context.source_of(location)
        known = dict(fields)[str(first["loc"][0])] if first["loc"] else None
        raise UserError(
            sentence(first, location, known, _set_where(source) if source else None)
        ) from error


def _of_another_kind(cls: type[Config], name: str, path: str) -> UserError | None:
    """Return the error for a key that only another of the `listed` kinds has, or None."""
    if not issubclass(cls, Choice):
        return None
    for kind, target in cls.listed.items():
        if name in load(target).model_fields:
            return UserError(
                f"{path}.{name} must be left alone with {path}.kind={cls.kind()}, which has no "
                f"such key; set {path}.kind={kind}"
            )
    return None


def _of_kind(cls: type[Config], name: str, where: str) -> UserError | None:
    """Return the error for a key that is no field, but a kind of one: ``pipeline.schedule``."""
    for field, info in cls.model_fields.items():
        base = info.annotation
        if isinstance(base, type) and issubclass(base, Choice) and name in kinds(base):
            path = f"{where.removesuffix(name)}{field}"
            return UserError(
                f"unknown key {where}; {name} is a kind of {path}: set {path}.kind={name}, and its "
                f"keys as {path}.KEY"
            )
    return None


def load(target: str) -> Any:
    """Import ``module:name`` and return the object."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def kinds(base: type[Choice]) -> list[str]:
    """Return the sorted kinds of `base`: its table, and the room's files that are not in the table.

    The kinds are not imported: every file at the top level of a room defines a kind.
    """
    table = _table(base)
    if not base.room:
        return sorted(table)
    listed = {target.partition(":")[0] for target in table.values()}
    found = pkgutil.iter_modules(importlib.import_module(base.room).__path__)
    files = [f.name for f in found if not f.ispkg and f"{base.room}.{f.name}" not in listed]
    return sorted([*table, *files])


def _table(base: type[Choice]) -> Mapping[str, str]:
    if not base.room:
        return base.listed
    table: Mapping[str, str] = getattr(importlib.import_module(base.room), base.table, {})
    return table


def _class_in(base: type[ConfigT], name: str) -> type[ConfigT] | None:
    """Return the concrete class of `base` that the file `name` of its room defines, or None."""
    module = importlib.import_module(f"{base.room}.{name}")  # type: ignore[attr-defined]
    for found in vars(module).values():
        if isinstance(found, type) and issubclass(found, base) and not inspect.isabstract(found):
            if found.__module__ == module.__name__:
                return found
    return None


def _concrete(base: type[ConfigT], kind: Any, path: str) -> type[ConfigT]:
    """Find the class of a kind: an imported class, a table entry, or a file of the room."""
    if kind is None:
        if not inspect.isabstract(base):
            return base
        raise UserError(f"{path}.kind is missing{did_you_mean('', kinds(base))}")  # type: ignore[arg-type]
    if is_own(str(kind)):
        return own_class(base, str(kind), path)
    for loaded in _descendants(base):
        if f"{loaded.__module__}:{loaded.__qualname__}" == kind:
            return loaded
    table = _table(base)  # type: ignore[arg-type]
    if kind in table:
        listed: type[ConfigT] = load(table[kind])
        return listed
    choices = kinds(base)  # type: ignore[arg-type]
    if kind in choices:
        found = _class_in(base, kind)
        if found is not None:
            return found
    raise UserError(f"{path}.kind {kind!r} does not exist{did_you_mean(str(kind), choices)}")


def _descendants(base: type[ConfigT]) -> Iterator[type[ConfigT]]:
    yield base
    for child in base.__subclasses__():
        yield from _descendants(child)


def _arms(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [arm for part in typing.get_args(annotation) for arm in _arms(part)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _arms(typing.get_args(annotation)[0])
    return [annotation]


def _read(annotation: Any, value: Any, path: str, context: _Context) -> Any:
    """Convert one plain value to a value that pydantic accepts for `annotation`."""
    arms = _arms(annotation)
    if isinstance(value, str):
        if type(None) in arms and value.lower() in ("none", "null"):
            return None
        compound = [arm for arm in arms if arm not in (str, Path, type(None))]
        is_text = len(compound) < len([arm for arm in arms if arm is not type(None)])
        if not is_text and value[:1] in ("[", "{"):
            try:
                value = parse_json(value)
            except ValueError as error:
                raise UserError(f"{path} must be valid JSON, but is {value!r}: {error}") from error
        elif any(typing.get_origin(arm) is tuple for arm in arms):
            value = [part for part in value.split(",") if part]
    for arm in arms:
        if typing.get_origin(arm) is typing.Literal and isinstance(value, str):
            # On the command line a number among the choices is text; pydantic wants the number.
            value = next((item for item in typing.get_args(arm) if str(item) == value), value)
        if isinstance(arm, type) and issubclass(arm, Config) and value is not None:
            return construct(arm, value, context, path)
        if typing.get_origin(arm) is tuple and isinstance(value, (list, tuple)):
            inner = typing.get_args(arm)[0]
            if isinstance(inner, type) and issubclass(inner, Choice):  # a,b names kinds
                value = [{"kind": v} if isinstance(v, str) else v for v in value]
            return tuple(_read(inner, v, f"{path}.{i}", context) for i, v in enumerate(value))
        if typing.get_origin(arm) is dict and isinstance(value, Mapping):
            inner = typing.get_args(arm)[1]
            return {name: _read(inner, v, f"{path}.{name}", context) for name, v in value.items()}
    return value


def _tree_with(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted paths in the config's tree; kinds first, since they decide which keys exist."""
    tree = config.as_dict()
    for path, value in sorted(values.items(), key=lambda item: not item[0].endswith(".kind")):
        *parents, leaf = path.split(".")
        if not leaf or not all(parents):
            raise UserError(f"a key must look like optim.lr, but is {path!r}")
        node: Any = tree
        for depth, part in enumerate(parents):
            node = child_of(node, part, ".".join(parents[: depth + 1]))
        if leaf == "kind" and isinstance(node, dict) and node.get("kind") != value:
            _change_kind(config, node, parents, str(value))
        elif isinstance(node, list):
            node[position_in(node, leaf, path)] = value
        else:
            node[leaf] = value
    return tree


def _change_kind(config: Config, node: dict[str, Any], parents: list[str], kind: str) -> None:
    """Give `node` another kind and keep the fields that both kinds have."""
    current: Any = config
    for part in parents:
        if isinstance(current, Mapping):
            current = current.get(part)
        else:
            is_list = isinstance(current, tuple)
            current = current[int(part)] if is_list else getattr(current, part, None)
    base = type(current)
    while Choice not in base.__bases__ and issubclass(base, Choice):
        base = next(parent for parent in base.__bases__ if issubclass(parent, Choice))
    if not issubclass(base, Choice):
        node["kind"] = kind
        return
    fields = _concrete(base, kind, ".".join(parents)).model_fields
    for name in [name for name in node if name not in fields]:
        del node[name]
    node["kind"] = kind


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.as_dict()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _set_where(source: str) -> str:
    return f"set on the {source}" if source == "command line" else f"set in {source}"
