"""One process reads what any number of ranks wrote, in whatever pieces."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from quadriga.engine.checkpoint.read import read_model, stored_tensors, trainable_elements
from quadriga.methods.mae import MAE, MAEConfig
from quadriga.models.vit import ViTConfig
from ranks import run_ranks
from trained_executor import Trained

MODEL = ViTConfig(image_px=16, patch_px=4, width=16, depth=1, heads=2)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    worker = Path(__file__).with_name("sharded_save_worker.py")
    for result in run_ranks([sys.executable, str(worker), str(folder)], 2, timeout=120):
        assert result.returncode == 0, result.stderr
    return folder / "step_00000005"


def expected() -> MAE:
    objective = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2).build(MODEL)
    objective.initialise(1)
    return objective


def test_shards_are_put_together(sharded: Path) -> None:
    name = "objective.encoder.blocks.0.mlp.hidden.weight"
    rows = []
    for shard in sharded.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            rows.append(file.get_slice(name).get_shape()[0])
    assert rows == [32, 32]  # the tensor does lie in two pieces
    state = Trained(expected()).state_dict()
    stored = {tensor.name: tensor for tensor in stored_tensors(sharded)}
    assert stored.keys() == state.keys()
    for key, tensor in state.items():
        assert stored[key].shape == tuple(tensor.shape), key
    for weights, prefix in (("raw", "objective."), ("ema", "ema.")):
        for key, tensor in read_model(sharded, weights, "weights").items():
            source = prefix if prefix + key in state else "objective."
            assert torch.equal(tensor, state[source + key]), key


def test_parameters_are_what_has_optimizer_state(sharded: Path) -> None:
    total = sum(parameter.numel() for parameter in expected().parameters())
    assert trainable_elements(stored_tensors(sharded)) == total
