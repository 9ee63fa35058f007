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
        self._start = start
        self._began = self._interval_began = time.perf_counter()
        self._interval_steps, self._interval_waited = 0, 0.0
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
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def step(self, output: StepOutput) -> None:
        """Take in one step.

        Raises:
            UserError: The loss of a step that is written down is not finite.
        """
        done = output.step + 1
        self._interval_steps += 1
        self._interval_waited += output.seconds["data"]
        first_or_last = done in (1, self._plan.total_steps)
        if not first_or_last and done % self._config.every_steps:
            return
        record = self._record(output, done)
        self._require_finite(record)
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            for name, value in record.items():
                if name not in ("step", "samples"):
                    self._tensorboard.add_scalar(name, value, done)
        self._show(record, done)
        self._interval_began = time.perf_counter()
        self._interval_steps, self._interval_waited = 0, 0.0

    def _record(self, output: StepOutput, done: int) -> Record:
        metrics = {name: float(value) for name, value in output.metrics.items()}
        now = time.perf_counter()
        seconds = max(now - self._interval_began, 1e-9)
        per_step = (now - self._began) / max(1, done - self._start)
        return {
            "step": done,
            "epoch": done * self._plan.batch_size / self._plan.dataset_size,
            "samples": done * self._plan.batch_size,
            **{name: v for name, v in metrics.items() if name == "loss" or not math.isnan(v)},
            "lr": output.lr,
            "grad_norm": float(output.grad_norm),
            "step_seconds": seconds / self._interval_steps,
            "data_wait_share": min(1.0, self._interval_waited / seconds),
            "samples_per_second": self._interval_steps * output.samples / seconds,
            "memory_gib": memory_gib(self._env),
            "eta_seconds": per_step * (self._plan.total_steps - done),
        }

    def _require_finite(self, record: Record) -> None:
        if not math.isfinite(record["loss"]):
            raise UserError(
                f"the loss is {record['loss']} at step {record['step']}; the checkpoints before it "
                "are untouched: lower optim.lr or set optim.clip_norm=1"
            )

    def _show(self, record: Record, done: int) -> None:
        status = (
            f"epoch {record['epoch']:.2f}  loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
            f"{record['samples_per_second']:.1f} samples/s  "
            f"data wait {100 * record['data_wait_share']:.1f} %"
        )
        self._console.line(
            f"step {done}/{self._plan.total_steps}  {status}  eta {duration(record['eta_seconds'])}"
        )
        self._console.advance("train", done, self._plan.total_steps, status)


def memory_gib(env: DistEnv) -> float:
    """Return this process's memory in GiB: the device's peak on CUDA, the resident set on CPU."""
    if env.device.type == "cuda":
        return torch.cuda.max_memory_allocated(env.device) / 2**30
    resident: int = psutil.Process().memory_info().rss
    return resident / 2**30
