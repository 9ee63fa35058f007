"""Exports for Hugging Face: a folder that ``from_pretrained`` reads."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quadriga import randomness
from quadriga.engine.export_subject import (
    FOREIGN_TOLERANCE,
    Check,
    Format,
    Part,
    Subject,
    greatest_difference,
    keyed_images,
    read_back,
    require_vit,
)
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.models.weights import export_weights, load_weights
from quadriga.models.weights.arguments import hf_arguments

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

_FEATURES = {
    "class": "last_hidden_state[:, 0]",
    "mean": "last_hidden_state[:, 1:].mean(1)",
}
"""Pooling -> how it is done with ViTModel's output."""

Pairs = list[tuple[Tensor, Tensor]]


class HuggingFaceFormat(Format):
    """A folder with config.json and model.safetensors: ViTModel, or ViTMAEForPreTraining."""

    suffix = ""

    def check(self, config: RunConfig, part: Part) -> None:
        """Refuse what the two classes cannot express."""
        _arguments(config, part)

    def write(self, subject: Subject, target: Path) -> None:
        """Write weights and config."""
        target.mkdir()
        export_weights(subject.module, target / WEIGHTS, "hf")
        described = {**_arguments(subject.config, subject.part), "quadriga": subject.notes()}
        (target / CONFIG).write_text(json.dumps(described, indent=2) + "\n")

    def remark(self, subject: Subject) -> str | None:
        """Say where the feature vector is, which ViTModel leaves to its users."""
        if subject.part == "all":
            return None
        return f"an image's feature vector is {_FEATURES[subject.vit.config.pool]} of ViTModel"

    def verify(self, subject: Subject, target: Path) -> Check:
        """Run transformers' model on the same images, or this project's from the same file."""
        try:
            import transformers
        except ImportError:
            against = "by reading it back (transformers is not installed)"
            compare = _encoder_read_back if subject.part == "encoder" else _objective_read_back
        else:
            against = f"with transformers {transformers.__version__}"
            compare = _encoder_pairs if subject.part == "encoder" else _objective_pairs
        with torch.no_grad(), _quiet():
            difference = greatest_difference(compare(subject, target))
        return Check(against=against, difference=difference, tolerance=FOREIGN_TOLERANCE)


def _arguments(config: RunConfig, part: Part) -> dict[str, Any]:
    """Return the folder's config.json.

    Raises:
        UserError: The classes cannot express the model.
    """
    model, method = require_vit(config, "hf"), config.objective
    if part == "encoder":
        return hf_arguments(model)
    if method.kind() != "mae":
        raise UserError(
            f"--part must be encoder for --to hf and objective.kind={method.kind()}, but is all: "
            "the layout has a decoder for mae only; use --to safetensors"
        )
    return hf_arguments(model, method.as_dict())


def _encoder_pairs(subject: Subject, folder: Path) -> Pairs:
    from transformers import ViTModel

    images = keyed_images(subject.vit.config)
    theirs = _loaded(ViTModel, folder, add_pooling_layer=False)
    tokens = theirs(images).last_hidden_state
    pooled = tokens[:, 0] if subject.vit.config.pool == "class" else tokens[:, 1:].mean(1)
    return [(tokens, subject.vit(images)), (pooled, subject.vit.features(images))]


def _encoder_read_back(subject: Subject, folder: Path) -> Pairs:
    images = keyed_images(subject.vit.config)
    return [(read_back(subject.vit.config, folder / WEIGHTS)(images), subject.vit(images))]


def _objective_pairs(subject: Subject, folder: Path) -> Pairs:
    """Compare the loss, and the prediction of every pixel of every patch."""
    from transformers import ViTMAEForPreTraining

    theirs = _loaded(ViTMAEForPreTraining, folder)
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


def _loaded(cls: Any, folder: Path, **options: bool) -> Any:
    """Load a folder as its users do; nothing may be missing and nothing left over."""
    model, info = cls.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, **options
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise UserError(f"transformers reports {kind}: {', '.join(map(str, info[kind]))}")
    return model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the bars and advice that transformers prints while loading."""
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
