"""The rows of the dry run against numbers worked out from its other rows and the config."""

from __future__ import annotations

import re

import pytest

from errors import assert_says, refuses
from parallel_worker import tiny_config
from quadriga.engine.build import build_on_meta
from quadriga.engine.dry_run import dry_run
from quadriga.engine.run_config import RunConfig
from quadriga.recipes.bert import bert_tiny_pydoc
from quadriga.recipes.mae import mae_vit_small
from quadriga.recipes.self_supervised import dino_digits, moco_v3_digits, swav_digits

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def memory(config: RunConfig, world_size: int, local: int | None = None) -> dict[str, float]:
    """Return the bytes of each part of the memory row."""
    text = dict(dry_run(config, world_size, local))["memory per rank"]
    found = re.findall(r"([a-z ]+) ([0-9.]+) (B|KiB|MiB|GiB)", text)
    return {name.strip(): float(number) * UNITS[unit] for name, number, unit in found}


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return mae_vit_small().override({"train.batch_size": 64, "train.epochs": 1})


def parameters(config: RunConfig) -> int:
    return sum(p.numel() for p in build_on_meta(config).parameters())


def test_every_rank_holds_everything_under_ddp(config: RunConfig) -> None:
    parts = memory(config, 8)
    size = 4 * parameters(config)
    assert parts["gradients"] == pytest.approx(size, rel=0.05)
    assert parts["optimizer"] == pytest.approx(2 * size, rel=0.05)
    assert parts["about"] == pytest.approx(sum(parts.values()) - parts["about"], rel=0.05)


@pytest.mark.parametrize(
    ("words", "shards"),
    [
        ({"train.parallel": "fsdp"}, 16),
        ({"train.parallel": "hsdp"}, 8),
        ({"train.parallel": "hsdp", "train.shard_ranks": 4}, 4),
    ],
)
def test_shards_divide_the_state(config: RunConfig, words: dict[str, str], shards: int) -> None:
    sharded = memory(config.override({**words, "ema.decay": 0.99}), 16)
    size = 4 * parameters(config) / shards
    for name, times in (("gradients", 1), ("optimizer", 2), ("moving average", 1)):
        assert sharded[name] == pytest.approx(times * size, rel=0.05)
    width = config.override({}).model.as_dict()["width"]
    # Four matrices of attention and two of the MLP: 12 widths squared, and a little beside.
    decoder = 512
    assert sharded["the largest block gathered"] == pytest.approx(
        4 * 12 * max(width, decoder) ** 2, rel=0.02
    )
    assert sharded["about"] == pytest.approx(sum(sharded.values()) - sharded["about"], rel=0.05)


def test_local_ranks_are_the_shards_of_hsdp(config: RunConfig) -> None:
    hsdp = config.override({"train.parallel": "hsdp"})
    assert memory(hsdp, 16, local=4)["gradients"] == pytest.approx(parameters(config), rel=0.05)


def test_recomputation_and_precision_lower_the_activations(config: RunConfig) -> None:
    def activations(**words: str) -> float:
        changed = config.override({name.replace("__", "."): v for name, v in words.items()})
        return memory(changed, 2)["activations"]

    none = activations()
    selective, full = (activations(train__recompute=mode) for mode in ("selective", "full"))
    reduced = activations(train__precision="bfloat16")
    assert full < selective < none
    assert reduced < 0.8 * none
    assert activations(train__precision="float16") == reduced


def test_time_is_work_over_peak(config: RunConfig) -> None:
    rows = dict(dry_run(config.override({"train.device": "cpu", "train.epochs": 300}), 4))
    assert_says(rows["time"], "40%", "float32", "4 x NVIDIA A100")
    assert re.search(r"\b\d d \d\d h\b", rows["time"])
    assert "time" not in dict(dry_run(tiny_config([]), 1))


def test_what_cannot_start_is_refused() -> None:
    with refuses("log.profile", "5 steps", "is 5"):
        dry_run(tiny_config(["log.profile=5"]), 1)
    for method in (moco_v3_digits, swav_digits, dino_digits):
        pipeline = {"executor.kind": "pipeline", "executor.stages": "2"}
        with refuses("executor.kind", "data_parallel"):
            dry_run(method().override(pipeline), 2)
        held_out = {"evaluation.protocols": [{"kind": "held_out"}]}
        with refuses("held_out", "evaluation.protocols"):
            dry_run(method().override(held_out), 1)


def test_text_is_held_against_the_model() -> None:
    config = bert_tiny_pydoc().override({"executor.kind": "data_parallel"})
    for changes, *fragments in (
        ({"model.vocabulary_size": 1000}, "model.vocabulary_size", "1024", "1000"),
        ({"views.max_length": 600}, "views.max_length", "512", "600"),
        ({"views.max_length": 600, "data.vocabulary": "none.txt"}, "views.max_length", "512"),
    ):
        with refuses(*fragments):
            dry_run(config.override(changes), 1)
