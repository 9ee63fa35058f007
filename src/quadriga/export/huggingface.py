"""Exports for Hugging Face: a folder that ``from_pretrained`` reads, of a ViT or a BERT.

The check loads the folder with transformers, as users do, and compares the outputs of both models.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quadriga import randomness
from quadriga.contracts import Batch
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
    keyed_text,
    logits,
    read_back,
    read_classifier_back,
    require_vit,
)
from quadriga.models.bert import BertConfig
from quadriga.weights import export_weights, load_weights

WEIGHTS = "model.safetensors"
"""The file in an exported folder that holds the tensors."""


def load_with_transformers(cls: Any, folder: Path, **options: bool) -> Any:
    """Load a folder as users do, in evaluation mode.

    Raises:
        UserError: A tensor is missing, left over or of another shape.
    """
    model, info = cls.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, **options
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise UserError(f"transformers reports {kind}: {', '.join(map(str, info[kind]))}")
    return model.eval()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress the progress bars and warnings that transformers prints while loading."""
    try:
        from transformers.utils import logging
    except ImportError:
        yield
        return
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def bert_architecture(config: RunConfig, part: Part) -> str:
    """Return the name of Hugging Face's class for a run's BERT.

    Raises:
        UserError: No class has the objective's heads.
    """
    if part != "all":
        return "BertModel"
    if config.objective.kind() != "masked_lm":
        raise UserError(
            f"--part must be encoder for --to hf and objective.kind={config.objective.kind()}, but "
            "is all: of a BERT's heads the layout has those of masked_lm only; use --to safetensors"
        )
    both = config.objective.as_dict()["next_sentence"]
    return "BertForPreTraining" if both else "BertForMaskedLM"


def bert_pairs(subject: Subject, folder: Path) -> Pairs:
    """Return the encoded tokens, or the loss, of transformers' class and of this project's."""
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
    return [(theirs(**given).loss, _bert_loss(subject.objective, batch))]


def bert_read_back(subject: Subject, folder: Path) -> Pairs:
    """Return the outputs of this project's model, loaded from the export and original."""
    batch = keyed_text(subject.bert.config)
    if subject.part != "all":
        encoder = subject.bert.config.build().eval()
        load_weights(encoder, folder / WEIGHTS, "hf")
        return [(encoder(batch), subject.bert(batch))]
    objective = subject.config.objective.build(subject.config.model).eval()
    load_weights(objective, folder / WEIGHTS, "hf")
    return [(_bert_loss(objective, batch), _bert_loss(subject.objective, batch))]


def _bert_loss(objective: Any, batch: Batch) -> Tensor:
    """Return the mean loss, whatever the reduction of the objective."""
    output = objective(batch)
    loss: Tensor = output.value
    return loss


def _padded(batch: Batch) -> dict[str, Tensor]:
    columns = torch.arange(batch["ids"].shape[1])
    return {
        "input_ids": batch["ids"],
        "token_type_ids": batch["segments"],
        "attention_mask": (columns < batch["lengths"][:, None]).long(),
    }


CONFIG = "config.json"

_FEATURES = {
    "class": "last_hidden_state[:, 0]",
    "mean": "last_hidden_state[:, 1:].mean(1)",
}
"""Pooling -> expression on ViTModel's output."""


class HuggingFaceFormat(Format):
    """A folder with config.json and model.safetensors, of a vision transformer or a BERT.

    ViTModel, ViTForImageClassification or ViTMAEForPreTraining; BertModel, BertForPreTraining or
    BertForMaskedLM.
    """

    suffix = ""

    def check(self, config: RunConfig, part: Part) -> None:
        """Refuse models that Hugging Face's classes cannot express."""
        _arguments(config, part)

    def write(self, subject: Subject, target: Path) -> None:
        """Write weights and config."""
        target.mkdir()
        export_weights(subject.module, target / WEIGHTS, "hf")
        described = {
            **_arguments(subject.config, subject.part, subject.class_names),
            "quadriga": subject.notes(),
        }
        (target / CONFIG).write_text(json.dumps(described, indent=2) + "\n")

    def remark(self, subject: Subject) -> str | None:
        """Return how to get a feature vector, or that the tokenizer is missing."""
        if isinstance(subject.config.model, BertConfig):
            return "the folder has no tokenizer: copy the run's vocab.txt into it"
        if subject.part == "all":
            return None
        return f"an image's feature vector is {_FEATURES[subject.vit.config.pool]} of ViTModel"

    def verify(self, subject: Subject, target: Path) -> Check:
        """Compare with transformers' model; without transformers, with one read back."""
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
    """Return the function that runs model and export, with transformers or without it."""
    encoder = subject.part != "all"
    if isinstance(subject.config.model, BertConfig):
        return bert_pairs if installed else bert_read_back
    if classes_of(subject.config, subject.part):
        return _classifier_pairs if installed else _classifier_read_back
    if installed:
        return _encoder_pairs if encoder else _objective_pairs
    return _encoder_read_back if encoder else _objective_read_back


def _arguments(config: RunConfig, part: Part, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the folder's config.json.

    Raises:
        UserError: The classes cannot express the model.
    """
    if isinstance(config.model, BertConfig):
        return hf_bert_arguments(config.model, bert_architecture(config, part))
    model, method = require_vit(config, "hf"), config.objective
    if part != "all":
        return hf_arguments(model)
    if classes := classes_of(config, part):
        return hf_arguments(model, classes=classes, names=names)
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
    """Return the losses, and the predictions of every pixel of every patch."""
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
    """Return a batch of images and the noise (batch, patches) that gives both the same mask."""
    config = subject.vit.config
    images = keyed_images(config)
    keys = torch.arange(images.shape[0])
    noise = randomness.uniform_rows(keys, randomness.fold("export", "noise"), config.patches)
    return {"image": images, "key": keys, "index": keys}, noise


def _loss(objective: nn.Module, batch: dict[str, Tensor], noise: Tensor) -> Tensor:
    output = objective(batch, noise)
    loss: Tensor = output.value
    return loss


def _pixels(subject: Subject, batch: dict[str, Tensor], noise: Tensor) -> Tensor:
    """Return the decoder's predictions as they are, without scaling by the original patches."""
    plain = subject.config.objective.override({"normalise_pixels": False})
    objective: Any = plain.build(subject.config.model).eval()
    objective.load_state_dict(subject.objective.state_dict())
    pixels: Tensor = objective.reconstruct(batch, noise).reconstruction
    return pixels
