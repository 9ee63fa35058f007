"""Profile of a few steps: a trace for each rank, and the ten most expensive operations."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import torch
from torch.profiler import ProfilerActivity, profile

from quadriga.distributed.environment import DistEnv
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import WARMUP, LogConfig, profiled_steps
from quadriga.errors import UserError
from quadriga.files import write_text
from quadriga.formatting import duration

TOP = 10
"""Operations in the table."""


def check_profile(config: LogConfig, total_steps: int) -> None:
    """Check that the run is long enough for the steps to profile.

    Raises:
        UserError: It is too short.
    """
    steps = profiled_steps(config.profile, 0) if config.profile is not None else None
    if steps is not None and steps.stop - 1 > total_steps:
        note = f", with {WARMUP} steps before them" if "-" not in str(config.profile) else ""
        raise UserError(
            f"log.profile must be among the run's {total_steps} steps, but is "
            f"{config.profile}{note}"
        )


@final
class Profiler:
    """Profiles some steps on every rank and writes the results to a folder.

    Files: rank_00000.json.gz (chrome://tracing, ui.perfetto.dev) for each rank, and top_ten.txt.
    """

    def __init__(
        self, config: LogConfig, directory: RunDirectory, env: DistEnv, console: Console, start: int
    ) -> None:
        """Prepare to profile the steps of ``log.profile``.

        Args:
            config: Which steps.
            directory: The run directory; the folder is ``profile`` in it.
            env: This rank.
            console: Prints the table on rank 0.
            start: Finished steps.
        """
        steps = profiled_steps(config.profile, start) if config.profile is not None else None
        steps = steps or range(0)
        # A resumed run has finished some or all of them.
        self._steps = range(max(steps.start, start + 1), steps.stop)
        self._folder: Path = directory.path / "profile"
        self._env, self._console, self._done = env, console, start
        self._profile: Any = None

    def __enter__(self) -> Self:
        """Start profiling if the next step is the first one to profile."""
        self._start_if_due()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; if the run ends during the profile, write the steps so far."""
        if self._profile is not None:
            self._finish()

    def step(self) -> None:
        """Count a finished step, and start or stop profiling."""
        self._done += 1
        if self._profile is not None and self._done + 1 >= self._steps.stop:
            self._finish()
        self._start_if_due()

    def _start_if_due(self) -> None:
        if len(self._steps) and self._done + 1 == self._steps.start:
            activities = [ProfilerActivity.CPU]
            if self._env.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, acc_events=True)
            self._profile.start()

    def _finish(self) -> None:
        if self._env.device.type == "cuda":
            torch.cuda.synchronize(self._env.device)  # the last step's kernels belong to it
        recorded, self._profile = self._profile, None
        recorded.stop()
        path = self._folder / f"rank_{self._env.rank:05d}.json.gz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}")  # keeps the suffix .gz, so it is compressed
            recorded.export_chrome_trace(str(beside))
            os.replace(beside, path)
            if self._env.is_main:
                table = top_table(recorded.key_averages(), self._env.device.type == "cuda")
                write_text(self._folder / "top_ten.txt", f"{table}\n")
                self._console.say(f"{table}\nprofile: {self._folder}")
        except OSError as problem:
            self._console.warn(f"the profile cannot be written: {problem.strerror or problem}")


def top_table(events: Any, on_device: bool) -> str:
    """Return a table of the operations with the largest self time, which excludes callees.

    Args:
        events: ``key_averages()`` of a profile.
        on_device: Whether to use the device's time instead of the CPU's.
    """
    field = "self_device_time_total" if on_device else "self_cpu_time_total"
    own = [e for e in events if e.device_type.name == "CPU" and not e.is_user_annotation]
    ordered = sorted(own, key=lambda event: -float(getattr(event, field)))
    total = sum(float(getattr(event, field)) for event in own) or 1.0
    rows = [
        (e.key[:60], str(e.count), _time(getattr(e, field)), f"{getattr(e, field) / total:.1%}")
        for e in ordered[:TOP]
    ]
    head = ("operation", "calls", f"self time ({'device' if on_device else 'CPU'})", "share")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def _time(microseconds: float) -> str:
    return duration(microseconds / 1e6) if microseconds >= 1e4 else f"{microseconds / 1e3:.3f} ms"
