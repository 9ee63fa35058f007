"""Classifying texts: the loss against its definition, stages, learning, and where it starts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from errors import refuses
from quadriga import randomness
from quadriga.contracts import LossOutput, Splittable
from quadriga.errors import UserError
from quadriga.methods.masked_lm import MaskedLM, MaskedLMConfig
from quadriga.methods.sequence_classification import (
    SequenceClassification,
    SequenceClassificationConfig,
)
from quadriga.models.bert import BertConfig
from quadriga.models.vit import ViTConfig
from quadriga.weights import export_weights, load_weights

MODEL = BertConfig(vocabulary_size=30, width=16, depth=3, heads=2, mlp_width=32, max_positions=12)
LENGTHS = (5, 12, 3, 8)


def made(outputs: int = 3, seed: int = 1, **fields) -> SequenceClassification:
    objective = SequenceClassificationConfig(outputs=outputs, **fields).build(MODEL)
    objective.initialise(seed)
    return objective


def batch(fixed: bool = False, lengths=LENGTHS, seed: int = 0):
    source = torch.Generator().manual_seed(seed)
    size, longest = len(lengths), 12
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 30, (size, longest), generator=source) * real
    places = torch.arange(size * longest) if fixed else real.flatten().nonzero()[:, 0]
    return {
        "ids": ids,
        "segments": (real & (torch.arange(longest) > 3)).long(),
        "lengths": torch.tensor(lengths),
        "tokens": places,
        "label": torch.arange(size) % 3,
        "index": torch.arange(size),
        "key": torch.arange(size),
    }


def test_loss_and_accuracy_are_sums_over_the_samples() -> None:
    objective, whole = made().eval(), batch()
    output = objective(whole)
    scores = objective.scores(whole)
    assert scores.shape == (4, 3)
    expected = functional.cross_entropy(scores, whole["label"], reduction="none").sum()
    torch.testing.assert_close(output.only.total, expected)
    assert output.only.targets == 4
    hits, count = output.metrics["accuracy"]
    assert (hits, count) == ((scores.argmax(1) == whole["label"]).sum(), 4)


def test_a_number_has_a_squared_error() -> None:
    objective, whole = made(1, regression=True).eval(), batch()
    whole["label"] = torch.tensor([0.5, 2.0, -1.0, 5.0])
    output = objective(whole)
    gap = objective.scores(whole)[:, 0] - whole["label"]
    torch.testing.assert_close(output.only.total, (gap**2).sum())
    assert (output.only.targets, output.metrics, objective.metric_names) == (4, {}, ())


@pytest.mark.parametrize("fixed", [False, True])
def test_a_sample_is_scored_as_it_is_alone(fixed: bool) -> None:
    objective, whole = made().eval(), batch(fixed)
    scores = objective.scores(whole)
    for place, length in enumerate(LENGTHS):
        alone = {name: whole[name][place : place + 1, :length] for name in ("ids", "segments")}
        alone |= {"lengths": torch.tensor([length]), "tokens": torch.arange(length)}
        torch.testing.assert_close(objective.scores(alone), scores[place : place + 1])


@pytest.mark.parametrize("depths", [(3,), (1, 2), (0, 1, 2, 0)])
def test_stages_in_turn_are_the_whole(depths: tuple[int, ...]) -> None:
    whole, text = made(dropout=0.5), batch()
    stages = made(dropout=0.5).stages(depths)
    assert isinstance(whole, Splittable)
    names = [name for stage in stages for name, _ in stage.named_parameters()]
    assert sorted(names) == sorted(name for name, _ in whole.named_parameters())
    for stage in stages:
        stage.to_empty(device="cpu").initialise(1)
    with randomness.micro_batch(seed=0, step=0, index=0, replica=0):
        expected = whole(text)
        hidden: torch.Tensor | None = None
        for stage in stages:
            output = stage(hidden, text)
            if isinstance(output, LossOutput):
                break
            assert output.shape == stage.hidden_shape(text)
            hidden = output
    assert isinstance(output, LossOutput)
    assert torch.equal(output.only.total, expected.only.total)
    output.only.total.backward()
    expected.only.total.backward()
    gradients = {n: p.grad for stage in stages for n, p in stage.named_parameters()}
    for name, parameter in whole.named_parameters():
        assert torch.equal(gradients[name], parameter.grad), name
    with refuses("model.depth=3"):
        whole.stages([1, 1])


def test_it_learns_what_is_in_the_words() -> None:
    """The class is whether word 7 comes anywhere: 50 % by chance."""
    objective = made(2, dropout=0.0)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)

    def text(seed: int):
        made_up = batch(lengths=(12, 9, 10, 11) * 8, seed=seed)
        label = torch.arange(32) % 2
        made_up["ids"][made_up["ids"] == 7] = 8
        made_up["ids"][torch.arange(32), 3 + torch.arange(32) % 5] = 8 - label
        return {**made_up, "label": label}

    for step in range(60):
        with randomness.micro_batch(seed=0, step=step, index=0, replica=0):
            output = objective(text(step))
        (output.only.total / output.only.targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    hits = sum(objective.eval()(text(1000 + i)).metrics["accuracy"][0] for i in range(4))
    assert hits / 128 > 0.9


def pretrained(**fields) -> MaskedLM:
    objective = MaskedLMConfig(**fields).build(MODEL)
    objective.initialise(7)
    return objective


def test_pre_training_gives_encoder_and_pooler_and_no_classifier(tmp_path: Path) -> None:
    source, objective, before = pretrained(), made(2), made(2)
    export_weights(source, tmp_path / "weights.safetensors")
    report = load_weights(objective, tmp_path / "weights.safetensors")
    assert report.complete
    assert set(report.fresh) == {"classifier.weight", "classifier.bias"}
    assert "next_sentence.weight" in report.skipped
    theirs = source.state_dict()
    for name, tensor in objective.state_dict().items():
        wanted = before.get_parameter(name) if "classifier" in name else theirs[name]
        assert torch.equal(tensor, wanted), name
    assert theirs["next_sentence.weight"].shape == objective.classifier.weight.shape


def test_a_pooler_that_was_not_trained_begins_anew(tmp_path: Path) -> None:
    source, objective, before = pretrained(next_sentence=False), made(), made()
    export_weights(source, tmp_path / "weights.safetensors")
    report = load_weights(objective, tmp_path / "weights.safetensors")
    assert {"pooler.dense.weight", "pooler.dense.bias"} <= set(report.fresh)
    assert torch.equal(objective.pooler.dense.weight, before.pooler.dense.weight)
    assert "begin anew: pooler.dense.weight" in str(report)


def test_another_tasks_classifier_is_left_out(tmp_path: Path) -> None:
    objective, before = made(3, seed=1), made(3, seed=1)
    export_weights(made(3, seed=2), tmp_path / "weights.safetensors")
    report = load_weights(objective, tmp_path / "weights.safetensors")
    assert torch.equal(objective.classifier.weight, before.classifier.weight)
    assert not torch.equal(objective.pooler.dense.weight, before.pooler.dense.weight)
    assert set(report.skipped) == {"classifier.weight", "classifier.bias"}


def test_a_file_of_another_model_is_an_error_still(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = pretrained().state_dict()
    save_file({n: t for n, t in tensors.items() if not n.startswith("encoder.blocks.2.")}, path)
    with refuses("12 missing", "encoder.blocks.2.attention.qkv.weight"):
        load_weights(made(), path)
    save_file({n: t for n, t in tensors.items() if n != "pooler.dense.bias"}, path)
    with refuses("1 missing", "pooler.dense.bias"):
        load_weights(made(), path)
    save_file({**tensors, "decoder.weight": torch.zeros(2)}, path)
    with refuses("1 unexpected", "decoder.weight"):
        load_weights(made(), path)
    save_file({n: t for n, t in tensors.items() if not n.startswith(("encoder", "pooler"))}, path)
    with pytest.raises(UserError):
        load_weights(made(), path)


def test_what_cannot_be_is_refused() -> None:
    with refuses("outputs", "1", "regression", error=ValueError):
        SequenceClassificationConfig(outputs=2, regression=True)
    with refuses("outputs", "2", error=ValueError):
        SequenceClassificationConfig(outputs=1)
    with refuses("model.kind=bert", "vit"):
        SequenceClassificationConfig().build(ViTConfig())
