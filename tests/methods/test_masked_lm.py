"""Masked language modelling: its loss, its metrics and its stages."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional

from errors import refuses
from quadriga import randomness
from quadriga.contracts import Batch, LossOutput, Splittable
from quadriga.engine.step.blocks import apply_recompute, blocks_of
from quadriga.methods.masked_lm import MaskedLM, MaskedLMConfig
from quadriga.models.bert import BertConfig
from quadriga.models.vit import ViTConfig
from text_batches import text_batch

MODEL = BertConfig(vocabulary_size=60, width=12, depth=4, heads=3, mlp_width=20, max_positions=16)
LENGTHS = [5, 9, 3, 7]


def made(config: MaskedLMConfig | None = None, seed: int = 1) -> MaskedLM:
    objective = (config or MaskedLMConfig()).build(MODEL)
    objective.initialise(seed)
    return objective


def scope() -> object:
    return randomness.micro_batch(seed=1, step=0, index=0, replica=0)


def test_loss_is_the_sum_of_two_means() -> None:
    objective, batch = made().eval(), text_batch(LENGTHS)
    output = objective(batch)
    hidden = objective.encoder(batch)
    words = objective.head(hidden[batch["masked"]]) @ objective.encoder.embeddings.word.weight.t()
    words = words + objective.head.bias
    starts = torch.tensor([0, 5, 14, 17])
    pairs = objective.next_sentence(objective.pooler.dense(hidden[starts]).tanh())
    losses = [
        functional.cross_entropy(words, batch["targets"]),
        functional.cross_entropy(pairs, batch["is_random"]),
    ]
    torch.testing.assert_close(output.only.total, sum(losses))
    assert output.only.targets is None
    values = {name: total / count for name, (total, count) in output.metrics.items()}
    assert values.keys() == set(objective.metric_names)
    torch.testing.assert_close(values["masked_lm_loss"], losses[0].detach())
    torch.testing.assert_close(values["next_sentence_loss"], losses[1].detach())
    right = (words.argmax(1) == batch["targets"]).float().mean()
    torch.testing.assert_close(values["masked_lm_accuracy"], right)
    right = (pairs.argmax(1) == batch["is_random"]).float().mean()
    torch.testing.assert_close(values["next_sentence_accuracy"], right)
    assert output.metrics["masked_lm_loss"][1] == batch["masked"].numel()


def test_token_reduction_adds_up_over_micro_batches() -> None:
    config = MaskedLMConfig(next_sentence=False, reduction="token")
    objective = made(config).eval()
    whole = text_batch(LENGTHS)
    parts = [cut(whole, 0, 2), cut(whole, 2, 4)]
    outputs = [objective(part) for part in parts]
    output = objective(whole)
    assert output.only.targets == whole["masked"].numel()
    torch.testing.assert_close(output.only.total, outputs[0].only.total + outputs[1].only.total)
    assert output.only.targets == outputs[0].only.targets + outputs[1].only.targets
    assert objective.pooler is None
    assert objective.metric_names == ("masked_lm_loss", "masked_lm_accuracy")


def cut(batch: Batch, start: int, end: int) -> Batch:
    """Return some sequences of a batch; the flat rows that belong to them are consecutive."""
    length = batch["ids"].shape[1]
    part = {name: batch[name][start:end] for name in ("ids", "segments", "lengths")}
    inside = (batch["tokens"] >= start * length) & (batch["tokens"] < end * length)
    first = int(inside.nonzero()[0])
    chosen = inside[batch["masked"]]
    return {
        **part,
        "tokens": batch["tokens"][inside] - start * length,
        "masked": batch["masked"][chosen] - first,
        "targets": batch["targets"][chosen],
    }


@pytest.mark.parametrize(
    "config",
    [
        MaskedLMConfig(),
        MaskedLMConfig(next_sentence=False),
        MaskedLMConfig(next_sentence=False, reduction="token"),
    ],
)
def test_without_a_masked_token_every_parameter_gets_a_gradient(config: MaskedLMConfig) -> None:
    objective = made(config)
    with scope():
        output = objective(text_batch(LENGTHS, masked=0.0))
    assert output.only.total.isfinite()
    output.only.total.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_views_of_a_fixed_shape_give_the_same_loss_and_gradients() -> None:
    losses, gradients = [], []
    for covering in (False, True):
        objective = made().eval()
        loss = objective(text_batch(LENGTHS, grid=12, covering=covering)).only.total
        loss.backward()
        losses.append(loss)
        gradients.append([p.grad for p in objective.parameters()])
    torch.testing.assert_close(*losses)
    for trimmed, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(trimmed, whole, rtol=1e-4, atol=1e-6)


def test_token_reduction_with_two_losses_is_refused() -> None:
    with refuses("reduction", "micro_batch", "next_sentence=true", error=ValueError):
        MaskedLMConfig(reduction="token")


def test_another_model_is_refused() -> None:
    with refuses("masked_lm", "model.kind=bert", "vit"):
        MaskedLMConfig().build(ViTConfig())


def test_views_without_sentence_pairs_are_refused() -> None:
    batch = text_batch(LENGTHS)
    del batch["is_random"]
    with refuses("objective.next_sentence=false"):
        made().eval()(batch)


CUTS = [[4], [2, 2], [1, 2, 1], [0, 3, 1, 0]]


@pytest.mark.parametrize("depths", CUTS)
@pytest.mark.parametrize("covering", [False, True])
def test_stages_in_turn_are_the_whole_bit_for_bit(depths: list[int], covering: bool) -> None:
    batch = text_batch(LENGTHS, covering=covering)
    whole = made()
    with scope():
        expected = whole(batch)
    expected.only.total.backward()
    stages = fresh_stages(depths)
    output = through(stages, batch)
    assert torch.equal(output.only.total, expected.only.total)
    assert output.metrics.keys() == expected.metrics.keys()
    for name, (total, count) in expected.metrics.items():
        assert torch.equal(output.metrics[name][0], total), name
        assert torch.equal(output.metrics[name][1], count), name
    gradients: dict[str, torch.Tensor] = {}
    for stage in stages:
        for name, parameter in stage.named_parameters():
            assert parameter.grad is not None
            if name in gradients:
                assert name == "encoder.embeddings.word.weight"
                gradients[name] = gradients[name] + parameter.grad
            else:
                gradients[name] = parameter.grad
    for name, parameter in whole.named_parameters():
        assert torch.equal(gradients.pop(name), parameter.grad), name
    assert not gradients


def fresh_stages(depths: Sequence[int]) -> list[nn.Module]:
    """Make each stage from an objective of its own, as ranks do."""
    stages = []
    for index in range(len(depths)):
        with torch.device("meta"):
            objective = MaskedLMConfig().build(MODEL)
        assert isinstance(objective, Splittable)
        stage = objective.stages(depths)[index].to_empty(device="cpu")
        with torch.no_grad():
            for parameter in stage.parameters():
                parameter.fill_(float("nan"))
        stage.initialise(1)
        stages.append(stage)
    return stages


def through(stages: list[nn.Module], batch: Batch) -> LossOutput:
    """Pass a batch forward and its gradient backward, with a cut between any two stages."""
    inputs, outputs, hidden = [], [], None
    for stage in stages:
        with scope():
            output = stage(hidden, batch)
        inputs.append(hidden)
        outputs.append(output)
        if isinstance(output, torch.Tensor):
            assert tuple(output.shape) == stage.hidden_shape(batch)
            hidden = output.detach().requires_grad_()
    outputs[-1].only.total.backward()
    for before, after in zip(reversed(outputs[:-1]), reversed(inputs[1:]), strict=True):
        before.backward(after.grad)
    return outputs[-1]


@pytest.mark.parametrize("depths", CUTS)
def test_stages_hold_the_objectives_tensors_under_its_names(depths: list[int]) -> None:
    whole = made().state_dict()
    seen = []
    for stage in fresh_stages(depths):
        for name, tensor in stage.state_dict().items():
            assert torch.equal(tensor, whole[name]), name
            seen.append(name)
    assert set(seen) == whole.keys()
    twice = [name for name in whole if seen.count(name) > 1]
    assert twice == (["encoder.embeddings.word.weight"] if len(depths) > 1 else [])


def test_stages_share_the_objectives_modules() -> None:
    objective = made()
    first, last = objective.stages([2, 2])
    own = dict(objective.named_parameters())
    for stage in (first, last):
        for name, parameter in stage.named_parameters():
            assert parameter is own[name]


def test_blocks_of_stages_are_found_under_their_global_names() -> None:
    expected = [name for name, _ in blocks_of(made())]
    assert expected == [f"encoder.blocks.{number}" for number in range(4)]
    assert [name for stage in made().stages([1, 3]) for name, _ in blocks_of(stage)] == expected


def test_recomputed_blocks_draw_the_same_dropout() -> None:
    losses, gradients = [], []
    for mode in ("none", "selective", "full"):
        objective = made()
        apply_recompute(objective, mode)
        with scope():
            loss = objective(text_batch(LENGTHS)).only.total
            loss.backward()
        losses.append(loss)
        gradients.append([p.grad for p in objective.parameters()])
    for loss, found in zip(losses[1:], gradients[1:], strict=True):
        assert torch.equal(loss, losses[0])
        for gradient, expected in zip(found, gradients[0], strict=True):
            assert torch.equal(gradient, expected)


@pytest.mark.parametrize("depths", [[], [2, 1], [5, -1]])
def test_depths_that_do_not_add_up_are_refused(depths: list[int]) -> None:
    with refuses("model.depth=4"):
        made().stages(depths)


def test_hidden_shape_on_the_meta_device() -> None:
    with torch.device("meta"):
        stages = MaskedLMConfig().build(MODEL).stages([2, 2])
    batch = {name: tensor.to("meta") for name, tensor in text_batch(LENGTHS).items()}
    assert stages[0].hidden_shape(batch) == (24, 12)
    with scope():
        hidden = stages[0](None, batch)
        output = stages[1](hidden, batch)
    assert hidden.shape == (24, 12)
    assert output.only.total.is_meta
