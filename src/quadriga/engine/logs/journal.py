"""The journal of a run: writes steps to metrics.jsonl, events.jsonl, loggers and console."""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Self, final

import psutil
import torch
from torch import Tensor

from quadriga.contracts import StepOutput
from quadriga.distributed.environment import DistEnv
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import metrics_at, pictures_at
from quadriga.engine.logs.times import TimeLog
from quadriga.engine.meters.throughput import Interval, Work
from quadriga.engine.run_config import HealthConfig, LogConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.errors import UserError
from quadriga.formatting import duration
from quadriga.loggers import LoggerSet


@final
class Events:
    """Appends events to events.jsonl. Resumption removes none of them."""

    def __init__(self, path: Path, active: bool = True) -> None:
        """Store the path; the first event creates the file.

        Args:
            path: events.jsonl of the run directory.
            active: Whether this rank writes; only rank 0 does.
        """
        self._path, self._active = path, active

    def write(self, event: str, step: int, **plain: str | float | bool | list[int] | None) -> None:
        """Append an event.

        Args:
            event: Name of the event: ``loss spike``, ``skipped step``.
            step: Finished optimizer steps, as in metrics.jsonl.
            plain: Further fields.

        Raises:
            OSError: It cannot be written.
        """
        if not self._active:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"event": event, "step": step, "time": now, **plain})
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")


SMALLEST_DEVIATION = 1e-3
"""Lower limit of the median deviation as a fraction of the median, so that rounding noise of a
constant loss is not a spike."""


@final
@dataclass(frozen=True)
class Spike:
    """A loss far above the recent ones."""

    step: int
    """Finished optimizer steps."""
    loss: float
    median: float
    """Median of the previous losses."""
    deviation: float
    """Median absolute deviation of the previous losses."""
    losses: int
    """Number of previous losses."""

    def __str__(self) -> str:
        """Return the warning as a sentence."""
        return (
            f"the loss of step {self.step} is {self.loss:.4g}, a spike: the median of the "
            f"{self.losses} losses before it is {self.median:.4g}, their median deviation "
            f"{self.deviation:.2g}"
        )


@final
class SpikeDetector:
    """Compares each loss with the median and median absolute deviation of the previous losses.

    Both are robust to a few outliers, so that a spike does not hide the next one. Consecutive
    losses above the limit are one spike.
    """

    def __init__(self, config: HealthConfig) -> None:
        """Read ``window`` and ``spike_factor``."""
        self._factor = config.spike_factor
        self._needed = max(2, config.window // 4)
        self._before: deque[float] = deque(maxlen=config.window)
        self._above = False

    def spike(self, step: int, loss: float) -> Spike | None:
        """Add the next loss; return the spike if it starts one.

        Args:
            step: Finished optimizer steps.
            loss: The step's loss; non-finite ones are ignored, `Health` handles them.
        """
        if self._factor is None or not math.isfinite(loss):
            return None
        found = None
        if len(self._before) >= self._needed:
            median = statistics.median(self._before)
            deviation = statistics.median(abs(value - median) for value in self._before)
            deviation = max(deviation, SMALLEST_DEVIATION * abs(median))
            above = loss > median + self._factor * deviation
            if above and not self._above:
                found = Spike(step, loss, median, deviation, len(self._before))
            self._above = above
        self._before.append(loss)
        return found

    def see(self, step: int, loss: float) -> str | None:
        """Add the next loss; return the warning if it starts a spike."""
        found = self.spike(step, loss)
        return None if found is None else str(found)


@final
class CollapseDetector:
    """Watches the metrics of an objective that have a healthy range (`Objective.healthy`)."""

    def __init__(self, healthy: Mapping[str, tuple[float, float]], steps: int | None) -> None:
        """Watch from now on.

        Args:
            healthy: Metric -> its lowest and highest value.
            steps: How long a metric is outside until it is reported; None: never.
        """
        self._healthy, self._steps = healthy, steps
        self._since: dict[str, int] = {}

    def see(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Return a warning for each metric that is outside for long enough; once until it is back.

        Args:
            step: Finished optimizer steps.
            metrics: Those of the step.
        """
        found = []
        for name, (low, high) in self._healthy.items():
            value = metrics.get(name)
            if value is None or low <= value <= high:
                self._since.pop(name, None)
                continue
            since = self._since.setdefault(name, step)
            if self._steps is not None and 0 <= since <= step - self._steps:
                self._since[name] = -1
                found.append(
                    f"{name} is {value:.3g} at step {step}, outside of {low:g} to {high:g} since "
                    f"step {since}: the outputs have collapsed, and runs seldom recover from that; "
                    "stop it and lower the learning rate, or see the method's page in docs/methods"
                )
        return found


Record = dict[str, Any]


def log_evaluation(
    directory: RunDirectory, plan: RunPlan, step: int, loggers: Callable[[], LoggerSet]
) -> None:
    """Log what the run's own protocols found of a step; call on rank 0 only.

    Their metrics become a line of metrics.jsonl and go to the loggers, as do their pictures;
    nothing is logged twice.

    Args:
        directory: The run's directory.
        plan: The run's numbers.
        step: Finished steps.
        loggers: Called where there is something to log.

    Raises:
        UserError: metrics.jsonl cannot be written.
    """
    found, samples = metrics_at(directory.report, step), plan.samples(step)
    if not found:
        return
    with directory.writing(), directory.metrics.open("a+", encoding="utf-8") as stream:
        stream.seek(0)
        there = [line for line in stream if line.startswith(f'{{"step": {step},')]
        values = {
            name: value
            for name, value in found.items()
            if math.isfinite(value) and not any(f'"{name}": ' in line for line in there)
        }
        if not values:
            return
        epoch = samples / plan.dataset_size
        record = {"step": step, "epoch": epoch, "samples": samples, **values}
        stream.write(json.dumps(record) + "\n")
    chosen = loggers()
    chosen.log(values, step)
    for name, path in pictures_at(directory.report, step).items():
        chosen.picture(name, path, step)


class Journal:
    """Logs every ``every_steps``-th step, the first and the last, on rank 0.

    A record holds the values of its own step (not of a window), so the metrics of a resumed run
    equal those of an uninterrupted run, except for the times.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: LogConfig,
        plan: RunPlan,
        env: DistEnv,
        console: Console,
        start: int,
        work: Callable[[], Work] | None = None,
        loggers: LoggerSet | None = None,
        health: HealthConfig | None = None,
        healthy: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    ) -> None:
        """Continue the files after `start` finished steps.

        Args:
            directory: Where the files are.
            config: Which steps are logged.
            plan: The plan of the run's steps.
            env: This rank; rank 0 writes.
            console: Prints the logged steps.
            start: Finished steps.
            work: Measures the operations per sample; called after the first record, because it can
                take as long as the first step. Unknown by default.
            loggers: Opened loggers, closed with the journal; none by default.
            health: Limits of a loss spike; `HealthConfig` defaults if None.
            healthy: `Objective.healthy`.
        """
        self._config, self._plan, self._env, self._console = config, plan, env, console
        self._start, self._folder, self._directory = start, directory.path, directory
        self._loggers = loggers or LoggerSet(console.warn)
        self._began = time.perf_counter()
        self._work = work
        self._interval = Interval(Work(), self._began)
        self._status = ""
        self._path = directory.metrics
        self._file = self._path.open("a", encoding="utf-8") if env.is_main else None
        self._events = Events(directory.events, env.is_main)
        health = health or HealthConfig()
        self._spikes = SpikeDetector(health)
        self._collapses = CollapseDetector(healthy, health.collapse_steps)
        self._unseen: list[tuple[int, Tensor]] = []
        self._times = TimeLog(
            directory.path,
            active=env.is_main,
            start=start,
            total_steps=plan.total_steps,
            batch_size=plan.batch_size,
            ranks=env.world_size,
        )

    def __enter__(self) -> Self:
        """Return itself; `__exit__` closes the files."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Check the last losses for spikes and close the files."""
        self._times.end(kind)
        try:
            self._loggers.close()
            self._look_for_spikes()
            if self._file is not None:
                self._file.close()
        except OSError as problem:
            # A full disk fails again at closing: keep the first error.
            if error is None:
                raise self._unwritable(problem) from problem

    def step(self, output: StepOutput) -> None:
        """Add one step.

        Raises:
            UserError: A file cannot be written.
        """
        done = output.step + 1
        self._interval.add(output.samples, output.seconds)
        self._times.advance(done)
        if self._env.is_main:
            self._unseen.append((done, output.metrics["loss"].detach()))
            if output.skipped:
                self._event("skipped step", done)
        first_or_last = done in (1, self._plan.total_steps)
        if not first_or_last and done % self._config.every_steps:
            self._console.advance("train", done, self._plan.total_steps, self._status)
            return
        record = self._record(output, done)
        self._look_for_spikes()
        if self._env.is_main:
            for warning in self._collapses.see(done, record):
                self._console.warn(warning)
                self._event("collapse", done)
        try:
            self._write(record, done)
        except OSError as problem:
            raise self._unwritable(problem) from problem
        self._show(record, done)
        self._times.steps(done, record["memory_peak_gib"])
        if self._work is not None:
            self._measure(self._work)
        self._interval.restart(time.perf_counter())

    def _measure(self, measured: Callable[[], Work]) -> None:
        """Measure the operations per sample, whose time counts for no step."""
        began = time.perf_counter()
        work, self._work = measured(), None
        self._times.know(work.flops_per_sample)
        self._interval = Interval(work, began)
        self._began += time.perf_counter() - began

    def evaluated(self, step: int) -> None:
        """Log what the run's own protocols found of a step; see `log_evaluation`."""
        if self._env.is_main:
            log_evaluation(self._directory, self._plan, step, lambda: self._loggers)

    def add_stall(self, seconds: float) -> None:
        """Add seconds that training waited for a checkpoint."""
        self._interval.add_stall(seconds)

    def _event(self, event: str, done: int, **plain: float) -> None:
        try:
            self._events.write(event, done, **plain)
        except OSError as problem:
            raise self._unwritable(problem) from problem

    def _look_for_spikes(self) -> None:
        """Check all losses since the last call; on a GPU this synchronises once for all."""
        if not self._unseen:
            return
        unseen, self._unseen = self._unseen, []
        losses = torch.stack([loss.to(torch.float64) for _, loss in unseen]).tolist()
        for (done, _), loss in zip(unseen, losses, strict=True):
            spike = self._spikes.spike(done, loss)
            if spike is not None:
                self._console.warn(str(spike))
                self._event(
                    "loss spike", done, loss=loss, median=spike.median, deviation=spike.deviation
                )

    def _write(self, record: Record, done: int) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            self._check_place(self._file)
        self._loggers.log({k: v for k, v in record.items() if k not in ("step", "skipped")}, done)

    def _check_place(self, file: IO[str]) -> None:
        """Check that the open file is still the one in the work directory.

        A file that is deleted or renamed can be written for as long as it is open.

        Raises:
            UserError: It is not.
        """
        try:
            is_there = os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            is_there = False
        if not is_there:
            raise self._gone()

    def _gone(self) -> UserError:
        return UserError(
            f"work dir {self._folder} was deleted, renamed or replaced during the run: "
            f"{self._path.name} is not there any more; put the directory back, then --resume"
        )

    def _unwritable(self, problem: OSError) -> UserError:
        if not self._path.exists():
            return self._gone()
        return UserError(
            f"metrics.jsonl or events.jsonl cannot be written in {self._folder}: "
            f"{problem.strerror}; make room, then --resume"
        )

    def _record(self, output: StepOutput, done: int) -> Record:
        metrics = {name: float(value) for name, value in output.metrics.items()}
        now = time.perf_counter()
        per_step = (now - self._began) / max(1, done - self._start)
        return {
            "step": done,
            "epoch": self._plan.samples(done) / self._plan.dataset_size,
            "samples": self._plan.samples(done),
            **{name: value for name, value in metrics.items() if math.isfinite(value)},
            "lr": output.lr,
            **({"grad_norm": norm} if math.isfinite(norm := float(output.grad_norm)) else {}),
            **({"skipped": True} if output.skipped else {}),
            **self._interval.fields(now),
            "memory_gib": memory_gib(self._env),
            "memory_peak_gib": memory_peak_gib(self._env),
            "eta_seconds": per_step * (self._plan.total_steps - done),
        }

    def _show(self, record: Record, done: int) -> None:
        loss = f"loss {record['loss']:.4f}" if "loss" in record else "no finite loss"
        status = (
            f"epoch {record['epoch']:.2f}  {loss}  lr {record['lr']:.2e}  "
            f"{record['samples_per_second']:.1f} samples/s  "
            f"data wait {100 * record['data_wait_share']:.1f} %"
        )
        if "mfu" in record:
            status += f"  mfu {100 * record['mfu']:.1f} %"
        self._console.line(
            f"step {done}/{self._plan.total_steps}  {status}  eta {duration(record['eta_seconds'])}"
        )
        self._console.advance("train", done, self._plan.total_steps, status)
        self._status = status


def memory_gib(env: DistEnv) -> float:
    """Return memory in GiB: the peak of allocated tensors on CUDA, the resident set on the CPU."""
    if env.device.type == "cuda":
        return torch.cuda.max_memory_allocated(env.device) / 2**30
    resident: int = psutil.Process().memory_info().rss
    return resident / 2**30


def memory_peak_gib(env: DistEnv) -> float:
    """Return this process's peak memory in GiB.

    On CUDA the memory that PyTorch reserved, including its cache; on the CPU the resident set.
    """
    if env.device.type == "cuda":
        return torch.cuda.max_memory_reserved(env.device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The kernel updates the peak only occasionally, so the current value may exceed it.
    return max(peak / (2**30 if sys.platform == "darwin" else 2**20), memory_gib(env))
