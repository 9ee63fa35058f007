"""What ``import quadriga`` offers; docs/api.md is followed in tests/e2e/test_api_page.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import quadriga
from errors import assert_says, refuses
from quadriga.cli.entry import run
from quadriga.cli.resolve import resolve
from quadriga.config import own_code
from quadriga.engine.logs.directory import RunDirectory
from tiny import TINY, assert_same_run

MINE = '''
from quadriga.contracts import EvaluationResult, Evaluator, EvaluatorConfig, ObjectiveConfig
from quadriga.methods.mae import MAEConfig


class OwnConfig(ObjectiveConfig):
    """A small MAE."""

    def build(self, model):
        return MAEConfig(decoder_width=16, decoder_depth=1, decoder_heads=2).build(model)


class CountConfig(EvaluatorConfig):
    """The number of test images."""

    def build(self):
        return Count()


class Count(Evaluator):
    def run(self, context):
        return EvaluationResult("count", {"images": float(len(context.data("test")))})
'''


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    yield
    for name in own_code._files:
        sys.modules.pop(name, None)
    own_code._files.clear()


def test_a_recipe_is_that_of_the_command_line() -> None:
    values = {"epochs": 3, "optim.lr": 0.25, "train.ranks": 1, "optim.betas": [0.1, 0.2]}
    words = [f"{key}={value}" for key, value in values.items()]
    assert quadriga.recipe("mae_digits", **values) == resolve("mae_digits", None, words).config
    with refuses("optim.learning_rate", "optim.lr"):
        quadriga.recipe("mae_digits", **{"optim.learning_rate": 1})
    with refuses("mae_digits"):
        quadriga.recipe("mae_digit")


def test_other_names_are_no_attributes() -> None:
    assert {"load_encoder", "recipe", "train", "evaluate"} <= set(dir(quadriga))
    with pytest.raises(AttributeError):
        quadriga.nothing  # noqa: B018


@pytest.mark.long
def test_ranks_of_a_run_in_python_get_the_users_code(
    capfd: pytest.CaptureFixture[str],
) -> None:
    mine = quadriga.load_code("mine.py")
    words = [word for word in TINY if not word.startswith("objective.")]
    values = dict(word.split("=") for word in words) | {
        "train.steps": 2,
        "objective.kind": "./mine.py:OwnConfig",
    }
    config = quadriga.recipe("mae_digits", **values)
    assert isinstance(config.objective, mine.OwnConfig)
    alone = quadriga.train(config.override({"train.ranks": 1}), "alone")
    pair = quadriga.train(config.override({"train.ranks": 2}), "pair")
    assert run(["train", str(alone / "config.json"), "--work-dir", "command"]) == 0
    assert_same_run(alone, Path("command"), 2)
    assert RunDirectory(pair).read_config().config.train.ranks == 2
    assert (pair / "files" / "mine.py").read_text() == MINE
    with refuses("alone", "train.steps"):
        quadriga.train(config.override({"train.steps": 4, "train.ranks": 1}), "alone")
    capfd.readouterr()
    quadriga.evaluate(alone, "./mine.py:CountConfig")
    assert_says(capfd.readouterr().out, "count", "360")
