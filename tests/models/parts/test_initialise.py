import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from errors import refuses
from quadriga import randomness
from quadriga.models.parts.initialise import CHUNK, DEVIATION, initialise
from quadriga.models.vit import ViT, ViTConfig
from ranks import run_ranks

WORKER = Path(__file__).with_name("shard_worker.py")


def small(**fields: object) -> ViTConfig:
    values = {"image_px": 8, "patch_px": 4, "width": 16, "depth": 3, "heads": 2}
    return ViTConfig.from_dict({**values, **fields})


def with_nan(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(math.nan)
    return module


EVERYTHING = small(positions="learned", registers=2, layer_scale=0.1, drop_path=0.2)


@pytest.mark.parametrize("config", [small(), EVERYTHING, small(class_token=False, pool="mean")])
def test_every_tensor_is_filled(config: ViTConfig) -> None:
    model = with_nan(config.build())
    initialise(model, seed=3)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_filled_the_same_whatever_was_there_and_wherever_it_came_from() -> None:
    with torch.device("meta"):
        from_meta = EVERYTHING.build()
    initialise(from_meta, seed=3)
    from_meta.to_empty(device="cpu")
    here = with_nan(EVERYTHING.build())
    for model in (from_meta, here):
        initialise(model, seed=3)
    for name, tensor in here.state_dict().items():
        assert torch.equal(tensor, from_meta.state_dict()[name]), name


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**63), first=st.integers(0, 2))
def test_a_slice_gets_the_values_of_the_whole(seed: int, first: int) -> None:
    whole, part = EVERYTHING.build(), EVERYTHING.build().blocks[first]
    initialise(whole, seed)
    initialise(part, seed, prefix=f"blocks.{first}")
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[f"blocks.{first}.{name}"]), name


def test_shards_get_the_values_of_the_whole() -> None:
    for process in run_ranks([sys.executable, str(WORKER)], world_size=4):
        assert process.returncode == 0, process.stderr
        assert process.stdout.split() == ["equal", "fsdp", "equal", "hsdp"]


def test_an_element_is_the_quantile_of_its_own_draw() -> None:
    layer = nn.Linear(300, 200)
    number = CHUNK + 77
    uniform = randomness.element_uniform(
        randomness.fold(5, "initialise", "layer.weight"), number, 1, torch.device("cpu")
    )
    normal = torch.distributions.Normal(0.0, DEVIATION, validate_args=False)
    below, above = normal.cdf(torch.tensor([-2, 2], dtype=torch.float64) * DEVIATION)
    expected = {
        "xavier_uniform": (2 * uniform - 1) * math.sqrt(6 / 500),
        "normal": normal.icdf(uniform),
        "truncated_normal": normal.icdf(below + (above - below) * uniform),
    }
    for rule, value in expected.items():
        initialise(layer, 5, rule, prefix="layer")  # type: ignore[arg-type]
        torch.testing.assert_close(
            layer.weight.flatten()[number].double(), value[0], rtol=1e-6, atol=0
        )


def test_seeds_and_names_tell_tensors_apart() -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        model = small().build()
        initialise(model, seed)
        return [block.mlp.hidden.weight for block in model.blocks]

    tensors = drawn(1) + drawn(2)
    assert len({tuple(tensor.flatten().tolist()) for tensor in tensors}) == len(tensors)


def test_rules_by_type() -> None:
    model = small(width=64, registers=3, layer_scale=0.5).build()
    initialise(model, seed=0)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("bias"):
            assert not tensor.any(), name
        elif "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
    bound = math.sqrt(6 / (3 * 4 * 4 + 64))
    kernel = state["patch_projection.weight"]
    assert 0.95 * bound < kernel.abs().max() <= bound
    assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert state["register_tokens"].std() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(state["blocks.1.mlp_residual.scale.factor"], torch.full((64,), 0.5))


def test_a_convolution_is_drawn_on_its_flattened_kernel() -> None:
    convolution, matrix = nn.Conv2d(3, 16, 4), nn.Linear(48, 16)
    initialise(convolution, seed=5)
    initialise(matrix, seed=5)
    assert torch.equal(convolution.weight.flatten(1), matrix.weight)


@pytest.mark.parametrize(("rule", "largest"), [("normal", 0.2), ("truncated_normal", 0.04)])
def test_normal_rules(rule: str, largest: float) -> None:
    layer = nn.Linear(256, 256)
    initialise(layer, seed=0, linear=rule)  # type: ignore[arg-type]
    assert layer.weight.std().item() == pytest.approx(
        0.02 if rule == "normal" else 0.0176, rel=0.02
    )
    assert layer.weight.abs().max() <= largest


def test_embedding_rule_and_unknown_modules() -> None:
    table = nn.Embedding(1000, 8)
    initialise(table, seed=0)
    assert table.weight.std().item() == pytest.approx(0.02, rel=0.05)
    with refuses("PReLU", "'weight'", error=TypeError):
        initialise(nn.Sequential(nn.Linear(2, 2), nn.PReLU()), seed=0)


def test_buffers_of_the_meta_device_stay_there() -> None:
    with torch.device("meta"):
        model: ViT = EVERYTHING.build()
    initialise(model, seed=0)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
