"""Modules on two ranks, sharded or as stages of a pipeline, make the steps of one rank."""

from __future__ import annotations

import sys

import torch
from incubations import assembly_run, hybrid_run, meta_run, train

from quadriga.config.provenance import Resolved
from ranks import run_ranks
from tiny import read_checkpoint


def test_two_ranks_with_shards_equal_one(tmp_path):
    assert train(meta_run(), tmp_path / "meta") == 0
    config = hybrid_run(tmp_path / "meta", 0, 1, optim__eps=1e-4)
    assert train(config, tmp_path / "single") == 0
    path = tmp_path / "sharded.json"
    path.write_text(Resolved.of(config.override({"train.parallel": "fsdp"}), "test").as_json())
    words = ["train", str(path), "--work-dir", str(tmp_path / "sharded")]
    for rank in run_ranks([sys.executable, "-m", "quadriga", *words], 2):
        assert rank.returncode == 0, rank.stderr
    expected = read_checkpoint(tmp_path / "single", 5)
    found = read_checkpoint(tmp_path / "sharded", 5)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-6)


def test_a_pipelined_assembly_starts_from_its_modules(tmp_path):
    assert train(meta_run(), tmp_path / "meta") == 0
    assert train(hybrid_run(tmp_path / "meta", 0, 1), tmp_path / "modules") == 0
    config = assembly_run(
        tmp_path / "modules",
        optim__eps=1e-4,
        optim__clip_norm=None,
        train__accumulate=2,
    )
    assert train(config, tmp_path / "single") == 0
    path = tmp_path / "cut.json"
    cut = {"executor.kind": "pipeline", "executor.stages": 2}
    path.write_text(Resolved.of(config.override(cut), "test").as_json())
    words = ["train", str(path), "--work-dir", str(tmp_path / "cut")]
    for rank in run_ranks([sys.executable, "-m", "quadriga", *words], 2):
        assert rank.returncode == 0, rank.stderr
    expected, found = read_checkpoint(tmp_path / "single", 5), read_checkpoint(tmp_path / "cut", 5)
    names = [name for name in expected if name.startswith("objective.")]
    torch.testing.assert_close(
        {name: found[name] for name in names},
        {name: expected[name] for name in names},
        rtol=2e-4,
        atol=2e-6,
    )
