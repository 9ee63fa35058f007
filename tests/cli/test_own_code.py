"""Recipes and kinds in a file of the user's own: imported where the command line names it only."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quadriga.cli.entry import run
from quadriga.config import own_code
from quadriga.workflow.launcher import Task
from tiny import TINY

WORDS = tuple(word for word in TINY if not word.startswith("objective."))


@pytest.fixture(autouse=True)
def nothing_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    forget()


def forget() -> None:
    """Make this process one that has imported no file of the user's own."""
    for name in own_code._files:
        sys.modules.pop(name, None)
    own_code._files.clear()


def write(file: Path, marker: Path, more: str = "") -> Path:
    """Write a file with a recipe and a method, which leaves a mark when it is imported."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'''
from quadriga.contracts import ObjectiveConfig
from quadriga.methods.mae import MAEConfig
from quadriga.recipes.mae import mae_digits

with open({str(marker)!r}, "a") as stream:
    stream.write("imported\\n")


class OwnConfig(ObjectiveConfig):
    decoder_width: int = 16

    def build(self, model):
        return MAEConfig(
            decoder_width=self.decoder_width, decoder_depth=1, decoder_heads=2
        ).build(model)


def own(width=16):
    """One line."""
    return mae_digits().override({{"objective": OwnConfig(decoder_width=width)}})
{more}''')
    return file


def imports(marker: Path) -> int:
    return len(marker.read_text().splitlines()) if marker.exists() else 0


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line of the standard error."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def train(recipe: str, work_dir: Path, *words: str) -> int:
    return run(["train", recipe, "train.steps=2", *WORDS, *words, "--work-dir", str(work_dir)])


def test_a_recipe_and_a_method_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    write(tmp_path / "lib" / "mine.py", marker)
    work_dir = tmp_path / "run"
    assert train("lib/mine.py:own", work_dir, "width=24") == 0
    saved = json.loads((work_dir / "config.json").read_text())
    assert saved["config"]["objective"] == {"kind": "./mine.py:OwnConfig", "decoder_width": 24}
    assert saved["sources"]["objective.decoder_width"] == "command line"
    copy = work_dir / "files" / "mine.py"
    assert copy.read_bytes() == (tmp_path / "lib" / "mine.py").read_bytes()
    assert imports(marker) == 1

    forget()
    capsys.readouterr()
    for command in (["eval", "run", "knn"], ["report", "run"], ["train", "run/config.json"]):
        assert run(command) == 2
        assert "--code" in error_of(capsys)
    assert imports(marker) == 1, "what a config names was imported"
    assert run(["report", "run", "--code", str(copy)]) == 0
    assert imports(marker) == 2


@pytest.mark.parametrize("spelling", ["./mine.py:OwnConfig", "mine.py:OwnConfig"])
def test_a_config_file_imports_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spelling: str
) -> None:
    marker = tmp_path / "marker"
    write(tmp_path / "mine.py", marker)
    (tmp_path / "own.toml").write_text(f'objective.kind = "{spelling}"\n')
    words = ["train", "mae_digits", "--config", "own.toml", "--print-config"]
    assert run(words) == 2
    assert "--code ./mine.py" in error_of(capsys)
    assert imports(marker) == 0
    assert run([*words, "--code", "mine.py"]) == 0
    assert "objective.kind = ./mine.py:OwnConfig" in capsys.readouterr().out
    assert imports(marker) == 1


def test_a_kind_on_the_command_line_is_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "mine.py", tmp_path / "marker")
    words = ["train", "mae_digits", "objective.kind=./mine.py:OwnConfig"]
    assert run([*words, "objective.decoder_width=40", "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert "objective.kind = ./mine.py:OwnConfig" in shown
    assert "objective.decoder_width = 40" in shown
    assert "objective.mask_ratio" not in shown


def test_a_run_goes_on_with_the_code_it_began_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = write(tmp_path / "mine.py", tmp_path / "marker")
    assert train("mine.py:own", tmp_path / "run") == 0
    kept = tmp_path / "run" / "files" / "mine.py"
    forget()
    mine.write_text(mine.read_text() + "\nCHANGED = True\n")
    capsys.readouterr()
    assert train("mine.py:own", tmp_path / "run", "--resume") == 2
    assert str(kept) in error_of(capsys)
    assert b"CHANGED" not in kept.read_bytes()
    assert run(["eval", "run", "knn", "evaluation.train_samples=40", "--code", "mine.py"]) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert [line for line in warnings if "run/files/mine.py" in line]
    forget()
    assert train(f"{kept}:own", tmp_path / "run", "--resume") == 0


PROTOCOL = """
from quadriga.contracts import EvaluationResult, Evaluator, EvaluatorConfig


class Twice(EvaluatorConfig):
    number: int = 1

    def build(self):
        return Doubling(self.number)


class Doubling(Evaluator):
    def __init__(self, number):
        self.number = number

    def run(self, context):
        return EvaluationResult("twice", {"doubled": 2.0 * self.number})
"""


def test_a_protocol_of_ones_own_takes_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("mae_digits", tmp_path / "run") == 0
    (tmp_path / "mine.py").write_text(PROTOCOL)
    for word, doubled in (("Twice.number=4", "8"), ("./mine.py:Twice.number=5", "10")):
        assert run(["eval", "run", "./mine.py:Twice", word]) == 0
        assert f"doubled {doubled}" in capsys.readouterr().out
    for word, near in (("number=6", "Twice.number"), ("Twice.numbre=6", "number")):
        assert run(["eval", "run", "./mine.py:Twice", word]) == 2
        assert near in error_of(capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import torch\nundefined\n", ("line 2", "NameError", "undefined")),
        ("x = (\n", ("line 1", "SyntaxError")),
        ("import beside\n", ("ModuleNotFoundError", "beside")),
        (None, ("No such file",)),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: tuple[str, ...]
) -> None:
    (tmp_path / "beside.py").write_text("")  # the folder of the file is not searched
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    assert run(["train", "mine.py:own"]) == 2
    error = error_of(capsys)
    assert all(part in error for part in ("mine.py", *said)), error


def test_what_is_not_in_the_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "mine.py", tmp_path / "marker", "def number():\n    return 3\n")
    cases = {
        "mine.py:onw": "own",  # the nearest name
        "mine.py": "mine.py:my_recipe",
        "mine.py:number": "RunConfig",
    }
    for recipe, said in cases.items():
        assert run(["train", recipe]) == 2
        assert said in error_of(capsys)
    assert run(["train", "mae_digits", "objective.kind=mine.py:Other"]) == 2
    assert "OwnConfig" in error_of(capsys)
    assert run(["train", "mae_digits", "data.kind=mine.py:OwnConfig"]) == 2
    assert "DatasetConfig" in error_of(capsys)
    assert run(["run", "mine.py:own"]) == 2
    assert "Workflow" in error_of(capsys)


def test_two_files_of_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    write(tmp_path / "mine.py", marker)
    write(tmp_path / "same" / "mine.py", marker)
    write(tmp_path / "other" / "mine.py", marker, "OTHER = 1\n")
    words = ["train", "mine.py:own", "--print-config", "--code"]
    assert run([*words, "same/mine.py"]) == 0
    assert imports(marker) == 1
    capsys.readouterr()
    assert run([*words, "other/mine.py"]) == 2
    assert "rename" in error_of(capsys)


def test_nodes_get_the_code_on_their_command_line(tmp_path: Path) -> None:
    own_code.load_code(write(tmp_path / "mine.py", tmp_path / "marker"))
    words = Task("a", tmp_path / "a.json", tmp_path / "a", 1, "cpu").words
    assert words[-2:] == ["--code", str(tmp_path / "mine.py")]


@pytest.mark.long
def test_a_workflow_of_ones_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = f"""
from quadriga.workflow.graph import Node, Workflow


def flow():
    words = dict(word.split("=") for word in {WORDS!r})
    config = own().override({{**words, "train.steps": 2}})
    return Workflow(name="flow", nodes=(Node("only", config),), result="only")
"""
    marker = tmp_path / "marker"
    write(tmp_path / "mine.py", marker, more)
    assert run(["run", "mine.py:flow", "--work-dir", "flow"]) == 0, capfd.readouterr().err
    assert imports(marker) == 2, "in the command and in its node"
    (kept,) = (tmp_path / "flow").rglob("files/mine.py")
    assert kept.read_bytes() == (tmp_path / "mine.py").read_bytes()
