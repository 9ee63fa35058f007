"""Mixtures: several tasks in one run, each with its own objective, data and parameters.

The loss of a step is the sum over tasks of ``weight * share * loss``, where ``share`` is the
task's fraction of the step's micro-batches, and ``loss`` is over all its samples of the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from pydantic import Field, model_validator
from torch import Tensor, nn

from quadriga import randomness
from quadriga.config.base import Config
from quadriga.contracts import (
    Batch,
    LossOutput,
    MicroBatch,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    PooledObjective,
    Progress,
    with_initial_values,
)
from quadriga.errors import UserError, keys_at


class Task(Config):
    """One task of a mixture."""

    objective: ObjectiveConfig
    """Its method."""
    model: ModelConfig | None = None
    """Its architecture; none for the run's model. Tasks never share parameters."""
    weight: float = Field(1.0, gt=0, le=1e6)
    """Factor of its loss."""


@final
class MixtureConfig(ObjectiveConfig):
    """Several tasks; ``data`` and ``views`` are mixtures of the same names."""

    tasks: dict[str, Task] = Field(min_length=1)
    """Name -> task."""

    @model_validator(mode="after")
    def _check_names(self) -> MixtureConfig:
        if taken := [name for name in self.tasks if hasattr(nn.ModuleDict(), name)]:
            raise ValueError(f"tasks must not be called {taken[0]!r}, which torch keeps for itself")
        return self

    def build(self, model: ModelConfig) -> Mixture:
        """Make the objective of every task.

        Raises:
            UserError: A method does not train its model, or cannot be part of a mixture.
        """
        return with_initial_values(lambda: self._of_tasks(model), Mixture.initialise_all)

    def _of_tasks(self, model: ModelConfig) -> Mixture:
        objectives = {}
        for name, (objective, own) in self.by_task(model).items():
            paths = {"objective": f"objective.tasks.{name}.objective"}
            if own is not model:
                paths["model"] = f"objective.tasks.{name}.model"
            with keys_at(paths):
                built = objectives[name] = objective.build(own)
            reason = None
            if isinstance(built, PooledObjective):
                reason = "its loss couples the samples of a step"
            elif built.statistics_group is not None:
                reason = "it groups samples for batch normalisation"
            elif built.independent_parts:
                reason = "its parts are clipped apart"
            if reason is not None:
                raise UserError(
                    f"objective.tasks.{name}.objective.kind must be of a method whose loss adds "
                    f"over samples, but is {objective.kind()}: {reason}; train it in a run of its "
                    "own"
                )
        return Mixture(objectives, {name: task.weight for name, task in self.tasks.items()})

    def by_task(self, model: ModelConfig) -> dict[str, tuple[ObjectiveConfig, ModelConfig]]:
        """Return the method and the model of each task."""
        return {
            name: (task.objective, task.model or model) for name, task in sorted(self.tasks.items())
        }


@final
class Mixture(Objective):
    """The objectives of all tasks; each micro-batch belongs to one task."""

    def __init__(self, tasks: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        """Combine the objectives.

        Args:
            tasks: Task -> objective.
            weights: Task -> factor of its loss.
        """
        super().__init__()
        self.tasks = nn.ModuleDict(tasks)
        self._objectives, self._weights = tasks, weights
        self.term_names = tuple(f"{n}.{term}" for n, o in tasks.items() for term in o.term_names)
        self.metric_names = tuple(f"{n}.{m}" for n, o in tasks.items() for m in o.metric_names)

    def initialise(self, seed: int) -> None:
        """Fill every tensor; tasks of the same shapes get different values."""
        for name, objective in self._objectives.items():
            objective.initialise(randomness.fold(seed, "task", name))

    def after_initial_weights(self) -> None:
        """Call this method of every task's objective."""
        for objective in self._objectives.values():
            objective.after_initial_weights()

    def forward(self, batch: Batch) -> LossOutput:
        """Compute the loss of a micro-batch of one task; names are prefixed with the task's.

        Raises:
            UserError: The task's method returns rows, which a mixture does not support.
        """
        task, share = _task_of(batch)
        output: LossOutput = self.tasks[task](batch)
        if output.rows:
            raise UserError(
                f"objective.tasks.{task}.objective.kind must be of a method that keeps no rows of "
                "samples; train it in a run of its own"
            )
        factor = self._weights[task] * share
        terms = {
            f"{task}.{name}": term._replace(weight=term.weight * factor)
            for name, term in output.terms.items()
        }
        metrics = {f"{task}.{name}": metric for name, metric in output.metrics.items()}
        return LossOutput(terms, metrics, {f"{task}.{n}": s for n, s in output.sums.items()})

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of targets of each part of the loss of the micro-batch's task."""
        task, _ = _task_of(batch)
        counts = self._objectives[task].counts(batch)
        return {f"{task}.{name}": count for name, count in counts.items()}

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the sums of all tasks."""
        return {
            f"{task}.{name}": shape
            for task, objective in self._objectives.items()
            for name, shape in objective.sum_shapes().items()
        }

    def before_step(self, progress: Progress) -> None:
        """Call this method of every task's objective, and collect the frozen parts."""
        for objective in self._objectives.values():
            objective.before_step(progress)
        self.frozen_parts = tuple(
            f"tasks.{task}.{part}"
            for task, objective in self._objectives.items()
            for part in objective.frozen_parts
        )

    def after_step(
        self, progress: Progress, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> None:
        """Call this method of every task's objective with its own sums."""
        for task, objective in self._objectives.items():
            names = objective.sum_shapes()
            objective.after_step(progress, {name: sums[f"{task}.{name}"] for name in names}, {})


def _task_of(batch: Batch) -> tuple[str, float]:
    assert isinstance(batch, MicroBatch), "a batch of a mixture names its task"
    return batch.task, batch.share
