"""The schedules, one file each."""

from quadriga.errors import UserError, did_you_mean
from quadriga.pipeline.schedules.actions import Schedule
from quadriga.pipeline.schedules.flushed import GPipe, OneFOneB, Sequential
from quadriga.pipeline.schedules.two_bw import TwoBW

SCHEDULES: dict[str, type[Schedule]] = {
    schedule.name: schedule for schedule in (Sequential, GPipe, OneFOneB, TwoBW)
}
"""Name on the command line -> schedule."""


def make_schedule(name: str, flushed_steps: int = 0) -> Schedule:
    """Make a schedule by its name.

    Args:
        name: A key of `SCHEDULES`.
        flushed_steps: Steps at the start that 2bw makes without delay; others ignore it.

    Raises:
        UserError: No schedule has that name.
    """
    if name == TwoBW.name:
        return TwoBW(flushed_steps)
    if name not in SCHEDULES:
        names = ", ".join(SCHEDULES)
        hint = did_you_mean(name, list(SCHEDULES))
        raise UserError(f"executor.schedule must be one of {names}, but is {name}{hint}")
    return SCHEDULES[name]()


__all__ = ["SCHEDULES", "GPipe", "OneFOneB", "Sequential", "TwoBW", "make_schedule"]
