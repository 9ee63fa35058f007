"""The pure readings of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errors import refuses
from quadriga.cli import main
from quadriga.cli.entry import run, split_resume
from quadriga.cli.resolve import flatten, resolve
from quadriga.config.provenance import Resolved, read_overrides
from quadriga.engine.run_config import RunConfig
from quadriga.recipes.find import list_recipes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train r --resume", "train r --resume"),
        ("train r --resume a/b", "train r --resume-from a/b"),
        ("train r --resume optim.lr=1", "train r --resume optim.lr=1"),
        ("train r --resume --work-dir w", "train r --resume --work-dir w"),
        ("train --resume r", "train --resume r"),
        ("train r x=1 --resume a y=2", "train r x=1 --resume-from a y=2"),
    ],
)
def test_resume_takes_an_optional_path(words: str, expected: str) -> None:
    assert split_resume(words.split()) == expected.split()


def test_overrides_split_at_the_first_equals_sign() -> None:
    assert read_overrides(["a.b=c=d", "x="]) == {"a.b": "c=d", "x": ""}
    with refuses("optim.lr=3e-4", "'=3'"):
        read_overrides(["=3"])


def test_flatten_keeps_lists_whole() -> None:
    assert flatten({"a": {"b": 1, "c": {"kind": "x"}}, "d": [1]}) == {
        "a.b": 1,
        "a.c.kind": "x",
        "d": [1],
    }


COSTLY = (
    "dino_vit_small",
    "dinov2_vit_large",
    "dinov2_vit_small",
    "ibot_vit_small",
    "lejepa_vit_large",
    "swav_resnet50",
)
"""Recipes whose small siblings are rehearsed as well: many views of many images take seconds."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in COSTLY else ())
        for name in sorted(list_recipes())
    ],
)
def test_every_recipe_round_trips_and_can_be_rehearsed(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = resolve(name, None, [])
    again = Resolved.from_json(RunConfig, resolved.as_json())
    assert again.config == resolved.config
    assert resolved.config.name == name
    has_root = "data.root" in dict(resolved.config.leaves())
    words = ["data.root=/no/data/here"] if has_root else []
    ranks = str(2 * getattr(resolved.config.executor, "stages", 1))
    assert run(["train", name, *words, "--dry-run", "--ranks", ranks]) == 0
    shown = capsys.readouterr().out
    for row in ("parameters", "forward and backward", "memory per rank", "batch and lr", "length"):
        assert row in shown


def test_recipe_files_and_command_line_layer(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[optim]\nlr = 0.5\nbetas = [0.1, 0.2]\n")
    resolved = resolve("mae_digits", file, ["epochs=3", "optim.lr=0.25"], {"train.device": "cpu"})
    assert resolved.config.train.epochs == 3
    assert resolved.config.optim.lr == 0.25
    assert resolved.config.optim.as_dict()["betas"] == [0.1, 0.2]
    assert resolved.sources["optim.lr"] == "command line"
    assert resolved.sources[
        "optim.betas.0" if "optim.betas.0" in resolved.sources else "optim.betas"
    ] == str(file)
    assert resolved.sources["train.epochs"] == "command line"
    assert resolved.sources["train.device"] == "command line"


def test_print_config_shows_every_value_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "mae_digits", "optim.lr=0.5", "--print-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("optim.lr ="))
    assert line.split() == ["optim.lr", "=", "0.5", "#", "command", "line"]
    assert len(lines) == len(list(resolve("mae_digits", None, []).config.leaves()))


def test_recipes_and_doctor_speak(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    listed = capsys.readouterr().out
    for name in ("mae_digits", "mae_cifar10", "mae_vit_small", "mae_vit_base", "mae_vit_large"):
        assert name in listed
    assert run(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "torch" in told
    assert "missing" in told


@pytest.mark.parametrize(
    ("variables", "lines"),
    [
        ({}, 1),
        ({"RANK": "0"}, 1),
        ({"RANK": "1"}, 0),
        ({"RANK": "0", "QUADRIGA_RESTARTS": "0"}, 0),
    ],
)
def test_an_interrupt_is_told_once_for_all_ranks(
    variables: dict[str, str],
    lines: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(**_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "app", interrupted)
    monkeypatch.delenv("RANK", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(["train", "mae_digits"]) == 130
    assert capsys.readouterr().err.count("--resume") == lines


@pytest.mark.parametrize("name", ["/tmp/x", "../x", "a/../../x", "..", ".", "", "a\0b"])
def test_a_name_stays_in_the_folder_of_runs(name: str, tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"name": name}))
    with refuses("name", repr(name), "--work-dir"):
        resolve("mae_digits", file, [])
    assert resolve("mae_digits", None, ["name=group/my run.2"]).config.name == "group/my run.2"
