import math

import pytest
import torch
from torch import Tensor

from quadriga import randomness
from quadriga.models.parts.initialise import initialise
from quadriga.models.parts.transformer import (
    MLP,
    Attention,
    Block,
    BlockShape,
    Dropout,
    DropPath,
    LayerScale,
    drop_path_rates,
)

SHAPE = BlockShape(width=12, heads=3, mlp_width=20)


def tokens(batch: int = 2, length: int = 5, width: int = 12, seed: int = 0) -> Tensor:
    return torch.empty(batch, length, width).normal_(generator=randomness.generator(seed, "tokens"))


def attention_by_loops(module: Attention, inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Each head and each query on its own, as the paper writes it."""
    batch, length, width = inputs.shape
    size = width // module.heads
    query, key, value = module.qkv(inputs).split(width, dim=-1)
    mixed = torch.zeros_like(inputs)
    for b in range(batch):
        for h in range(module.heads):
            at = slice(h * size, (h + 1) * size)
            for i in range(length):
                scores = key[b, :, at] @ query[b, i, at] / math.sqrt(size)
                if mask is not None:
                    scores = scores.masked_fill(~mask[i], -math.inf)
                mixed[b, i, at] = scores.softmax(0) @ value[b, :, at]
    return module.output(mixed)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_is_the_formula(masked: bool, bias: bool) -> None:
    module = Attention(12, 3, qkv_bias=bias)
    initialise(module, seed=1)
    mask = torch.ones(5, 5, dtype=torch.bool).tril() if masked else None
    torch.testing.assert_close(
        module(tokens(), mask), attention_by_loops(module, tokens(), mask), rtol=1e-5, atol=1e-6
    )


def test_float_masks_are_added_to_the_scores() -> None:
    module = Attention(12, 3)
    initialise(module, seed=1)
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    added = torch.zeros(5, 5).masked_fill(~allowed, -math.inf)
    torch.testing.assert_close(module(tokens(), added), module(tokens(), allowed))


def test_mlp_uses_the_exact_gelu() -> None:
    module = MLP(12, 20)
    initialise(module, seed=1)
    hidden = module.hidden(tokens())
    expected = module.output(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
    torch.testing.assert_close(module(tokens()), expected, rtol=1e-5, atol=1e-6)


def test_block_is_pre_norm_with_scaled_branches() -> None:
    block = Block(BlockShape(width=12, heads=3, mlp_width=20, layer_scale=0.5), layer=0)
    initialise(block, seed=1)
    inputs = tokens()
    middle = inputs + 0.5 * block.attention(block.attention_norm(inputs))
    expected = middle + 0.5 * block.mlp(block.mlp_norm(middle))
    torch.testing.assert_close(block(inputs), expected)


def test_block_passes_the_mask_on() -> None:
    block = Block(SHAPE, layer=0)
    initialise(block, seed=1)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    inputs = tokens()
    changed = inputs.clone()
    changed[:, 3:] *= -1.0
    torch.testing.assert_close(block(inputs, causal)[:, :3], block(changed, causal)[:, :3])
    assert not torch.allclose(block(inputs)[:, :3], block(changed)[:, :3])


def test_layer_scale() -> None:
    module = LayerScale(12, 0.25)
    initialise(module, seed=1)
    assert torch.equal(module(tokens()), tokens() * 0.25)


def test_drop_path_is_a_function_of_the_samples_key_and_salt() -> None:
    keys = torch.arange(4096)

    def dropped(salt: int, keys: Tensor = keys) -> Tensor:
        return DropPath(0.25, salt)(torch.ones(len(keys), 2), keys)

    assert torch.equal(dropped(5), dropped(5))
    assert torch.equal(dropped(5, keys.flip(0)), dropped(5).flip(0))
    assert torch.equal(dropped(5, keys[7:9]), dropped(5)[7:9])
    assert not torch.equal(dropped(5), dropped(6))
    result = dropped(5)
    assert torch.equal(result[:, 0], result[:, 1])
    assert set(result.flatten().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    # Three standard deviations of the share of 4096 draws.
    assert (result[:, 0] == 0).float().mean() == pytest.approx(0.25, abs=3 * 0.0068)


def test_nothing_is_drawn_at_rate_0_or_in_evaluation() -> None:
    # Outside a micro-batch's scope a draw is an error, so passing through proves none was made.
    inputs = tokens()
    assert Dropout(0.0, 1)(inputs) is inputs
    assert Dropout(0.5, 1).eval()(inputs) is inputs
    with pytest.raises(RuntimeError, match="micro_batch"):
        Dropout(0.5, 1)(inputs)
    # So is one without keys.
    assert DropPath(0.0, 1)(inputs, None) is inputs
    assert DropPath(0.5, 1).eval()(inputs, None) is inputs
    with pytest.raises(RuntimeError, match="samples' keys"):
        DropPath(0.5, 1)(inputs, None)


def test_dropout_is_a_function_of_scope_and_salt() -> None:
    inputs = torch.ones(64, 64)

    def dropped(salt: int) -> Tensor:
        with randomness.micro_batch(seed=1, step=0, index=0, replica=0):
            return Dropout(0.5, salt)(inputs)

    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))
    assert set(dropped(1).flatten().tolist()) == {0.0, 2.0}


def test_block_with_dropout_and_drop_path_is_keyed_by_its_layer() -> None:
    def output(layer: int) -> Tensor:
        shape = BlockShape(width=12, heads=3, mlp_width=20, dropout=0.1)
        block = Block(shape, layer, drop_path=0.5)
        initialise(block, seed=1)
        with randomness.micro_batch(seed=1, step=0, index=0, replica=0):
            return block(tokens(batch=8), keys=torch.arange(8))

    assert torch.equal(output(3), output(3))
    assert not torch.equal(output(3), output(4))


def test_drop_path_rates_grow_linearly() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]
    assert drop_path_rates(0.3, 0) == []
