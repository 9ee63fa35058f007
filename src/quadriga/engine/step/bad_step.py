"""Handling of a non-finite loss or gradient, the same on every rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, final

from quadriga.engine.run_config import HealthConfig
from quadriga.errors import UserError
from quadriga.files import parse_json, write_text


@dataclass(frozen=True)
class BadStep:
    """A step whose loss or gradient is not finite, before its update."""

    step: int
    """The step, from 0."""
    what: str
    """"loss" or "gradient norm"."""
    value: float
    """Its value: not a number, or infinite."""
    loss_scale: float
    """Factor of the loss in the backward pass."""
    updates: int
    """Number of updates before it, which schedules follow."""

    def __str__(self) -> str:
        """Return a clause such as "the loss is nan at step 12"."""
        return f"the {self.what} is {self.value} at step {self.step + 1}"


class RollBack(Exception):
    """The run must return to its last checkpoint; every rank raises it at the same step."""

    def __init__(self, bad: BadStep) -> None:
        """Store the bad step."""
        super().__init__(str(bad))
        self.bad = bad


def stop_at(bad: BadStep, more: str = "", others: str = "") -> NoReturn:
    """End the run at a bad step.

    Args:
        bad: The step.
        more: Further facts, appended to the first part of the message.
        others: Further remedies, in addition to the learning rate and the clipping norm.

    Raises:
        UserError: Always, on every rank.
    """
    error = UserError(
        f"{bad}; its update was not made and the checkpoints before it are untouched{more}: lower "
        f"optim.lr or set optim.clip_norm=1 in a new work directory{others}"
    )
    error.on_every_rank = True
    raise error


@final
class SkippedSteps:
    """The steps without an update, stored in the run's directory for resumption."""

    def __init__(self, path: Path) -> None:
        """Read `path`, if it exists.

        Raises:
            UserError: The file is damaged.
        """
        self._path = path
        self.ranges: list[tuple[int, int]] = []
        """First and last step, from 0, of each range."""
        self.tried: list[int] = []
        """Steps that have caused a rollback."""
        if path.exists():
            try:
                saved = parse_json(path.read_text(encoding="utf-8"))
                self.ranges = [(int(first), int(last)) for first, last in saved["ranges"]]
                self.tried = [int(step) for step in saved["tried"]]
            except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
                raise UserError(
                    f"{path} is damaged ({error}); it lists the steps that the run leaves out: "
                    'restore it, or write {"ranges": [], "tried": []}'
                ) from error

    def __contains__(self, step: object) -> bool:
        """Return whether a step has no update."""
        return any(first <= step <= last for first, last in self.ranges)  # type: ignore[operator]

    def save(self) -> None:
        """Write the file; only rank 0 calls it."""
        write_text(self._path, json.dumps({"ranges": self.ranges, "tried": self.tried}) + "\n")


@final
class Health:
    """Applies ``health.non_finite`` to bad steps."""

    def __init__(
        self,
        config: HealthConfig,
        skipped_steps: SkippedSteps,
        record: Callable[[BadStep], str],
        tell: Callable[[BadStep, str], None],
    ) -> None:
        """Start without bad steps.

        Args:
            config: The policy.
            skipped_steps: Steps without an update; a rollback extends it.
            record: Writes the replay file of a bad step and returns its path; every rank calls
                it.
            tell: Called with a bad step and the warning about it.
        """
        self._config, self._skipped_steps = config, skipped_steps
        self._record, self._tell = record, tell
        self._bad: list[int] = []

    def __call__(self, bad: BadStep) -> None:
        """Handle a bad step; if this returns, the step's update is skipped.

        Raises:
            UserError: The run ends.
            RollBack: The run returns to its last checkpoint.
        """
        where = self._record(bad)
        more = f" (quadriga replay {where} makes this step alone)" if where else ""
        self._bad = [s for s in self._bad if bad.step - s <= self._config.window] + [bad.step]
        if self._config.non_finite == "stop":
            stop_at(bad, more, ", or --resume with health.non_finite=skip or rollback")
        if len(self._bad) > self._config.max_bad_steps:
            number = f"; it is bad step number {len(self._bad)} (health.max_bad_steps)"
            stop_at(bad, more + number, ", or raise health.max_bad_steps")
        if self._config.non_finite == "rollback":
            raise RollBack(bad)
        self._tell(bad, f"{bad}: its update is left out{more}")
