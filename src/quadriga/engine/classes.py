"""The number of classes of a classifier, which is that of its data."""

from __future__ import annotations

import contextlib

from quadriga.config.provenance import Resolved
from quadriga.contracts import Dataset
from quadriga.engine.run_config import RunConfig
from quadriga.engine.tasks import task_configs
from quadriga.errors import UserError

_KEY = "objective.classes"


def is_classifier(config: RunConfig) -> bool:
    """Return whether the method has a number of classes: its outputs are the data's classes."""
    return "classes" in type(config.objective).model_fields


def leaves_it_to_data(config: RunConfig) -> bool:
    """Return whether the method has a number of classes that the config does not set."""
    return is_classifier(config) and _stated(config) is None


def infer_num_classes(resolved: Resolved[RunConfig]) -> Resolved[RunConfig]:
    """Set the number of classes to that of the training data, if the data is available.

    Errors in the data are ignored here; the checks of the run report them.
    """
    found = {}
    for task, config in task_configs(resolved.config).items():
        if not leaves_it_to_data(config):
            continue
        with contextlib.suppress(UserError):
            classes = len(config.data.build("train").classes)
            if classes > 1:
                found[f"objective.tasks.{task}.{_KEY}" if task else _KEY] = classes
    return resolved.override(found, "the training data") if found else resolved


def check_classes(config: RunConfig, dataset: Dataset) -> None:
    """Check that every sample has a class, and the classifier an output for it.

    Raises:
        UserError: There are no labels, some records have none, or the classifier has fewer outputs.
    """
    if not is_classifier(config):
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
    labels = dataset.labels()
    if labels is not None and (bare := int((labels < 0).sum())):
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
