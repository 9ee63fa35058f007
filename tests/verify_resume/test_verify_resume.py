"""The planning and the comparing behind ``quadriga verify-resume``."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from quadriga.cli.entry import run
from quadriga.cli.resolve import resolve
from quadriga.cli.verify_resume import VerifyRequest, bit_equal_case, conclude
from quadriga.data.reading.stream import Part
from quadriga.engine.logs.samples import SampleLog, read_samples, rewind_samples
from quadriga.engine.run_plan import make_plan
from quadriga.verify_resume.compare import (
    Comparison,
    compare,
    greatest_difference,
    plan_kills,
    planned_samples,
    read_run,
    without_clock,
)
from tiny import TIMES, tiny_run


@given(st.integers(0, 100), st.integers(4, 40), st.integers(0, 12))
def test_kills_are_keyed_in_order_and_of_every_way(seed: int, steps: int, kills: int) -> None:
    plan = plan_kills(seed, steps, kills)
    assert plan == plan_kills(seed, steps, kills)
    assert len(plan) == kills
    places = [kill.step for kill in plan]
    assert places == sorted(places)
    assert all(1 <= step <= steps - 2 for step in places)
    if kills <= steps - 2:
        assert len(set(places)) == kills
    counts = Counter(kill.how for kill in plan)
    assert len(counts) == min(3, kills)
    assert not counts or max(counts.values()) - min(counts.values()) <= 1


def test_other_seeds_give_other_plans() -> None:
    assert len({tuple(plan_kills(seed, 30, 4)) for seed in range(20)}) == 20


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps with its samples written down."""
    work_dir = tmp_path_factory.mktemp("verify") / "run"
    assert run(tiny_run(work_dir, 3, "log.samples=true", "loader.workers=0")) == 0
    return work_dir


@pytest.fixture
def doctored(tmp_path: Path, straight: Path) -> Path:
    """A copy of the run, to be changed."""
    return shutil.copytree(straight, tmp_path / "doctored")


def assert_found(doctored: Path, straight: Path, part: str, start: str) -> None:
    """Check that only `part` differs, that it says where, and that the command would fail."""
    found = compare(read_run(straight, 3), read_run(doctored, 3))
    expected = dict.fromkeys(("parameters", "optimizer", "metrics", "samples"), "equal")
    assert getattr(found, part).startswith(f"DIFFERENT: {start}")
    assert found == Comparison(**{**expected, part: getattr(found, part)})
    cases = [bit_equal_case("killed, resumed", "ddp:1", "SIGKILL", found)]
    assert conclude(VerifyRequest("mae_digits"), cases, {}) == 1


def planned(repeats: int) -> list[tuple[int, int, int]]:
    words = ["train.batch_size=8", f"train.repeats={repeats}"]
    config = resolve("mae_digits", None, words).config
    return planned_samples(config, make_plan(config, 1437, 1), 3)


def test_a_run_with_repeats_reads_what_was_planned(tmp_path: Path) -> None:
    words = tiny_run(tmp_path, 3, "log.samples=true", "loader.workers=0", "train.repeats=3")
    assert run(words) == 0
    read = read_samples(tmp_path / "samples")
    assert [(sample.step, sample.position, sample.key) for sample in read] == planned(3)
    for step in (1, 2, 3):
        indices = [sample.sample for sample in read if sample.step == step]
        assert indices == indices[:3] * 2 + indices[:2]
    assert len({sample.sample for sample in read}) == 9


def test_a_run_equals_itself_and_read_what_was_planned(straight: Path, doctored: Path) -> None:
    record = read_run(straight, 3)
    found = compare(record, read_run(doctored, 3))
    assert found == Comparison("equal", "equal", "equal", "equal")
    assert conclude(VerifyRequest("x"), [bit_equal_case("", "", "", found)], {}) == 0
    assert [(read.step, read.position, read.key) for read in record.samples] == planned(1)


@pytest.mark.parametrize(("part", "prefix"), [("parameters", "objective."), ("optimizer", "opti")])
def test_one_flipped_bit_is_found(straight: Path, doctored: Path, part: str, prefix: str) -> None:
    (shard,) = (doctored / "checkpoints" / "step_00000003").glob("*.safetensors")
    tensors = {name: tensor.clone() for name, tensor in load_file(shard).items()}
    name = sorted(name for name in tensors if name.startswith(prefix) and tensors[name].ndim)[0]
    tensors[name].view(torch.int32).reshape(-1)[-1] ^= 1
    save_file(tensors, shard)
    assert_found(doctored, straight, part, f"{name} and 0 more of ")


def test_a_changed_metric_is_found(straight: Path, doctored: Path) -> None:
    path = doctored / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["loss"] += 1e-12
    lines[2]["step_seconds"] = 7.0  # the clock's, which nobody compares
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_found(doctored, straight, "metrics", "loss at step 2")


def test_another_sample_is_found(straight: Path, doctored: Path) -> None:
    path = doctored / "samples" / "rank_00000.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["index"][5] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_found(doctored, straight, "samples", "step 3, sample 5")


def test_the_sample_log_is_rewound_for_ranks_that_are_gone_too(tmp_path: Path) -> None:
    for rank, places in ((0, range(0, 2)), (1, range(2, 4))):
        log = SampleLog(tmp_path, rank)
        for step in range(3):
            numbers = torch.tensor([10 * step + place for place in places])
            part = Part(places, numbers.numpy(), -numbers.numpy())
            log.add(step, part, {"index": numbers, "key": -numbers})
        log.close()
    with (tmp_path / "rank_00001.jsonl").open("a") as stream:
        stream.write('{"step": 2, "fir')
    rewind_samples(tmp_path, 2)
    found = [tuple(sample) for sample in read_samples(tmp_path)]
    assert found == [(s + 1, p, 10 * s + p, -(10 * s + p), "") for s in range(2) for p in range(4)]


def test_the_greatest_difference_is_relative_and_named() -> None:
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([100.0]), "c": torch.zeros(2)}
    other = {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor([110.0]), "c": torch.zeros(2)}
    assert greatest_difference(one, other) == (0.2, "a")
    assert greatest_difference(one, one) == (0.0, "")


def test_the_clock_is_left_out_and_nothing_else() -> None:
    kept = dict.fromkeys(("step", "loss", "lr", "grad_norm", "samples", "epoch"), 1.0)
    assert without_clock({**kept, **dict.fromkeys(TIMES, 2.0)}) == kept
