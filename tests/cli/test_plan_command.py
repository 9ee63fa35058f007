"""`quadriga plan`: its table, its files, the command that it prints, and its errors."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from errors import assert_command_refused, assert_says
from pipeline_fakes import words_run
from plan_fakes import made_profile
from quadriga.cli.entry import run
from quadriga.cli.plan import read_memory, refused, runs
from quadriga.cli.resolve import resolve
from quadriga.config.provenance import Resolved, read_overrides
from quadriga.engine.build import build_on_meta
from quadriga.errors import UserError
from quadriga.pipeline.config import pipeline_of
from quadriga.pipeline.planner.profile import read_profile, save_profile
from quadriga.pipeline.planner.search import Refusal
from quadriga.pipeline.topology import make_topology


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(Resolved.of(words_run(train__batch_size=16), "recipe words").as_json())
    return str(path)


@pytest.fixture
def profile(tmp_path: Path) -> str:
    path = tmp_path / "profile.json"
    save_profile(made_profile(), path)
    return str(path)


def test_a_plan_is_written_drawn_and_trained(
    recipe: str, profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf, picture = tmp_path / "conf.json", tmp_path / "plan.png"
    words = ["plan", recipe, "optim.lr=0.1", "train.accumulate=3", "--ranks", "4"]
    files = ["--output", str(conf), "--picture", str(picture)]
    assert run([*words, "--memory", "1GiB", "--profile", profile, *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "conf.json", "config.json", "plan.png", "profile.json",
    ]  # fmt: skip
    table = [line.split() for line in lines if line.strip()[:2] in {f"{n} " for n in range(1, 9)}]
    first = table[0]
    assert first[1] in ("2bw", "none")
    command = shlex.split(lines[-1])
    assert command[:3] == ["quadriga", "train", recipe]
    assert command[command.index("--ranks") + 1] == "4"
    overrides = read_overrides([word for word in command[3:] if "=" in word])
    assert overrides["optim.lr"] == "0.1"
    config = resolve(recipe, None, [f"{k}={v}" for k, v in overrides.items()]).config
    if first[1] != "none":
        topology = make_topology(pipeline_of(config), 4, 4)
        assert f"{topology.replicas} x {topology.stages}" in " ".join(first)
        assert json.loads(conf.read_text())["stage_to_rank_map"]["0"][0] == 0
    # rank, schedule, copies, x, stages, micro-batch, how many of them
    assert config.train.accumulate == int(first[6])


def test_the_same_plan_twice_is_the_same_text(
    recipe: str, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for _ in range(2):
        assert run(["plan", recipe, "--ranks", "4", "--memory", "1GiB", "--profile", profile]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_a_device_that_is_not_here(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    words = ["plan", recipe, "--ranks", "2", "--device-spec", "h100", "--save-profile", str(kept)]
    assert run(words) == 0
    out = capsys.readouterr().out
    assert "computed for h100" in out
    assert "2 ranks of 80.0 GiB" in out
    assert read_profile(kept, "words", "float32").memory == 80 * 2**30


def test_refusals_say_why(recipe: str, profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", recipe, "--ranks", "4", "--memory", "25kB", "--profile", profile]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\b2bw\b.*\b2 x 2\b.*\brecompute none\b", out)
    assert_says(out, "24.4 KiB")


def test_refusals_with_one_reason_are_one_line() -> None:
    given = [
        Refusal(4 // depth, depth, schedule, recompute, why, None)
        for depth, why in ((2, "no"), (4, "no"), (4, "never"))
        for schedule in ("1f1b", "2bw")
        for recompute in ("none", "full")
        if (depth, why, schedule) != (4, "never", "1f1b")
    ]
    assert refused(given) == [
        "1f1b, 2bw; 2 x 2, 1 x 4; recompute none or full: no",
        "2bw; 1 x 4; recompute none or full: never",
    ]


def test_more_stages_than_blocks_and_a_type_that_the_device_lacks(
    recipe: str, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", recipe, "--ranks", "16", "--memory", "1GiB", "--profile", profile]) == 0
    assert_says(capsys.readouterr().out, f"{made_profile().blocks} blocks")
    words = ["plan", recipe, "--ranks", "2", "--device-spec", "v100-16gb"]
    words = [*words, "train.precision=bfloat16"]
    assert_command_refused(words, capsys, "train.precision", "train.precision=float32")


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--ranks", "0"], ("--ranks", "at least 1", "0")),
        (["--memory", "16"], ("--memory", "unit", "'16'")),
        (["--memory", "16gb"], ("--memory", "16GiB", "'16gb'")),
        (["--memory", "0GiB"], ("--memory", "1 byte")),
        (["--memory", "1kB"], ("--memory", "depth", "raise")),
        (["--device-spec", "h10"], ("--profile", "alone")),
        (["--ranks", "7", "--memory", "1GiB"], ("train.batch_size", "7 ranks")),
        (["--ranks", "2"], ("--memory", "set")),
        (["optim.learning_rate=1"], ("optim.learning_rate", "optim.lr")),
    ],
)
def test_errors_are_one_line(
    recipe: str,
    profile: str,
    words: list[str],
    fragments: tuple[object, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_command_refused(["plan", recipe, "--profile", profile, *words], capsys, *fragments)


def test_a_recipe_without_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert_command_refused(["plan", "mae_digits", "--ranks", "2"], capsys, "mae", "stages")


def test_memory_is_read_with_its_unit() -> None:
    assert read_memory("16GiB") == 16 * 2**30
    assert read_memory(" 1.5 kB ") == 1500
    assert read_memory("7B") == 7
    with pytest.raises(UserError):
        read_memory("GiB")


def test_equal_neighbours_are_drawn_together() -> None:
    assert runs((5, 6, 6, 6, 1)) == "5 3*6 1"
    assert runs((4,)) == "4"


@pytest.mark.parametrize(("ranks", "memory"), [(1, "1GiB"), (4, "30KiB")])
def test_the_command_replaces_the_pipeline_of_the_recipe(
    ranks: int, memory: str, profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, conf = tmp_path / "cut.json", tmp_path / "conf.json"
    cut: dict[str, object] = {"executor__kind": "pipeline", "executor__schedule": "1f1b"}
    cut |= {"executor__depths": "1,3", "executor__stages": 2}
    given = words_run(train__batch_size=16, train__accumulate=2, train__ranks=2, **cut)
    path.write_text(Resolved.of(given, "recipe words").as_json())
    words = ["plan", str(path), "--ranks", str(ranks), "--memory", memory, "--profile", profile]
    assert run([*words, "executor.error_feedback=1", "--output", str(conf)]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    config = resolve(str(path), None, [word for word in command[3:] if "=" in word]).config
    config.executor.check(config, build_on_meta(config), ranks)
    assert config.executor.is_cut == (ranks > 1)
    if ranks > 1:
        assert pipeline_of(config).error_feedback == 1
        assert make_topology(pipeline_of(config), 4, ranks).depths != (1, 3)
