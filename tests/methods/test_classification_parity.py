"""Hugging Face's BertForSequenceClassification on the same weights and texts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from quadriga.methods.sequence_classification import (
    SequenceClassification,
    SequenceClassificationConfig,
)
from quadriga.models.bert import BertConfig
from quadriga.weights import load_weights
from text_batches import text_batch

transformers = pytest.importorskip("transformers", reason="needs the extra quadriga[hf]")
pytestmark = pytest.mark.filterwarnings("ignore")

MODEL = BertConfig(
    vocabulary_size=60,
    width=48,
    depth=3,
    heads=4,
    mlp_width=96,
    max_positions=32,
    dropout=0.0,
    attention_dropout=0.0,
)


def theirs(outputs: int, kind: str = "BertForSequenceClassification") -> Any:
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        num_labels=outputs,
    )
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).train()


def ours(outputs: int) -> SequenceClassification:
    config = SequenceClassificationConfig(outputs=outputs, regression=outputs == 1, dropout=0.0)
    objective = config.build(MODEL)
    objective.initialise(1)
    return objective


@pytest.mark.parametrize("outputs", [1, 3])
def test_loss_scores_and_gradients(tmp_path: Path, outputs: int) -> None:
    model, objective = theirs(outputs), ours(outputs)
    model.save_pretrained(tmp_path)
    report = load_weights(objective, tmp_path / "model.safetensors")
    assert set(report.skipped) == {"classifier.weight", "classifier.bias"}
    with torch.no_grad():
        objective.classifier.weight.copy_(model.classifier.weight)
        objective.classifier.bias.copy_(model.classifier.bias)
    batch = text_batch([20, 9, 31, 14])
    label = torch.tensor([0.5, 2.0, 4.5, 1.0]) if outputs == 1 else torch.arange(4) % 3
    mask = torch.arange(31) < batch["lengths"][:, None]
    expected = model(
        input_ids=batch["ids"],
        token_type_ids=batch["segments"],
        attention_mask=mask.long(),
        labels=label,
    )
    output = objective({**batch, "label": label})
    gap = (objective.scores(batch) - expected.logits).abs().max()
    assert gap < 1e-5 * expected.logits.abs().max()
    torch.testing.assert_close(
        output.only.total / output.only.targets, expected.loss, rtol=1e-5, atol=0
    )
    (output.only.total / output.only.targets).backward()
    expected.loss.backward()
    for mine, other in (
        (objective.classifier.weight, model.classifier.weight),
        (objective.pooler.dense.weight, model.bert.pooler.dense.weight),
        (
            objective.encoder.embeddings.position.weight,
            model.bert.embeddings.position_embeddings.weight,
        ),
    ):
        gap = (mine.grad - other.grad).abs().max() / other.grad.abs().max()
        assert gap < 1e-5


@pytest.mark.parametrize(("kind", "fresh"), [("BertForPreTraining", 2), ("BertForMaskedLM", 4)])
def test_published_pre_trainings(tmp_path: Path, kind: str, fresh: int) -> None:
    model, objective = theirs(2, kind), ours(2)
    model.save_pretrained(tmp_path)
    report = load_weights(objective, tmp_path / "model.safetensors")
    assert report.complete
    assert len(report.fresh) == fresh
    table = model.bert.embeddings.word_embeddings.weight
    assert torch.equal(objective.encoder.embeddings.word.weight, table)
