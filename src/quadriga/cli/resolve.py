"""The resolved `RunConfig` of a command line."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quadriga.config.provenance import COMMAND_LINE, Resolved, read_overrides
from quadriga.engine.classes import infer_num_classes
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError, reading
from quadriga.files import parse_json
from quadriga.recipes.arguments import Layers, of_recipe, with_overrides
from quadriga.recipes.find import is_file


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
    recipe: str,
    file: Path | None,
    words: Sequence[str],
    options: Mapping[str, Any] | None = None,
    start: tuple[Mapping[str, Any], str] | None = None,
) -> Resolved[RunConfig]:
    """Resolve a run: the recipe, then `start`, then the file, then the command line.

    Args:
        recipe: A recipe's name, ``FILE.py:FUNCTION``, or the path of a run's config.json.
        file: A JSON or TOML file of values, nested or dotted.
        words: ``key=value`` overrides. Of these and of the file's values, those that are arguments
            of the recipe go to it; the key that such an argument is the value of counts as set
            where the argument was.
        options: Key -> value of an option that is short for the key; None if it is not given.
        start: Values, and where they come from.

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
    layers: Layers = [] if start is None else [(dict(start[0]), start[1])]
    if file is not None:
        with reading(file, "values of a run"):
            layers.append((read_values(file), str(file)))
    layers.append((values, COMMAND_LINE))
    if is_file(recipe):
        with reading(recipe, "a saved config"):
            resolved = Resolved.from_json(RunConfig, _read_text(Path(recipe)))
    else:
        resolved, layers = of_recipe(recipe, layers)
    for layer, source in layers:
        of_file = source != COMMAND_LINE
        with reading(source, "values of a run") if of_file else contextlib.nullcontext():
            resolved = with_overrides(resolved, [(layer, source)])
    return infer_num_classes(resolved)


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
