"""A loss that is not a number on one rank: decided alike on all, nothing lost, made again alone."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path

import pytest

from errors import assert_command_refused, assert_says
from parallel_worker import tiny_config
from quadriga.cli.entry import run
from quadriga.config.provenance import Resolved
from quadriga.data.reading.sampling import step_samples
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import build_objective
from quadriga.engine.checkpoint.store import list_checkpoints
from quadriga.engine.faults.replay import write_replay
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step.bad_step import BadStep
from ranks import run_ranks
from tiny import assert_bit_equal, assert_same_run, read_checkpoint, read_metrics, tiny_run

STEPS, BAD = 8, 5
WORDS = [
    "checkpoint.every_steps=3",
    "checkpoint.keep=3",
    "loader.workers=0",
    "optim.clip_norm=1",
]
HERE = Path(__file__).resolve().parent


def poisoned(work_dir: Path, times: int, *words: str, ranks: int = 2) -> tuple[int, str]:
    """Run on two ranks with a bad loss on the second at step BAD; return the code and errors."""
    injected = [sys.executable, str(HERE / "injected.py"), "nan", str(ranks - 1), str(BAD)]
    done = run_ranks([*injected, str(times), *tiny_run(work_dir, STEPS, *WORDS, *words)], ranks)
    assert len({rank.returncode for rank in done}) == 1, [rank.stderr for rank in done]
    return done[0].returncode, "".join(rank.stderr for rank in done)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a fault, on two ranks."""
    work_dir = tmp_path_factory.mktemp("straight") / "run"
    code, errors = poisoned(work_dir, 0)
    assert code == 0, errors
    return work_dir


def test_stop_ends_every_rank_before_the_update(tmp_path: Path, straight: Path) -> None:
    work_dir = tmp_path / "run"
    code, errors = poisoned(work_dir, 99)
    assert code == 2
    assert errors.count("error:") == 1
    assert_says(errors, "loss", "nan", "step 6")
    replay = work_dir / "replay" / "step_00000006.safetensors"
    assert_says(errors, f"quadriga replay {replay}")
    assert replay.is_file()
    (event,) = map(json.loads, (work_dir / "events.jsonl").read_text().splitlines())
    assert (event["event"], event["step"], event["what"]) == ("bad step", BAD + 1, "loss")
    config = RunDirectory(work_dir).read_config().config
    size = len(config.data.build("train"))
    index, _ = step_samples(config.seed, size, config.train.batch_size, BAD)
    assert event["samples"] == index.tolist()
    assert [path.name for path in list_checkpoints(work_dir / "checkpoints")] == ["step_00000003"]
    assert poisoned(work_dir, 0, "--resume")[0] == 0
    assert_same_run(work_dir, straight, STEPS)


def test_skip_is_the_run_that_leaves_the_update_out(tmp_path: Path) -> None:
    skipped, without = tmp_path / "skipped", tmp_path / "without"
    code, errors = poisoned(skipped, 99, "health.non_finite=skip")
    assert code == 0, errors
    assert_says(errors, "left out", f"step {BAD + 1}")
    without.mkdir()
    (without / "report").mkdir()
    code, errors = poisoned(without, 0)
    assert code == 0, errors
    records = read_metrics(skipped)
    assert [record["step"] for record in records if record.get("skipped")] == [BAD + 1]
    assert "loss" not in records[BAD]
    # The schedule follows the updates: the step after a skipped one has its learning rate.
    assert records[BAD + 1]["lr"] == read_metrics(without)[BAD]["lr"]
    assert int(read_checkpoint(skipped, STEPS)["executor.skipped"]) == 1


def test_rollback_after_a_passing_fault_is_the_run_without_it(
    tmp_path: Path, straight: Path
) -> None:
    work_dir = tmp_path / "run"
    code, errors = poisoned(work_dir, 1, "health.non_finite=rollback")
    assert code == 0, errors
    assert_says(errors, "step_00000003", "again")
    assert_same_run(work_dir, straight, STEPS)


def test_rollback_leaves_out_what_is_bad_again_and_resumes_alike(tmp_path: Path) -> None:
    work_dir, resumed = tmp_path / "run", tmp_path / "resumed"
    code, errors = poisoned(work_dir, 99, "health.non_finite=rollback", ranks=1)
    assert code == 0, errors
    assert_says(errors, "step_00000003", "steps 4 to 6")
    assert json.loads((work_dir / "left_out.json").read_text())["ranges"] == [[3, 5]]
    records = read_metrics(work_dir)
    assert [record["step"] for record in records if record.get("skipped")] == [4, 5, 6]
    # A run that is told to leave the same steps out, and never meets the fault.
    words = tiny_run(resumed, STEPS, *WORDS)
    assert run([*words[:2], *words[2:]]) == 0
    (resumed / "left_out.json").write_text('{"ranges": [[3, 5]], "tried": []}')
    again = ["--resume", str(resumed / "checkpoints" / "step_00000003")]
    assert run([*words, *again]) == 0
    assert_bit_equal(read_checkpoint(resumed, STEPS), read_checkpoint(work_dir, STEPS))
    assert read_metrics(resumed) == records


def test_too_many_bad_steps_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "optim.lr=1e6",
        "optim.weight_decay=1e6",
        "optim.clip_norm=none",
        "health.max_bad_steps=2",
    ]
    own = [word for word in WORDS if not word.startswith("optim.")]
    assert run(tiny_run(tmp_path / "run", 30, *own, *words, "health.non_finite=skip")) == 2
    errors = capsys.readouterr().err
    assert errors.count("left out") == 2
    assert_says(errors, "number 3", "health.max_bad_steps")
    assert "health.non_finite" not in errors, "that is what it does already"


def test_a_bad_step_is_made_again_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "optim.lr=1e6",
        "optim.weight_decay=1e6",
        "optim.clip_norm=none",
        "loader.workers=0",
        "train.accumulate=2",
    ]
    assert run(tiny_run(tmp_path / "run", 30, *words)) == 2
    (file,) = (tmp_path / "run" / "replay").glob("*.safetensors")
    capsys.readouterr()
    assert run(["replay", str(file)]) == 0
    said = capsys.readouterr().out
    assert "reproduced: " in said
    assert "encoder." in said, "the first module that is not finite is named"
    assert "…" not in said, "and named whole, in a file too"
    # A fault that is neither in the data nor in the weights does not come again.
    work_dir = tmp_path / "poisoned"
    assert poisoned(work_dir, 1)[0] == 2
    (file,) = (work_dir / "replay").glob("*.safetensors")
    assert run(["replay", str(file)]) == 1
    assert "not reproduced" in capsys.readouterr().out


def test_the_newest_replay_files_stay_whatever_their_steps(tmp_path: Path) -> None:
    """A run that goes on from an earlier step has bad steps before those of the old history."""
    config = tiny_config([])
    plan = make_plan(config, 1000, 1)
    objective = build_objective(config, SINGLE.device, config.seed)
    resolved = Resolved.of(config, "test")
    for age, step in ((30, 100), (20, 200), (10, 300), (0, 50)):
        bad = BadStep(step - 1, "loss", math.nan, 1.0, 0)
        written = Path(write_replay(tmp_path, resolved, plan, SINGLE, objective, bad))
        assert written.is_file()
        os.utime(written, (time.time() - age,) * 2)
    assert sorted(int(path.stem[-8:]) for path in tmp_path.iterdir()) == [50, 200, 300]


@pytest.mark.parametrize(
    ("damage", "fragments"),
    [
        ("missing", ("replay",)),
        ("folder", ("folder",)),
        ("cut", ("header",)),
        ("other", ("'recorded'",)),
    ],
)
def test_a_file_that_is_no_replay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, fragments: tuple[object, ...]
) -> None:
    file = tmp_path / "x.safetensors"
    if damage == "folder":
        file.mkdir()
    elif damage == "cut":
        file.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    elif damage == "other":
        import torch
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, file)
    assert_command_refused(["replay", file], capsys, file, *fragments)
