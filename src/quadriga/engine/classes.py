"""The number of classes of a run that leaves it to its data."""

from __future__ import annotations

from quadriga.contracts import Dataset
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.provenance import Resolved

ASSUMED = 1000
"""Classes that a rehearsal counts with where the data is not at hand: those of ImageNet."""

_KEY = "objective.classes"


def leaves_it_to_data(config: RunConfig) -> bool:
    """Return whether a method has a number of classes, and the config does not say it."""
    return "classes" in type(config.objective).model_fields and _stated(config) is None


def settle(resolved: Resolved[RunConfig]) -> Resolved[RunConfig]:
    """Set the number of classes to that of the training data, if it is at hand.

    What is wrong with the data is told when the run is checked.
    """
    config = resolved.config
    if not leaves_it_to_data(config):
        return resolved
    try:
        classes = len(config.data.build("train").classes)
    except UserError:
        return resolved
    return resolved.override({_KEY: classes}, "the training data") if classes > 1 else resolved


def check_classes(config: RunConfig, dataset: Dataset) -> None:
    """Check that the classifier has a place for every class of the data.

    Raises:
        UserError: It has fewer.
    """
    stated, found = _stated(config), len(dataset.classes)
    if stated is not None and found > stated:
        raise UserError(
            f"{_KEY} must be at least {found}, the classes of data.kind={config.data.kind()}, but "
            f"is {stated}; set it to none to count them"
        )


def _stated(config: RunConfig) -> int | None:
    classes = getattr(config.objective, "classes", None)
    return classes if isinstance(classes, int) else None
