"""How a run chooses its executor: the kinds, their keys, and which rank reads what."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from errors import assert_says, refuses
from quadriga.cli.entry import run
from quadriga.config.base import kinds
from quadriga.contracts import ExecutorConfig, Share
from quadriga.engine.build import build_on_meta
from quadriga.engine.step.data_parallel_config import DataParallelConfig
from quadriga.errors import UserError
from quadriga.pipeline.config import OWN, PipelineConfig
from quadriga.pipeline.schedules import SCHEDULES
from quadriga.recipes.bert import bert_tiny_pydoc
from quadriga.recipes.mae import mae_digits


def test_the_kinds_are_listed_and_read() -> None:
    assert kinds(ExecutorConfig) == ["data_parallel", "pipeline"]  # type: ignore[type-abstract]
    assert mae_digits().executor == DataParallelConfig()
    for config in (mae_digits(), bert_tiny_pydoc()):
        assert type(config).from_dict(config.as_dict()) == config
    assert bert_tiny_pydoc().as_dict()["executor"]["kind"] == "pipeline"
    assert set(OWN) == set(SCHEDULES)


def test_a_config_is_read_without_its_executor() -> None:
    code = (
        "import sys; from quadriga.recipes.mae import mae_digits; mae_digits();"
        "print([name for name in sys.modules if name.startswith('quadriga.pipeline')"
        " or name in ('torch.distributed.fsdp', 'quadriga.engine.step.data_parallel')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.stdout.strip() == "[]", shown.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["executor.schedule=2bw"], ["executor.schedule", "executor.kind=pipeline"]),
        (["executor.stages=2", "executor.conf=c.json"], ["executor.kind=pipeline"]),
        (["executor.kind=pipline"], ["executor.kind", "pipeline"]),
        (["executor.kind=pipeline"], ["executor.kind", "data_parallel", "objective.kind=mae"]),
        (["executor.kind=pipeline", "executor.schedul=2bw"], ["executor.schedule"]),
        (["executor.kind=pipeline", "executor.stage=2"], ["executor.stages"]),
        (["pipeline.schedule=2bw"], ["pipeline", "executor.kind=pipeline"]),
    ],
)
def test_a_wrong_key_is_told_in_one_line(
    words: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "mae_digits", *words, "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for name in named:
        assert name in line


def test_micro_batches_that_fill_no_rounds_name_the_nearest_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """7 of them on 3 stages would be 2 rounds of three and a half."""
    words = ["executor.schedule=zero_bubble", "executor.stages=3", "model.depth=3", "--ranks", "3"]
    assert run(["train", "bert_tiny_pydoc", *words, "train.accumulate=7", "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert_says(line, "train.accumulate", "6 and 8")
    config = bert_tiny_pydoc().override({"executor.schedule": "zero_bubble", "model.depth": 3})
    for number in (6, 8):
        config = config.override({"executor.stages": 3, "train.accumulate": number})
        config.executor.check(config, build_on_meta(config), 3)


def test_a_kind_keeps_no_field_of_another() -> None:
    config = bert_tiny_pydoc().override({"executor.kind": "data_parallel"})
    assert config.executor == DataParallelConfig()
    again = config.override({"executor.kind": "pipeline", "executor.stages": "2"})
    assert again.executor == PipelineConfig(stages=2)


def test_which_rank_reads_what(tmp_path: Path) -> None:
    whole = [DataParallelConfig().share(rank, 4) for rank in range(4)]
    assert whole == [Share(rank, 4, is_leader=True) for rank in range(4)]
    cut = PipelineConfig(stages=2)
    # The copies of the first stage come before those of the second.
    first = [Share(0, 2, is_leader=True), Share(1, 2, is_leader=True)]
    second = [Share(0, 2, is_leader=False), Share(1, 2, is_leader=False)]
    assert [cut.share(rank, 4) for rank in range(4)] == first + second
    conf = tmp_path / "conf.json"
    maps = {"module_to_stage_map": [0, 1, 1], "stage_to_rank_map": {"0": [3, 1], "1": [0, 2]}}
    conf.write_text(json.dumps(maps))
    placed = PipelineConfig(conf=conf)
    assert [placed.share(rank, 4) for rank in (3, 1, 0, 2)] == first + second
    with refuses("executor.stages", "3"):
        cut.share(0, 3)


@pytest.mark.parametrize(
    ("changes", "ranks", "named"),
    [
        ({"executor.stages": 3}, 4, r"executor\.stages"),
        ({"executor.stages": 4}, 4, r"executor\.depths"),
        ({"executor.depths": "1,2"}, 2, r"executor\.depths must add up"),
        ({"executor.stages_per_rank": 2, "executor.depths": "1,0,1,0"}, 2, "stages_per_rank"),
        ({"train.parallel": "fsdp"}, 2, r"train\.parallel must be ddp"),
        ({"train.precision": "float16"}, 2, r"train\.precision must be float32 or bfloat16"),
        ({"executor.schedule": "gpipe", "train.accumulate": 1}, 2, ""),
        ({"executor.schedule": "torch_1f1b", "train.accumulate": 1}, 2, r"train\.accumulate"),
    ],
)
def test_stages_are_checked_against_the_run(
    changes: dict[str, object], ranks: int, named: str
) -> None:
    config = bert_tiny_pydoc().override(changes)
    objective = build_on_meta(config)
    if not named:
        config.executor.check(config, objective, ranks)
        return
    with pytest.raises(UserError, match=named):
        config.executor.check(config, objective, ranks)
