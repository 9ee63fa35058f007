"""From the words of the command line to one resolved `RunConfig`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quadriga.cli.arguments import Recipe, find_recipe, flatten, read_overrides, recipe_arguments
from quadriga.config.messages import sentence
from quadriga.config.provenance import Resolved
from quadriga.engine.classes import settle
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError

COMMAND_LINE = "command line"

EXCLUSIVE = (
    ("train.steps", "train.epochs", None),
    ("checkpoint.every_steps", "checkpoint.every_epochs", None),
    ("schedule.warmup_steps", "schedule.warmup_epochs", 0),
)
"""Pairs of which a run has one, and what the other is then."""


def resolve(
    recipe: str, file: Path | None, words: Sequence[str], options: Mapping[str, Any] | None = None
) -> Resolved[RunConfig]:
    """Resolve a run: the recipe, then the file, then the command line.

    Args:
        recipe: A recipe's name, or the path of a config.json that a run wrote.
        file: A JSON or TOML file of values, nested or dotted.
        words: ``key=value`` overrides; keys that are arguments of the recipe go to it.
        options: Values of the options that are short for a key, None where not given.

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
        resolved = Resolved.from_json(RunConfig, _read_text(Path(recipe)))
    else:
        function = find_recipe(recipe)
        arguments, used = recipe_arguments(function, values)
        config: RunConfig = call(function, arguments)
        resolved = Resolved.of(config, f"recipe {recipe}")
        values = {key: value for key, value in values.items() if key not in used}
    if file is not None:
        resolved = resolved.override(release(read_values(file)), str(file))
    return settle(resolved.override(release(values), COMMAND_LINE) if values else resolved)


def release(values: dict[str, Any]) -> dict[str, Any]:
    """Unset the other unit of a length that is given in one unit: ``train.steps`` and epochs.

    Args:
        values: Overrides of one origin; when they set both units they are left alone, and the
            config says what is wrong.
    """
    released = dict(values)
    for first, second, nothing in EXCLUSIVE:
        for name, other in ((first, second), (second, first)):
            if (
                name in values
                and other not in values
                and str(values[name]).lower() not in ("none", "0")
            ):
                released[other] = nothing
    return released


def call(recipe: Recipe, arguments: dict[str, Any]) -> Any:
    """Call a recipe; a value that a config refuses becomes the one-line error."""
    try:
        return recipe(**arguments)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UserError(sentence(first, path, None, f"set on the {COMMAND_LINE}")) from error


def read_values(file: Path) -> dict[str, Any]:
    """Read a JSON or TOML file of config values as dotted keys.

    Raises:
        UserError: The file cannot be read or is neither.
    """
    text = _read_text(file)
    try:
        tree = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} must be valid JSON (or TOML, named .toml): {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} must hold a group of keys, but holds {type(tree).__name__}")
    if tree.keys() == {"config", "sources"}:  # the config.json of a run
        tree = tree["config"]
    return flatten(tree)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text: {error.reason} at byte {error.start}") from error
