"""``quadriga verify-resume``: real runs, really killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errors import assert_command_refused
from quadriga.cli.entry import run
from quadriga.verify_resume.children import OWN, Layout, Runner
from tiny import TINY

WORDS = [word for word in TINY if word.partition("=")[0] not in OWN]


def test_a_killed_run_is_proved_to_be_the_straight_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "6", "--kills", "2", "--ranks", "1", "--json"]
    place = ["--work-dir", str(tmp_path / "proof"), "loader.workers=0"]
    assert run(["verify-resume", "mae_digits", *WORDS, *options, *place]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["passed"]
    straight, killed = told["cases"]
    assert straight["samples"] == "as planned"
    parts = [killed[name] for name in ("parameters", "optimizer", "metrics", "samples")]
    assert parts == ["equal"] * 4
    assert killed["interruptions"].count("SIG") == 2


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["train.steps=3"], ("train.steps",)),
        (["--layouts", "ddp"], ("--layouts", "ddp:1,ddp:2,fsdp:2", "ddp")),
        (["--steps", "2"], ("--steps", "at least 4", "2")),
        (["optim.lrr=1"], ("optim.lrr", "optim.lr")),
        (
            ["--steps", "4", "--kills", "3"],
            ("--kills", "--steps", "2", "3"),
        ),
        (["--launcher", "/no/srun -n {ranks}"], ("--launcher", "/no/srun")),
        (["--launcher", "'srun"], ("--launcher", "quotation")),
        (["--ranks", "16"], ("train.batch_size", "train.accumulate", "8")),
    ],
)
def test_mistakes_are_found_before_any_run(
    words: list[str], fragments: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_command_refused(["verify-resume", "mae_digits", *WORDS, *words], capsys, *fragments)


def test_a_launcher_starts_the_ranks_itself() -> None:
    runner = Runner("mae_digits", ["a=1"], 12, ["srun", "--ntasks={ranks}"], print)
    words = runner.command(Layout("fsdp", 8), Path("run"), resume=True)
    assert words[:2] == ["srun", "--ntasks=8"]
    assert words[3:8] == ["-P", "-m", "quadriga", "train", "mae_digits"]
    assert {"train.ranks=1", "train.parallel=fsdp", "train.steps=12", "a=1"} <= set(words)
    assert words[-1] == "--resume"
