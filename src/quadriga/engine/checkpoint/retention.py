"""Retention of checkpoints: the newest, those at regular steps, and the best."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, final

from quadriga.engine.checkpoint.folder import checkpoint_path, list_checkpoints, remove, step_of
from quadriga.engine.run_config import CheckpointConfig
from quadriga.files import parse_json, write_text

BEST = "best.json"
"""File beside the checkpoints with the metric, the best step, and the value of each step."""


def to_remove(steps: Sequence[int], keep: int, every: int | None, best: int | None) -> list[int]:
    """Return the steps whose checkpoints are to be removed.

    Args:
        steps: Steps that have a checkpoint, in any order.
        keep: How many of the newest to keep; at least 1.
        every: Multiples of this are kept.
        best: This step is kept.
    """
    older = sorted(set(steps))[:-keep]
    return [step for step in older if step != best and (every is None or step % every)]


def best_step(values: Mapping[int, float], best_is: Literal["highest", "lowest"]) -> int | None:
    """Return the step of the best value, the earliest of equal ones; None without values."""
    sign = -1.0 if best_is == "highest" else 1.0
    return min(values, key=lambda step: (sign * values[step], step), default=None)


@final
class Retention:
    """Removes the checkpoints of a folder that the config does not keep; used by one process."""

    def __init__(self, folder: Path, config: CheckpointConfig, warn: Callable[[str], None]) -> None:
        """Read the values of an earlier process from `BEST`."""
        self._folder, self._config, self._warn = folder, config, warn
        self._values = self._read()
        self._lock = threading.Lock()  # `report` may run while the writing thread prunes
        self.reported = bool(self._values)
        """Whether any checkpoint has a value of ``keep_best``."""
        self.explained = False
        """Whether a warning said that no metric has that name."""

    def report(self, step: int, metrics: Mapping[str, float], saving: int | None) -> None:
        """Store the value of ``keep_best`` after `step`, if the metrics contain it.

        Args:
            step: Finished steps.
            metrics: Name -> value.
            saving: The step whose checkpoint is being written, if any.
        """
        name = self._config.keep_best
        if name is None:
            return
        if name not in metrics:
            self._explain(name, metrics)
            return
        value = metrics[name]
        if not math.isfinite(value):
            return
        with self._lock:
            self.reported = True
            self._values[step] = float(value)
            there = {step_of(path) for path in list_checkpoints(self._folder)}
            if step in there or step == saving:
                try:
                    self._write(there | {step})
                except OSError as error:
                    self._warn(
                        f"{self._folder / BEST} cannot be written: {error}; if the run is stopped "
                        f"now, the value of step {step} is forgotten"
                    )

    def _explain(self, name: str, metrics: Mapping[str, float]) -> None:
        """Warn once if the metrics have others of the same protocol, but not `name`."""
        source = name.rpartition(".")[0]
        known = sorted(other for other in metrics if other.rpartition(".")[0] == source)
        if known and not self.explained:
            self.explained = True
            self._warn(
                f"checkpoint.keep_best is {name}, but what is measured is called "
                f"{', '.join(known)}: no best checkpoint is kept"
            )

    def prune(self, newest: int) -> None:
        """Remove the checkpoints that the config does not keep.

        Checkpoints after `newest` belong to an abandoned branch of the run: they are not removed
        and do not count towards ``keep``.

        Args:
            newest: The step that was saved last.

        Raises:
            OSError: `BEST` cannot be written; nothing is removed then.
        """
        config = self._config
        with self._lock:
            there = {step_of(path) for path in list_checkpoints(self._folder)}
            steps = {step for step in there if step <= newest}
            best = None
            if config.keep_best is not None:
                self._values = {s: v for s, v in self._values.items() if s in steps or s > newest}
                best = self._best(steps)
                self._write(steps)
        for step in to_remove(sorted(steps), config.keep, config.keep_every_steps, best):
            remove(checkpoint_path(self._folder, step))

    def forget_after(self, step: int) -> None:
        """Drop the values of steps after `step`, from which the run resumes."""
        with self._lock:
            self._values = {s: value for s, value in self._values.items() if s <= step}

    def _best(self, steps: set[int]) -> int | None:
        values = {step: value for step, value in self._values.items() if step in steps}
        return best_step(values, self._config.best_is)

    def _write(self, steps: set[int]) -> None:
        values = {step: v for step, v in sorted(self._values.items()) if step in steps}
        best = best_step(values, self._config.best_is)
        if best is not None:
            content = {
                "metric": self._config.keep_best,
                "best_is": self._config.best_is,
                "step": best,
                "value": values[best],
                "values": {str(step): value for step, value in values.items()},
            }
            self._folder.mkdir(exist_ok=True)  # may run before the first save
            write_text(self._folder / BEST, json.dumps(content, indent=2) + "\n")

    def _read(self) -> dict[int, float]:
        """Return the values in best.json; none if it is for another metric or damaged."""
        if self._config.keep_best is None:
            return {}
        try:
            content = parse_json((self._folder / BEST).read_text(encoding="utf-8"))
            if content["metric"] == self._config.keep_best:
                return {int(step): float(value) for step, value in content["values"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._warn(f"{self._folder / BEST} is passed over: it is damaged ({error!r})")
        return {}
