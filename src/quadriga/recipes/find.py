"""Recipes and workflows by name.

A name is that of a function in this package, or ``FILE.py:FUNCTION`` for one in a file of the
user's own. This package is listed from its source, so that torch is not imported for a list.
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quadriga.config import own_code
from quadriga.errors import UserError, did_you_mean

Recipe = Callable[..., Any]

_FOLDER = Path(__file__).parent


def list_recipes() -> dict[str, str]:
    """Return every recipe of one run with the first line of its docstring, sorted by name."""
    return {name: summary for name, (_, summary) in _returning("RunConfig").items()}


def list_workflows() -> dict[str, str]:
    """Return every recipe of several runs with the first line of its docstring."""
    return {name: summary for name, (_, summary) in _returning("Workflow").items()}


@functools.cache
def _returning(kind: str) -> dict[str, tuple[str, str]]:
    """Return module and summary of the public functions that are annotated to return `kind`."""
    found = {}
    for path in _FOLDER.glob("[!_]*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                if node.returns is not None and ast.unparse(node.returns) == kind:
                    summary = (ast.get_docstring(node) or "").partition("\n")[0]
                    found[node.name] = (path.stem, summary)
    return dict(sorted(found.items()))


def is_file(recipe: str) -> bool:
    """Return whether the word for a recipe names the config.json of a run instead."""
    is_config = recipe.endswith(".json") or Path(recipe).is_file()
    return is_config and not _is_in_own_file(recipe)


def check_recipe(recipe: str) -> None:
    """Check the word for a recipe, without importing it.

    Raises:
        UserError: It is no file, and no recipe has that name, or it is one of several runs.
    """
    if is_file(recipe) or _is_in_own_file(recipe) or recipe in (known := list_recipes()):
        return
    if recipe in list_workflows():
        raise _on_every_rank(f"{recipe} is a workflow of several runs; use quadriga run {recipe}")
    raise _on_every_rank(f"unknown recipe {recipe}{did_you_mean(recipe, known)}")


def check_workflow(recipe: str) -> None:
    """Check the name of a workflow, without importing it.

    Raises:
        UserError: There is none of that name, or it is a recipe of one run.
    """
    if _is_in_own_file(recipe) or recipe in (known := list_workflows()):
        return
    if recipe in list_recipes():
        raise _on_every_rank(f"{recipe} is one run and no workflow; use quadriga train {recipe}")
    raise _on_every_rank(f"unknown workflow {recipe}{did_you_mean(recipe, known)}")


def _on_every_rank(sentence: str) -> UserError:
    error = UserError(sentence)
    error.on_every_rank = True
    return error


def find_recipe(name: str) -> Recipe:
    """Return the recipe called `name`; see `check_recipe`."""
    if _is_in_own_file(name):
        return _own_function(name)
    check_recipe(name)
    return _imported(name, "RunConfig")


def find_workflow(name: str) -> Recipe:
    """Return the workflow called `name`; see `check_workflow`."""
    if _is_in_own_file(name):
        return _own_function(name)
    check_workflow(name)
    return _imported(name, "Workflow")


def _imported(name: str, kind: str) -> Recipe:
    module, _ = _returning(kind)[name]
    gc.disable()  # what an import makes lives as long as the process
    try:
        recipe: Recipe = getattr(importlib.import_module(f"quadriga.recipes.{module}"), name)
    finally:
        gc.enable()
    return recipe


def _is_in_own_file(name: str) -> bool:
    return own_code.is_own(name) or name.endswith(".py")


def _own_function(name: str) -> Recipe:
    if not own_code.is_own(name):
        raise UserError(f"{name} must be followed by one of its functions: {name}:my_recipe")
    file, function = own_code.split(name)
    module = own_code.load_code(file)
    functions = {
        found: value
        for found, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }
    if function not in functions:
        raise UserError(f"{file} has no function {function}{did_you_mean(function, functions)}")
    return functions[function]
