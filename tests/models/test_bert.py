"""BERT against its formulas, and against itself in other arrangements."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from errors import refuses
from quadriga import randomness
from quadriga.contracts import Batch
from quadriga.models.bert import Bert, BertConfig, first_tokens, token_places
from quadriga.models.parts.bert_blocks import BertAttention, collect_rows
from quadriga.models.parts.initialise import initialise
from text_batches import text_batch

CONFIG = BertConfig(vocabulary_size=60, width=12, depth=2, heads=3, mlp_width=20, max_positions=16)
LENGTHS = [5, 9, 3]


def made(config: BertConfig = CONFIG, training: bool = False) -> Bert:
    model = config.build()
    initialise(model, 1, "xavier_uniform")
    return model.train(training)


def scope() -> object:
    return randomness.micro_batch(seed=1, step=2, index=3, replica=0)


def attention_by_loops(module: BertAttention, rows: Tensor) -> Tensor:
    """Attention within one sequence without padding, each head and query on its own."""
    length, width = rows.shape
    size = width // module.heads
    query, key, value = module.qkv(rows).split(width, dim=-1)
    mixed = torch.zeros_like(rows)
    for h in range(module.heads):
        at = slice(h * size, (h + 1) * size)
        for i in range(length):
            scores = key[:, at] @ query[i, at] / math.sqrt(size)
            mixed[i, at] = scores.softmax(0) @ value[:, at]
    return module.output(mixed)


def test_each_sequence_is_computed_on_its_own_by_the_formula() -> None:
    model, batch = made(), text_batch(LENGTHS)
    rows = torch.empty(sum(LENGTHS), 12).normal_(generator=randomness.generator("rows"))
    mixed = model.blocks[0].attention(rows, token_places(batch))
    parts = [attention_by_loops(model.blocks[0].attention, part) for part in rows.split(LENGTHS)]
    torch.testing.assert_close(mixed, torch.cat(parts), rtol=1e-5, atol=1e-6)


def test_the_block_is_post_norm() -> None:
    block, batch = made().blocks[0], text_batch(LENGTHS)
    rows, places = torch.randn(sum(LENGTHS), 12), token_places(batch)
    middle = block.attention_norm(rows + block.attention(rows, places))
    torch.testing.assert_close(block(rows, places), block.mlp_norm(middle + block.mlp(middle)))


def test_embeddings_are_the_sum_of_three() -> None:
    embeddings, batch = made().embeddings, text_batch(LENGTHS)
    ids, segments = batch["ids"], batch["segments"]
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    grid = embeddings.norm(
        embeddings.word(ids) + embeddings.position(positions) + embeddings.segment(segments)
    )
    torch.testing.assert_close(embeddings(batch), grid.view(-1, 12)[batch["tokens"]])


def test_padding_changes_nothing() -> None:
    model, short = made(), text_batch(LENGTHS)
    long = {
        **short,
        "ids": torch.nn.functional.pad(short["ids"], (0, 7)),
        "segments": torch.nn.functional.pad(short["segments"], (0, 7)),
    }
    is_real = torch.arange(16) < short["lengths"][:, None]
    long["tokens"] = is_real.view(-1).nonzero()[:, 0]
    torch.testing.assert_close(model(long), model(short), rtol=1e-5, atol=1e-6)
    alone = [model(one_of(short, i, length)) for i, length in enumerate(LENGTHS)]
    torch.testing.assert_close(model(short), torch.cat(alone), rtol=1e-5, atol=1e-6)


def one_of(batch: Batch, number: int, length: int) -> Batch:
    picked = {k: batch[k][number : number + 1, :length] for k in ("ids", "segments")}
    return {**picked, "lengths": torch.tensor([length]), "tokens": torch.arange(length)}


def test_places_that_cover_the_grid_give_the_same_vectors() -> None:
    model = made()
    flat, covering = text_batch(LENGTHS), text_batch(LENGTHS, covering=True)
    torch.testing.assert_close(model(covering)[flat["tokens"]], model(flat))
    assert torch.equal(
        model(covering)[first_tokens(covering)], model(covering).view(3, 9, 12)[:, 0]
    )
    torch.testing.assert_close(
        model(covering)[first_tokens(covering)], model(flat)[first_tokens(flat)]
    )


@pytest.mark.parametrize("covering", [False, True])
def test_gradients_are_those_of_a_padded_model(covering: bool) -> None:
    model, batch = made(), text_batch(LENGTHS, covering=covering)
    picked = model(batch)
    weights = torch.empty(sum(LENGTHS), 12).normal_(generator=randomness.generator("weights"))
    if covering:
        picked = collect_rows(picked, text_batch(LENGTHS)["tokens"])
    (picked * weights).sum().backward()
    other = made()
    for i, (length, part) in enumerate(zip(LENGTHS, weights.split(LENGTHS), strict=True)):
        (other(one_of(batch, i, length)) * part).sum().backward()
    for (name, parameter), expected in zip(
        model.named_parameters(), other.parameters(), strict=True
    ):
        torch.testing.assert_close(
            parameter.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_dropout_follows_the_scope_and_leaves_torchs_generator_alone() -> None:
    model, batch = made(training=True), text_batch(LENGTHS)
    state = torch.get_rng_state()
    with scope():
        first = model(batch)
    torch.manual_seed(5)
    with scope():
        second = model(batch)
    with randomness.micro_batch(seed=1, step=3, index=3, replica=0):
        third = model(batch)
    torch.set_rng_state(state)
    with scope():
        model(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert not torch.equal(first, model.eval()(batch))


def test_attention_weights_are_dropped_and_rescaled() -> None:
    config = CONFIG.override({"dropout": 0.0, "attention_dropout": 0.5, "depth": 1})
    attention = made(config, training=True).blocks[0].attention
    batch, rows = text_batch([4]), torch.randn(4, 12)
    with scope():
        mixed = attention(rows, token_places(batch))
    source = randomness.micro_batch(seed=1, step=2, index=3, replica=0)
    with source:
        keep = torch.empty(1, 3, 4, 4).bernoulli_(
            0.5, generator=randomness.layer_generator(attention.salt, rows.device)
        )
    query, key, value = (
        part.view(4, 3, 4).transpose(0, 1) for part in attention.qkv(rows).split(12, dim=1)
    )
    weights = (query @ key.transpose(1, 2) / 2).softmax(-1) * keep[0] / 0.5
    expected = attention.output((weights @ value).transpose(0, 1).reshape(4, 12))
    torch.testing.assert_close(mixed, expected)


@pytest.mark.gpu
def test_attention_dropout_of_the_fused_kernels_is_keyed() -> None:
    device = torch.device("cuda")
    model = made(CONFIG.override({"width": 48}), training=True).to(device)
    batch = {name: tensor.to(device) for name, tensor in text_batch(LENGTHS).items()}
    before = torch.cuda.get_rng_state()
    gradients = []
    for _ in range(2):
        with scope():
            output = model(batch)
        output.square().sum().backward()
        gradients.append([output, *(p.grad for p in model.parameters())])
        model.zero_grad()
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(gradients[0][0], gradients[1][0])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)
    model.eval()
    assert not torch.equal(gradients[0][0], model(batch))


def test_sizes_are_those_of_the_paper() -> None:
    def count(config: BertConfig) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in config.build().parameters())

    # Tables, their norm, and per block 4 w^2 + 2 w m and the biases and norms.
    assert count(BertConfig.base()) == 108_891_648
    assert count(BertConfig.large()) == 31_782_912 + 24 * 12_596_224


def test_too_long_sequences_are_refused() -> None:
    with refuses("model.max_positions=16", "17"):
        made()(text_batch([17, 4]))


def test_bert_config_json(tmp_path: Path) -> None:
    described = {
        "attention_probs_dropout_prob": 0.1,
        "directionality": "bidi",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 1024,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "max_position_embeddings": 512,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "type_vocab_size": 2,
        "vocab_size": 30522,
    }
    path = tmp_path / "bert_config.json"
    path.write_text(json.dumps(described))
    assert BertConfig.from_bert_config(path) == BertConfig.large()


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"hidden_act": "relu"}, ("hidden_act", "gelu", "'relu'")),
        ({"hidden_size": None}, ("hidden_size",)),
        ({"hidden_size": 100}, ("heads", "width")),
        ({"hidden_size": "wide"}, ("width",)),
        ("[1]", ("JSON",)),
        ("{", ("bert_config.json",)),
    ],
)
def test_other_bert_configs_are_refused(
    change: dict[str, object] | str, fragments: tuple[object, ...], tmp_path: Path
) -> None:
    described = {
        "vocab_size": 50,
        "hidden_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 5,
        "max_position_embeddings": 7,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    path = tmp_path / "bert_config.json"
    if isinstance(change, dict):
        merged = {k: v for k, v in {**described, **change}.items() if v is not None}
        path.write_text(json.dumps(merged))
    else:
        path.write_text(change)
    with refuses(*fragments):
        BertConfig.from_bert_config(path)
