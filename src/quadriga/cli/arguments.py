"""Pure readings of the command line: overrides, recipes, the optional value of --resume."""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quadriga.errors import UserError, did_you_mean

VALUE_OPTIONS = (
    "--work-dir",
    "--config",
    "--device",
    "--ranks",
    "--resume-from",
    "--max-restarts",
    "--profile",
    "--slots",
    "--ranks-per-run",
    "--only",
)
"""Options of ``train`` and ``run`` that take the next word as their value."""


def split_resume(arguments: Sequence[str]) -> list[str]:
    """Turn ``--resume PATH`` into ``--resume-from PATH``; a bare ``--resume`` stays.

    What follows ``--resume`` is its value only when it can be a path: not an option, not an
    override with an equals sign, and not the first word after the command (the recipe).
    """
    result: list[str] = []
    words_before = 0
    items = iter(arguments)
    for word in items:
        result.append(word)
        if word in VALUE_OPTIONS:
            result.extend(itertools.islice(items, 1))
        elif word.startswith("--resume="):
            result[-1:] = ["--resume-from", word.partition("=")[2]]
        elif word == "--resume" and words_before >= 2:
            for follower in itertools.islice(items, 1):
                if _can_be_path(follower):
                    result[-1:] = ["--resume-from", follower]
                else:
                    result += split_resume([follower])
        elif _can_be_path(word):
            words_before += 1
    return result


def _can_be_path(word: str) -> bool:
    return bool(word) and not word.startswith("-") and "=" not in word


def read_overrides(words: Sequence[str]) -> dict[str, str]:
    """Read ``key=value`` words, split at the first equals sign.

    Raises:
        UserError: A word has no equals sign, no key, or a key comes twice.
    """
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"an override must look like optim.lr=3e-4, but is {word!r}")
        if key in values:
            raise UserError(f"{key} is set twice on the command line; keep one of the two")
        values[key] = value
    return values


Recipe = Callable[..., Any]


def find_recipes() -> dict[str, Recipe]:
    """Return every recipe by name: the public functions of `quadriga.recipes` that return a run."""
    return _functions_returning("RunConfig")


def find_workflows() -> dict[str, Recipe]:
    """Return the recipes of several runs: those that return a workflow."""
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
        UserError: There is none of that name, or it is one of several runs.
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
        UserError: There is none of that name, or it is a recipe of one run.
    """
    workflows = find_workflows()
    if name not in workflows:
        if name in find_recipes():
            raise UserError(f"{name} is one run and no workflow; use quadriga train {name}")
        raise UserError(f"unknown workflow {name}{did_you_mean(name, workflows)}")
    return workflows[name]


def recipe_arguments(recipe: Recipe, values: dict[str, str]) -> tuple[dict[str, Any], set[str]]:
    """Pick the values that are arguments of the recipe itself, read as their types.

    Args:
        recipe: The recipe function.
        values: Overrides; keys without a dot may name an argument.

    Returns:
        The keyword arguments, and the keys that were used.

    Raises:
        UserError: A value cannot be read as the argument's type.
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
    """Turn nested groups into dotted keys; ``x.kind`` stays a key of its own."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat
