"""The resolved `RunConfig` of a command line."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quadriga.config.messages import sentence
from quadriga.config.provenance import COMMAND_LINE, Resolved, read_overrides
from quadriga.engine.preflight import infer_num_classes
from quadriga.engine.run_config import RunConfig, complete
from quadriga.errors import UserError, did_you_mean

Recipe = Callable[..., Any]


def find_recipes() -> dict[str, Recipe]:
    """Return every recipe by name: the public functions of `quadriga.recipes` that return a run."""
    return _functions_returning("RunConfig")


def find_workflows() -> dict[str, Recipe]:
    """Return every workflow by name: the recipes that return several runs."""
    return _functions_returning("Workflow")


def _functions_returning(kind: str) -> dict[str, Recipe]:
    package = importlib.import_module("quadriga.recipes")
    found: dict[str, Recipe] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, function in vars(module).items():
            own = inspect.isfunction(function) and function.__module__ == module.__name__
            if own and not name.startswith("_") and _returned(function) == kind:
                found[name] = function
    return dict(sorted(found.items()))


def _returned(function: Recipe) -> str:
    return getattr(typing.get_type_hints(function).get("return"), "__name__", "")


def find_recipe(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        UserError: No recipe has that name, or it is a workflow.
    """
    recipes = find_recipes()
    if name not in recipes:
        if name in find_workflows():
            raise UserError(f"{name} is a workflow of several runs; use quadriga run {name}")
        raise UserError(f"unknown recipe {name}{did_you_mean(name, recipes)}")
    return recipes[name]


def find_workflow(name: str) -> Recipe:
    """Return the workflow called `name`.

    Raises:
        UserError: No workflow has that name, or it is a recipe of one run.
    """
    workflows = find_workflows()
    if name not in workflows:
        if name in find_recipes():
            raise UserError(f"{name} is one run and no workflow; use quadriga train {name}")
        raise UserError(f"unknown workflow {name}{did_you_mean(name, workflows)}")
    return workflows[name]


def recipe_arguments(recipe: Recipe, values: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return the overrides that are arguments of the recipe, converted to their types.

    Args:
        recipe: The recipe function.
        values: Overrides; keys without a dot may name an argument.

    Returns:
        The keyword arguments, and the keys that they use.

    Raises:
        UserError: A value cannot be converted to the argument's type.
    """
    hints = typing.get_type_hints(recipe)
    picked: dict[str, Any] = {}
    for name in inspect.signature(recipe).parameters:
        if name in values:
            picked[name] = _as_type(name, str(values[name]), hints[name])
    return picked, set(picked)


def _as_type(name: str, text: str, kind: Any) -> Any:
    words = {int: "an integer", float: "a number"}
    if isinstance(kind, types.UnionType):  # an optional value
        if text.lower() == "none":
            return None
        (kind,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
    if kind in (str, Path):
        return kind(text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{name} must be true or false, but is {text!r}")
        return text.lower() == "true"
    if typing.get_origin(kind) is typing.Literal:
        if text not in typing.get_args(kind):
            raise UserError(f"unknown {name} {text}{did_you_mean(text, typing.get_args(kind))}")
        return text
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(f"{name} must be {words.get(kind, kind)}, but is {text!r}") from error


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested groups into dotted keys; ``x.kind`` becomes a key like any other."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def resolve(
    recipe: str, file: Path | None, words: Sequence[str], options: Mapping[str, Any] | None = None
) -> Resolved[RunConfig]:
    """Resolve a run: the recipe, then the file, then the command line.

    Args:
        recipe: A recipe's name, or the path of a config.json that a run wrote.
        file: A JSON or TOML file of values, nested or dotted.
        words: ``key=value`` overrides. Of these and of the file's values, those that are arguments
            of the recipe go to it; the key that such an argument is the value of counts as set
            where the argument was.
        options: Key -> value of an option that is short for the key; None if it is not given.

    Raises:
        UserError: An unknown recipe, key or value, an unreadable file, or an option and an
            override that contradict each other.
    """
    values = read_overrides(words)
    for key, value in (options or {}).items():
        if value is not None and values.setdefault(key, str(value)) != str(value):
            raise UserError(
                f"{key} is set twice: {values[key]} and {value} on the {COMMAND_LINE}, of which "
                "one is by the option that is short for it; keep one of the two"
            )
    layers = [(read_values(file), str(file))] if file is not None else []
    layers.append((values, COMMAND_LINE))
    if recipe.endswith(".json") or Path(recipe).is_file():
        resolved = Resolved.from_json(RunConfig, _read_text(Path(recipe)))
    else:
        resolved, layers = _of_recipe(recipe, layers)
    for layer, source in layers:
        if layer:
            resolved = resolved.override(complete(layer, resolved.config), source)
    return infer_num_classes(resolved)


Layers = list[tuple[dict[str, Any], str]]
"""Overrides by dotted key and where they come from, the last word last."""


def _of_recipe(recipe: str, layers: Layers) -> tuple[Resolved[RunConfig], Layers]:
    """Return a recipe's run, and the overrides with the keys that its arguments set."""
    function = find_recipe(recipe)
    picked = [recipe_arguments(function, values) for values, _ in layers]
    arguments: dict[str, Any] = {}
    for of_layer, _ in picked:
        arguments |= of_layer
    resolved = Resolved.of(call(function, arguments), f"recipe {recipe}")
    changed: Layers = []
    for (values, source), (of_layer, used) in zip(layers, picked, strict=True):
        keys = {
            key: value
            for name, value in of_layer.items()
            for key in _keys_of_argument(function, {**arguments, **of_layer}, name)
        }
        rest = {key: value for key, value in values.items() if key not in used}
        changed.append(({**keys, **rest}, source))
    return resolved, changed


def _keys_of_argument(function: Recipe, arguments: Mapping[str, Any], name: str) -> list[str]:
    """Return the config keys whose value is that argument of the recipe, and not derived from it.

    They are those that have the argument's value now, and another value's when it is another one.
    """
    value = arguments[name]
    if isinstance(value, bool):
        other: Any = not value
    elif isinstance(value, int | float):
        other = value + 1
    else:
        other = type(value)(f"{value}.other")
    try:
        now, then = (dict(function(**{**arguments, name: one}).leaves()) for one in (value, other))
    except (ValidationError, UserError):
        return []
    shown, other_shown = (str(v) if isinstance(v, Path) else v for v in (value, other))
    return [key for key in now if now[key] == shown and then.get(key) == other_shown]


def call(recipe: Recipe, arguments: dict[str, Any]) -> Any:
    """Call a recipe.

    Raises:
        UserError: A config refuses a value.
    """
    try:
        return recipe(**arguments)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UserError(sentence(first, path, None, f"set on the {COMMAND_LINE}")) from error


def read_values(file: Path) -> dict[str, Any]:
    """Read a JSON or TOML file of config values as dotted keys.

    Raises:
        UserError: The file cannot be read, or is neither JSON nor TOML.
    """
    text = _read_text(file)
    try:
        tree = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} must be valid JSON (or TOML, named .toml): {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} must hold a group of keys, but holds {type(tree).__name__}")
    if tree.keys() == {"config", "sources"}:  # the config.json of a run
        RunConfig.upgraded(tree["config"], tree["sources"])
        tree = tree["config"]
    return flatten(tree)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text: {error.reason} at byte {error.start}") from error
