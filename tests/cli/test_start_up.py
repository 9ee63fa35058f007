"""What every process of a run imports."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from quadriga import recipes
from quadriga.recipes.find import list_recipes, list_workflows

RECIPES, WORKFLOWS = list_recipes(), list_workflows()

HEAVY = (
    "matplotlib.figure",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.pipelining",
    "torch.distributed.tensor",
    "sympy",
    "sklearn",
    "pyarrow",
)


def test_nothing_heavy_is_imported_before_the_first_step(tmp_path: Path) -> None:
    code = f"""
import json, os, sys
from quadriga.cli.entry import run
from quadriga.engine.logs import journal

def show(self, record, done):
    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), flush=True)
    os._exit(0)

journal.Journal._show = show
run(["train", "mae_digits", "--ranks", "1", "--work-dir", {str(tmp_path / "run")!r}])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [], done.stderr


@pytest.mark.parametrize("module", ["quadriga.cli.entry", "quadriga.cli.main"])
def test_the_command_line_is_read_before_torch_is_imported(module: str) -> None:
    code = f"import json, sys\nimport {module}\nprint(json.dumps('torch' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) is False


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["recipes"], 0), (["train", "mae_digit"], 2)],
)
def test_recipes_are_listed_and_missed_without_torch(words: list[str], expected: int) -> None:
    code = f"""
import sys
from quadriga.cli.entry import run
code = run({words!r})
sys.exit(100 if "torch" in sys.modules else code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == expected, done.stderr
    assert "mae_digits" in done.stdout or "did you mean" in done.stderr


@pytest.mark.parametrize(("kind", "listed"), [("RunConfig", RECIPES), ("Workflow", WORKFLOWS)])
def test_the_listed_recipes_are_the_functions_that_return_one(
    kind: str, listed: dict[str, str]
) -> None:
    """The oracle imports every module and asks its functions for their types."""
    found = {}
    names = [info.name for info in pkgutil.iter_modules(recipes.__path__)]
    for stem in (name for name in names if not name.startswith("_")):
        module = importlib.import_module(f"quadriga.recipes.{stem}")
        for name, function in vars(module).items():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                returned = typing.get_type_hints(function).get("return")
                if not name.startswith("_") and getattr(returned, "__name__", "") == kind:
                    found[name] = (inspect.getdoc(function) or "").splitlines()[0]
    assert listed == dict(sorted(found.items()))
