"""Exports for Hugging Face: a folder that ``from_pretrained`` reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quadriga import randomness
from quadriga.engine.export_hf_bert import bert_architecture, bert_pairs, bert_read_back
from quadriga.engine.export_hf_loading import WEIGHTS, load_with_transformers, quiet_transformers
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.export.arguments import hf_arguments, hf_bert_arguments
from quadriga.export.subject import (
    FOREIGN_TOLERANCE,
    Check,
    Format,
    Pairs,
    Part,
    Subject,
    classes_of,
    greatest_difference,
    keyed_images,
    logits,
    read_back,
    read_classifier_back,
    require_vit,
)
from quadriga.models.bert import BertConfig
from quadriga.weights import export_weights, load_weights

CONFIG = "config.json"

_FEATURES = {
    "class": "last_hidden_state[:, 0]",
    "mean": "last_hidden_state[:, 1:].mean(1)",
}
"""Pooling -> how it is done with ViTModel's output."""


class HuggingFaceFormat(Format):
    """A folder with config.json and model.safetensors, of a vision transformer or a BERT.

    ViTModel, ViTForImageClassification or ViTMAEForPreTraining; BertModel, BertForPreTraining or
    BertForMaskedLM.
    """

    suffix = ""

    def check(self, config: RunConfig, part: Part) -> None:
        """Refuse what the classes cannot express."""
        _arguments(config, part)

    def write(self, subject: Subject, target: Path) -> None:
        """Write weights and config."""
        target.mkdir()
        export_weights(subject.module, target / WEIGHTS, "hf")
        described = {**_arguments(subject.config, subject.part), "quadriga": subject.notes()}
        (target / CONFIG).write_text(json.dumps(described, indent=2) + "\n")

    def remark(self, subject: Subject) -> str | None:
        """Say what the classes leave to their users."""
        if isinstance(subject.config.model, BertConfig):
            return "the folder has no tokenizer: copy the run's vocab.txt into it"
        if subject.part == "all":
            return None
        return f"an image's feature vector is {_FEATURES[subject.vit.config.pool]} of ViTModel"

    def verify(self, subject: Subject, target: Path) -> Check:
        """Run transformers' model on the same images, or this project's from the same file."""
        try:
            import transformers
        except ImportError:
            against = "by reading it back (transformers is not installed)"
            installed = False
        else:
            against = f"with transformers {transformers.__version__}"
            installed = True
        compare = _comparison(subject, installed)
        with torch.no_grad(), quiet_transformers():
            difference = greatest_difference(compare(subject, target))
        return Check(against=against, difference=difference, tolerance=FOREIGN_TOLERANCE)


def _comparison(subject: Subject, installed: bool) -> Callable[[Subject, Path], Pairs]:
    """Return what runs model and export, with transformers or without it."""
    encoder = subject.part == "encoder"
    if isinstance(subject.config.model, BertConfig):
        return bert_pairs if installed else bert_read_back
    if classes_of(subject.config, subject.part):
        return _classifier_pairs if installed else _classifier_read_back
    if installed:
        return _encoder_pairs if encoder else _objective_pairs
    return _encoder_read_back if encoder else _objective_read_back


def _arguments(config: RunConfig, part: Part) -> dict[str, Any]:
    """Return the folder's config.json.

    Raises:
        UserError: The classes cannot express the model.
    """
    if isinstance(config.model, BertConfig):
        return hf_bert_arguments(config.model, bert_architecture(config, part))
    model, method = require_vit(config, "hf"), config.objective
    if part == "encoder":
        return hf_arguments(model)
    if classes := classes_of(config, part):
        return hf_arguments(model, classes=classes)
    if method.kind() != "mae":
        raise UserError(
            f"--part must be encoder for --to hf and objective.kind={method.kind()}, but is all: "
            "the layout has it for mae and supervised only; use --to safetensors"
        )
    return hf_arguments(model, method.as_dict())


def _encoder_pairs(subject: Subject, folder: Path) -> Pairs:
    from transformers import ViTModel

    images = keyed_images(subject.vit.config)
    theirs = load_with_transformers(ViTModel, folder, add_pooling_layer=False)
    tokens = theirs(images).last_hidden_state
    pooled = tokens[:, 0] if subject.vit.config.pool == "class" else tokens[:, 1:].mean(1)
    return [(tokens, subject.vit(images)), (pooled, subject.vit.features(images))]


def _encoder_read_back(subject: Subject, folder: Path) -> Pairs:
    images = keyed_images(subject.vit.config)
    return [(read_back(subject.vit.config, folder / WEIGHTS)(images), subject.vit(images))]


def _classifier_pairs(subject: Subject, folder: Path) -> Pairs:
    from transformers import ViTForImageClassification

    images = keyed_images(subject.vit.config)
    theirs = load_with_transformers(ViTForImageClassification, folder)
    return [(theirs(images).logits, logits(subject.objective, images))]


def _classifier_read_back(subject: Subject, folder: Path) -> Pairs:
    actual = read_classifier_back(subject, folder / WEIGHTS, "hf")
    return [(actual, logits(subject.objective, keyed_images(subject.vit.config)))]


def _objective_pairs(subject: Subject, folder: Path) -> Pairs:
    """Compare the loss, and the prediction of every pixel of every patch."""
    from transformers import ViTMAEForPreTraining

    theirs = load_with_transformers(ViTMAEForPreTraining, folder)
    batch, noise = _masked(subject)
    output = theirs(batch["image"], noise=noise)
    loss, pixels = _loss(subject.objective, batch, noise), _pixels(subject, batch, noise)
    return [(output.loss, loss), (theirs.unpatchify(output.logits), pixels)]


def _objective_read_back(subject: Subject, folder: Path) -> Pairs:
    again = subject.config.objective.build(subject.config.model).eval()
    load_weights(again, folder / WEIGHTS, "hf")
    batch, noise = _masked(subject)
    loss = _loss(subject.objective, batch, noise)
    return [(_loss(again, batch, noise), loss)]


def _masked(subject: Subject) -> tuple[dict[str, Tensor], Tensor]:
    """Return images, and the noise from which both models draw the same mask."""
    config = subject.vit.config
    images = keyed_images(config)
    keys = torch.arange(images.shape[0])
    noise = randomness.uniform_rows(keys, randomness.fold("export", "noise"), config.patches)
    return {"image": images, "key": keys, "index": keys}, noise


def _loss(objective: nn.Module, batch: dict[str, Tensor], noise: Tensor) -> Tensor:
    output = objective(batch, noise)
    loss: Tensor = output.loss / output.count
    return loss


def _pixels(subject: Subject, batch: dict[str, Tensor], noise: Tensor) -> Tensor:
    """Return what the decoder predicts, not scaled back with the original patch."""
    plain = subject.config.objective.override({"normalise_pixels": False})
    objective: Any = plain.build(subject.config.model).eval()
    objective.load_state_dict(subject.objective.state_dict())
    pixels: Tensor = objective.reconstruct(batch, noise).reconstruction
    return pixels
