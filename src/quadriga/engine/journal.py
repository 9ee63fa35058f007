"""The journal of a run: metrics.jsonl, TensorBoard and the console, from the step outputs."""

from __future__ import annotations

import json
import math
import time
from types import TracebackType
from typing import Any, Self

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter

from quadriga.contracts import StepOutput
from quadriga.distributed.environment import DistEnv
from quadriga.engine.arithmetic import RunPlan
from quadriga.engine.console import Console
from quadriga.engine.run_config import LogConfig
from quadriga.engine.run_directory import RunDirectory
from quadriga.engine.units import duration
from quadriga.errors import UserError

Record = dict[str, Any]


class Journal:
    """Writes down every ``every_steps``-th step, the first and the last, on rank 0.

    A record holds the values of its own step (not of a window), so the file of a resumed run
    equals that of a run that never stopped, but for the times.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: LogConfig,
        plan: RunPlan,
        env: DistEnv,
        console: Console,
        start: int,
    ) -> None:
        """Continue the files after `start` finished steps."""
        self._config, self._plan, self._env, self._console = config, plan, env, console
        self._start, self._folder = start, directory.path
        self._began = self._interval_began = time.perf_counter()
        self._interval_steps, self._interval_waited = 0, 0.0
        self._status = ""
        self._file = directory.metrics.open("a", encoding="utf-8") if env.is_main else None
        self._tensorboard: Any = None
        if env.is_main and config.tensorboard:
            folder = str(directory.path / "tensorboard")
            self._tensorboard = SummaryWriter(folder, purge_step=start + 1)

    def __enter__(self) -> Self:
        """Use as a context manager: the files are closed at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        try:
            if self._file is not None:
                self._file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
        except OSError as problem:
            # A full disk refuses once more what it refused before: the first error is the news.
            if error is None:
                raise self._unwritable(problem) from problem

    def step(self, output: StepOutput) -> None:
        """Take in one step.

        Raises:
            UserError: The disk is full.
        """
        done = output.step + 1
        self._interval_steps += 1
        self._interval_waited += output.seconds["data"]
        first_or_last = done in (1, self._plan.total_steps)
        if not first_or_last and done % self._config.every_steps:
            self._console.advance("train", done, self._plan.total_steps, self._status)
            return
        record = self._record(output, done)
        try:
            self._write(record, done)
        except OSError as problem:
            raise self._unwritable(problem) from problem
        self._show(record, done)
        self._interval_began = time.perf_counter()
        self._interval_steps, self._interval_waited = 0, 0.0

    def _write(self, record: Record, done: int) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            for name, value in record.items():
                if name not in ("step", "samples"):
                    self._tensorboard.add_scalar(name, value, done)

    def _unwritable(self, problem: OSError) -> UserError:
        return UserError(
            f"metrics.jsonl and tensorboard cannot be written in {self._folder}: "
            f"{problem.strerror}; make room, then --resume"
        )

    def _record(self, output: StepOutput, done: int) -> Record:
        metrics = {name: float(value) for name, value in output.metrics.items()}
        now = time.perf_counter()
        seconds = max(now - self._interval_began, 1e-9)
        per_step = (now - self._began) / max(1, done - self._start)
        return {
            "step": done,
            "epoch": done * self._plan.batch_size / self._plan.dataset_size,
            "samples": done * self._plan.batch_size,
            **{name: value for name, value in metrics.items() if math.isfinite(value)},
            "lr": output.lr,
            **({"grad_norm": norm} if math.isfinite(norm := float(output.grad_norm)) else {}),
            **({"skipped": True} if output.skipped else {}),
            "step_seconds": seconds / self._interval_steps,
            "data_wait_share": min(1.0, self._interval_waited / seconds),
            "samples_per_second": self._interval_steps * output.samples / seconds,
            "memory_gib": memory_gib(self._env),
            "eta_seconds": per_step * (self._plan.total_steps - done),
        }

    def _show(self, record: Record, done: int) -> None:
        loss = f"loss {record['loss']:.4f}" if "loss" in record else "no finite loss"
        status = (
            f"epoch {record['epoch']:.2f}  {loss}  lr {record['lr']:.2e}  "
            f"{record['samples_per_second']:.1f} samples/s  "
            f"data wait {100 * record['data_wait_share']:.1f} %"
        )
        self._console.line(
            f"step {done}/{self._plan.total_steps}  {status}  eta {duration(record['eta_seconds'])}"
        )
        self._console.advance("train", done, self._plan.total_steps, status)
        self._status = status


def memory_gib(env: DistEnv) -> float:
    """Return this process's memory in GiB: the device's peak on CUDA, the resident set on CPU."""
    if env.device.type == "cuda":
        return torch.cuda.max_memory_allocated(env.device) / 2**30
    resident: int = psutil.Process().memory_info().rss
    return resident / 2**30
