"""Exports for timm: a file with timm's names, and a JSON file with the arguments of its class."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.export.arguments import timm_arguments
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
from quadriga.weights import export_weights

CLASS = "timm.models.vision_transformer.VisionTransformer"


class TimmFormat(Format):
    """``NAME.safetensors`` and ``NAME.json``."""

    suffix = ".safetensors"

    def check(self, config: RunConfig, part: Part) -> None:
        """Refuse decoders, and models that timm's arguments cannot express."""
        model, kind = require_vit(config, "timm"), config.objective.kind()
        classes = classes_of(config, part)
        if part == "all" and not classes:
            raise UserError(
                f"--part must be encoder for --to timm and objective.kind={kind}, but is all: timm "
                "has no class with a decoder; use --to hf or safetensors"
            )
        timm_arguments(model, classes)

    def sidecar_files(self, target: Path) -> list[Path]:
        """Return the JSON file."""
        return [target.with_suffix(".json")]

    def write(self, subject: Subject, target: Path) -> None:
        """Write weights and arguments."""
        export_weights(subject.module, target, "timm")
        described = {
            "class": CLASS,
            "arguments": timm_arguments(
                subject.vit.config, classes_of(subject.config, subject.part)
            ),
            "quadriga": subject.notes(),
        }
        target.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")

    def verify(self, subject: Subject, target: Path) -> Check:
        """Compare with timm's model; without timm, with this project's model read back."""
        encoder = subject.vit
        images = keyed_images(encoder.config)
        try:
            import timm
            from timm.models.vision_transformer import VisionTransformer
        except ImportError:
            against = "by reading it back (timm is not installed)"
            with torch.no_grad():
                pairs = _read_back(subject, target)
        else:
            against = f"with timm {timm.__version__}"
            described = json.loads(target.with_suffix(".json").read_text())
            theirs = VisionTransformer(**described["arguments"]).eval()
            theirs.load_state_dict(load_file(target))
            with torch.no_grad():
                pairs = [
                    (theirs.forward_features(images), encoder(images)),
                    (theirs(images), _output(subject, images)),
                ]
        return Check(
            against=against, difference=greatest_difference(pairs), tolerance=FOREIGN_TOLERANCE
        )


def _output(subject: Subject, images: Tensor) -> Tensor:
    """Return what timm's model returns: logits (batch, classes) or features (batch, width)."""
    if subject.part == "all":
        return logits(subject.objective, images)
    return subject.vit.features(images)


def _read_back(subject: Subject, target: Path) -> Pairs:
    encoder = subject.vit
    images = keyed_images(encoder.config)
    expected = _output(subject, images)
    if subject.part == "all":
        return [(read_classifier_back(subject, target, "timm"), expected)]
    again = read_back(encoder.config, target)
    return [(again(images), encoder(images)), (again.features(images), expected)]
