"""The runs that recipes return for given arguments, and the overrides on top of them."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quadriga.config.messages import sentence
from quadriga.config.provenance import COMMAND_LINE, Resolved
from quadriga.engine.run_config import RunConfig, complete
from quadriga.errors import UserError, did_you_mean
from quadriga.recipes.find import Recipe, find_recipe


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
    for name, parameter in inspect.signature(recipe).parameters.items():
        if name in values:
            # An argument of the user's own recipe may have no annotation.
            default = parameter.default
            kind = str if default in (None, inspect.Parameter.empty) else type(default)
            picked[name] = _as_type(name, str(values[name]), hints.get(name, kind))
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


Layers = list[tuple[dict[str, Any], str]]
"""Overrides by dotted key and where they come from, the last word last."""


def of_recipe(recipe: str, layers: Layers) -> tuple[Resolved[RunConfig], Layers]:
    """Return a recipe's run, and the overrides with the keys that its arguments set."""
    function = find_recipe(recipe)
    picked = [recipe_arguments(function, values) for values, _ in layers]
    arguments: dict[str, Any] = {}
    for of_layer, _ in picked:
        arguments |= of_layer
    config = call(function, arguments)
    if not isinstance(config, RunConfig):
        raise UserError(
            f"{recipe} must return one RunConfig to be trained, but returned a "
            f"{type(config).__name__}; quadriga run takes workflows"
        )
    resolved = Resolved.of(config, f"recipe {recipe}")
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


def with_overrides(resolved: Resolved[RunConfig], layers: Layers) -> Resolved[RunConfig]:
    """Return a run with its overrides and the keys that depend on them, the last word last.

    Raises:
        UserError: An unknown key, or a value that breaks a rule.
    """
    for layer, source in layers:
        if layer:
            resolved = resolved.override(complete(layer, resolved.config), source)
    return resolved


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
