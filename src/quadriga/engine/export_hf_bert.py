"""A BERT beside Hugging Face's: which class holds it, and both run on the same sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quadriga.contracts import Batch
from quadriga.engine.export_hf_loading import WEIGHTS, load_with_transformers
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.export.subject import Pairs, Part, Subject, keyed_text
from quadriga.weights import load_weights


def bert_architecture(config: RunConfig, part: Part) -> str:
    """Return the name of the class that holds a run's BERT.

    Raises:
        UserError: No class has the objective's heads.
    """
    if part == "encoder":
        return "BertModel"
    if config.objective.kind() != "masked_lm":
        raise UserError(
            f"--part must be encoder for --to hf and objective.kind={config.objective.kind()}, but "
            "is all: of a BERT's heads the layout has those of masked_lm only; use --to safetensors"
        )
    both = config.objective.as_dict()["next_sentence"]
    return "BertForPreTraining" if both else "BertForMaskedLM"


def bert_pairs(subject: Subject, folder: Path) -> Pairs:
    """Compare the encoded tokens, or the loss of both tasks, with transformers' class."""
    import transformers

    name = bert_architecture(subject.config, subject.part)
    options = {"add_pooling_layer": False} if name == "BertModel" else {}
    theirs = load_with_transformers(getattr(transformers, name), folder, **options)
    batch = keyed_text(subject.bert.config)
    given = _padded(batch)
    if name == "BertModel":
        grid = theirs(**given).last_hidden_state
        return [(grid.flatten(0, 1)[batch["tokens"]], subject.bert(batch))]
    labels = torch.full_like(batch["ids"], -100).flatten()
    labels[batch["tokens"][batch["masked"]]] = batch["targets"]
    given["labels"] = labels.view_as(batch["ids"])
    if name == "BertForPreTraining":
        given["next_sentence_label"] = batch["is_random"]
    return [(theirs(**given).loss, _loss(subject.objective, batch))]


def bert_read_back(subject: Subject, folder: Path) -> Pairs:
    """Compare with this project's own model from the same file."""
    batch = keyed_text(subject.bert.config)
    if subject.part == "encoder":
        encoder = subject.bert.config.build().eval()
        load_weights(encoder, folder / WEIGHTS, "hf")
        return [(encoder(batch), subject.bert(batch))]
    objective = subject.config.objective.build(subject.config.model).eval()
    load_weights(objective, folder / WEIGHTS, "hf")
    return [(_loss(objective, batch), _loss(subject.objective, batch))]


def _loss(objective: Any, batch: Batch) -> Tensor:
    """Return the mean loss, whatever the reduction of the objective."""
    output = objective(batch)
    loss: Tensor = output.loss if output.count is None else output.loss / output.count
    return loss


def _padded(batch: Batch) -> dict[str, Tensor]:
    columns = torch.arange(batch["ids"].shape[1])
    return {
        "input_ids": batch["ids"],
        "token_type_ids": batch["segments"],
        "attention_mask": (columns < batch["lengths"][:, None]).long(),
    }
