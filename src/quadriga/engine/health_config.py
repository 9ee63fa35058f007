"""What happens when training goes wrong, as values."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quadriga.config.base import Config


class HealthConfig(Config):
    """What happens when training goes wrong."""

    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """What follows a loss or gradient that is not finite: the run stops before the update; the
    update is left out; or the run goes back to the last checkpoint, and if it happens again,
    leaves out the updates from there to the bad step."""
    max_bad_steps: int = Field(10, ge=1)
    """The run stops after so many bad steps without `window` good ones between."""
    window: int = Field(100, ge=8)
    """Steps that a loss is compared with, and after which bad steps are forgotten."""
    spike_factor: float | None = Field(8.0, gt=1)
    """A loss that exceeds the window's median by so many median deviations is reported as a
    spike; none for no reports."""
    hang_factor: float | None = Field(20.0, gt=1)
    """A step that takes so many times the median of the steps before it is a hang; none to wait
    for ever."""
    hang_seconds: float = Field(300.0, gt=0)
    """A step that is shorter than this is never a hang."""
