"""Exports for timm: a file with its names, and the arguments of its class in a JSON beside it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

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
from quadriga.models.weights import export_weights
from quadriga.models.weights.arguments import timm_arguments

CLASS = "timm.models.vision_transformer.VisionTransformer"


class TimmFormat(Format):
    """``NAME.safetensors`` and ``NAME.json``."""

    suffix = ".safetensors"

    def check(self, config: RunConfig, part: Part) -> None:
        """Refuse decoders, and models that timm has no arguments for."""
        if part == "all":
            raise UserError(
                "--part must be encoder for --to timm, but is all: timm has no class with a "
                "decoder; use --to hf or safetensors"
            )
        timm_arguments(require_vit(config, "timm"))

    def companions(self, target: Path) -> list[Path]:
        """Return the JSON file."""
        return [target.with_suffix(".json")]

    def write(self, subject: Subject, target: Path) -> None:
        """Write weights and arguments."""
        export_weights(subject.vit, target, "timm")
        described = {
            "class": CLASS,
            "arguments": timm_arguments(subject.vit.config),
            "quadriga": subject.notes(),
        }
        target.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")

    def verify(self, subject: Subject, target: Path) -> Check:
        """Run timm's model on the same images, or this project's from the same file."""
        encoder = subject.vit
        images = keyed_images(encoder.config)
        try:
            import timm
            from timm.models.vision_transformer import VisionTransformer
        except ImportError:
            against = "by reading it back (timm is not installed)"
            again = read_back(encoder.config, target)
            with torch.no_grad():
                pairs = [
                    (again(images), encoder(images)),
                    (again.features(images), encoder.features(images)),
                ]
        else:
            against = f"with timm {timm.__version__}"
            described = json.loads(target.with_suffix(".json").read_text())
            theirs = VisionTransformer(**described["arguments"]).eval()
            theirs.load_state_dict(load_file(target))
            with torch.no_grad():
                pairs = [
                    (theirs.forward_features(images), encoder(images)),
                    (theirs(images), encoder.features(images)),
                ]
        return Check(
            against=against, difference=greatest_difference(pairs), tolerance=FOREIGN_TOLERANCE
        )
