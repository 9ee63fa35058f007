"""The resolved `RunConfig` of a command line."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quadriga.config.messages import sentence
from quadriga.config.provenance import COMMAND_LINE, Resolved, read_overrides
from quadriga.engine.preflight import infer_num_classes
from quadriga.engine.run_config import RunConfig, clear_conflicting
from quadriga.errors import UserError, did_you_mean, reading
from quadriga.files import parse_json

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


def recipe_arguments(recipe: Recipe, values: dict[str, str]) -> tuple[dict[str, Any], set[str]]:
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
            picked[name] = _as_type(name, values[name], hints[name])
    return picked, set(picked)


def _as_type(name: str, text: str, kind: Any) -> Any:
    words = {int: "an integer", float: "a number"}
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
        words: ``key=value`` overrides; keys that are arguments of the recipe go to it.
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
    if recipe.endswith(".json") or Path(recipe).is_file():
        with reading(recipe, "a saved config"):
            resolved = Resolved.from_json(RunConfig, _read_text(Path(recipe)))
    else:
        function = find_recipe(recipe)
        arguments, used = recipe_arguments(function, values)
        config: RunConfig = call(function, arguments)
        resolved = Resolved.of(config, f"recipe {recipe}")
        values = {key: value for key, value in values.items() if key not in used}
    if file is not None:
        with reading(file, "values of a run"):
            resolved = resolved.override(clear_conflicting(read_values(file)), str(file))
    return infer_num_classes(
        resolved.override(clear_conflicting(values), COMMAND_LINE) if values else resolved
    )


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
    with reading(file, "valid JSON (or TOML, named .toml)"):
        tree = tomllib.loads(text) if file.suffix == ".toml" else parse_json(text)
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
