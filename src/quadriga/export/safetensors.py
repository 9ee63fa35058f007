"""Exports under this project's own names: one file with the tensors and the model's config."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from quadriga import randomness
from quadriga.contracts import ModelConfig, ObjectiveConfig
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError, reading
from quadriga.export.subject import (
    OWN_TOLERANCE,
    Check,
    Format,
    Part,
    Subject,
    greatest_difference,
    keyed_batch,
    keyed_images,
)
from quadriga.files import parse_json
from quadriga.models.bert import Bert
from quadriga.models.vit import ViT
from quadriga.weights import load_weights
from quadriga.weights.files import read_weights, write_tensors

HEADER = "quadriga"
"""Key of the configs in the file's header."""


class SafetensorsFormat(Format):
    """A safetensors file with the configs of its model in the header."""

    suffix = ".safetensors"

    def check(self, config: RunConfig, part: Part) -> None:
        """Any model can be written."""

    def write(self, subject: Subject, target: Path) -> None:
        """Write the tensors, and the configs from which `rebuild` builds the model."""
        configs = {}
        if subject.part == "all":
            configs["objective"] = subject.config.objective.as_dict()
        notes = {HEADER: json.dumps({**subject.notes(), **configs})}
        write_tensors(subject.module.state_dict(), target, notes)

    def verify(self, subject: Subject, target: Path) -> Check:
        """Rebuild the model from the file alone and compare its outputs."""
        rebuilt = rebuild(target)
        with torch.no_grad():
            expected, actual = _outputs(subject, subject.module), _outputs(subject, rebuilt)
        difference = greatest_difference(list(zip(actual, expected, strict=True)))
        return Check(
            against="with the model rebuilt from the file",
            difference=difference,
            tolerance=OWN_TOLERANCE,
        )


def rebuild(path: Path | str) -> nn.Module:
    """Build the model of a file that was exported under this project's names.

    Args:
        path: The file.

    Returns:
        The encoder, or with ``--part all`` the objective: on the CPU, in evaluation mode.

    Raises:
        UserError: The file is damaged, or is not such an export.
    """
    path = Path(path)
    try:
        described = parse_json((read_weights(path).notes or {})[HEADER])
    except KeyError as error:
        raise UserError(
            f"{path} does not say what model it is of: it was not written by checkpoint export; "
            "build the model from its config and use load_weights"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: its header holds no JSON: {error}") from error
    with reading(path, "an export of this project"):
        model = ModelConfig.from_dict(described["model"])
        if "objective" in described:
            made: nn.Module = ObjectiveConfig.from_dict(described["objective"]).build(model)
        else:
            made = model.build()
    load_weights(made, path, "quadriga")
    return made.eval()


def _outputs(subject: Subject, module: nn.Module) -> list[Tensor]:
    """Return the outputs of the exported part: the encoder's tokens, or the objective's sums."""
    if isinstance(module, ViT):
        images = keyed_images(module.config)
        return [module(images), module.features(images)]
    batch = keyed_batch(subject.config)
    if subject.part != "all":
        tokens: Tensor = module(batch if isinstance(module, Bert) else batch["image"])
        return [tokens]
    with randomness.micro_batch(0, 0, 0, 0):
        output = module(batch)
    return [
        *(term.total for term in output.terms.values()),
        *(total for total, _ in output.metrics.values()),
    ]
