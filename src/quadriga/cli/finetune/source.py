"""What fine-tuning takes from a run or from weights: architecture, normalisation, encoder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from quadriga.engine.build import build_on_meta
from quadriga.engine.subject import Subject, open_subject
from quadriga.errors import UserError
from quadriga.evaluation.parts.tokens import evaluated_network
from quadriga.models.vit import ViT

_OF_THE_RECIPE = ("drop_path", "dropout")
"""Values of the model that are regularisation, which the recipe decides."""
_VIEWS = ("mean", "std", "test_crop_fraction")


def values_from(source: Path) -> dict[str, Any]:
    """Return the overrides with which a recipe fine-tunes the encoder of a run or of weights.

    The encoder is the one whose features the method evaluates. A fixed table of positions becomes
    a learned one, and an MAE's features the mean of its patches, both as its authors fine-tune it:
    no loss has looked at its class token.

    Args:
        source: A run, a checkpoint of one, a file of weights, or the folder of a published model.

    Raises:
        UserError: It is none of them, or its encoder is no vision transformer.
    """
    subject = open_subject(source, None)
    run = subject.run
    objective: Any = build_on_meta(run)
    network = evaluated_network(objective)
    if not isinstance(network, ViT):
        raise UserError(
            f"finetune needs a vision transformer as the encoder of {source}, but model.kind is "
            f"{run.model.kind()}; name another run or file"
        )
    if subject.architecture is not None and not subject.architecture.views:
        print(
            f"warning: {source} does not say how its images are normalised: set views.mean and "
            "views.std, or the recipe's are taken",
            file=sys.stderr,
        )
    is_teacher = network is getattr(objective, "teacher_encoder", None)
    model, views = network.config.as_dict(), run.views.as_dict()
    if model["positions"] == "sincos":
        model["positions"] = "learned"
    if run.objective.kind() == "mae":
        model["pool"] = "mean"
    return {
        "name": f"finetune_{_name(subject, source)}",
        **{f"model.{key}": value for key, value in model.items() if key not in _OF_THE_RECIPE},
        **{f"views.{key}": views[key] for key in _VIEWS if key in views},
        "views.image_px": network.config.image_px,
        "warm_start.path": str(source.resolve()),
        "warm_start.part": "teacher" if is_teacher else "encoder",
    }


def _name(subject: Subject, source: Path) -> str:
    if subject.weights is not None:
        return subject.run.name.removeprefix("eval_")
    run = subject.directory.path.resolve().name
    return run if subject.checkpoint is None else f"{run}_{source.resolve().name}"
