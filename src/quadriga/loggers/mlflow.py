"""MLflow tracking."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, final

from quadriga.config.base import leaves_of
from quadriga.contracts.logging import Logger, LoggerConfig, LoggerContext
from quadriga.files import write_text

BATCH = 100
"""Parameters that the tracking server accepts in one call."""
LENGTH = 500
"""Characters of a parameter that every version of the server accepts."""


@final
class MLflowConfig(LoggerConfig):
    """A run of MLflow; a resumed run continues the same one."""

    package: ClassVar[str | None] = "mlflow"
    extra: ClassVar[str | None] = "mlflow"

    uri: str | None = None
    """Tracking server (``https://...``) or store (``sqlite:///runs.db``); none for the value of
    MLFLOW_TRACKING_URI."""
    experiment: str = "quadriga"
    """The experiment that the run belongs to; created when it is missing."""

    def open(self, context: LoggerContext) -> MLflow:
        """Start a run, or continue the one whose id is in the run directory."""
        return MLflow(self, context)


@final
class MLflow(Logger):
    """Sends each record; the config's values become the run's parameters."""

    remote: ClassVar[bool] = True

    def __init__(self, config: MLflowConfig, context: LoggerContext) -> None:
        """Start or continue the run."""
        from mlflow import MlflowClient, entities

        self._entities: Any = entities
        self._client: Any = MlflowClient(config.uri)
        known = context.folder / "mlflow_run_id.txt"
        if known.exists():
            self._id = known.read_text(encoding="utf-8").strip()
            self._client.update_run(self._id, status="RUNNING")
        else:
            found = self._client.get_experiment_by_name(config.experiment)
            owner = found.experiment_id if found else None
            owner = owner or self._client.create_experiment(config.experiment)
            self._id = str(self._client.create_run(owner, run_name=context.name).info.run_id)
            for part in _parts(context.config):
                parameters = [self._entities.Param(name, value) for name, value in part]
                self._client.log_batch(self._id, params=parameters)
            write_text(known, f"{self._id}\n")
        self.place = f"run {self._id} of experiment {config.experiment}"

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Send a record."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, now, step) for name, value in record.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)


def _parts(config: Mapping[str, Any]) -> Iterator[list[tuple[str, str]]]:
    pairs = [(path, str(value)[:LENGTH]) for path, value in leaves_of(dict(config), "")]
    for first in range(0, len(pairs), BATCH):
        yield pairs[first : first + BATCH]
