"""The number of classes of a run that leaves it to its data."""

from __future__ import annotations

from quadriga.config.provenance import Resolved
from quadriga.contracts import Dataset
from quadriga.data.labelled import LabelledDataset
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError

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
    """Check that every sample has a class, and the classifier a place for it.

    Raises:
        UserError: There are no labels, some records have none, or the classifier has fewer places.
    """
    if "classes" not in type(config.objective).model_fields:
        return
    stated, found = _stated(config), len(dataset.classes)
    method, data = config.objective.kind(), config.data.kind()
    remedy = "use data with labels, or another objective.kind"
    if not found:
        raise UserError(f"{method} needs labels, but data.kind={data} has none; {remedy}")
    if stated is None and found < 2:
        raise UserError(
            f"{_KEY} must be 2 or more, but data.kind={data} has 1 ({dataset.classes[0]}); set it, "
            "or use data with more"
        )
    if isinstance(dataset, LabelledDataset) and (bare := int((dataset.labels() < 0).sum())):
        raise UserError(
            f"{method} needs a label for each sample, but {bare} of {len(dataset)} of "
            f"data.kind={data} have none; leave them out, or use another objective.kind"
        )
    if stated is not None and found > stated:
        raise UserError(
            f"{_KEY} must be at least {found}, the classes of data.kind={data}, but is {stated}; "
            "set it to none to count them"
        )


def _stated(config: RunConfig) -> int | None:
    classes = getattr(config.objective, "classes", None)
    return classes if isinstance(classes, int) else None
