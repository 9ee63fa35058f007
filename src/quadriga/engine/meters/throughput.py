"""Throughput of a run: samples, tokens and FLOPs per second, and shares of waiting time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch

from quadriga.distributed.environment import DistEnv
from quadriga.engine.build import build_on_meta
from quadriga.engine.meters.cost import measure
from quadriga.engine.meters.devices import device_name, peak_flops, uses_tf32
from quadriga.engine.run_config import RunConfig
from quadriga.engine.tasks import examples
from quadriga.errors import UserError


@final
@dataclass(frozen=True)
class Work:
    """The FLOPs and tokens of a sample, and the peak rate of the run's devices."""

    flops_per_sample: float | None = None
    """Model FLOPs of the forward and the backward pass, without recomputation."""
    tokens_per_sample: int | None = None
    peak_flops: float | None = None
    """Peak FLOP/s of all ranks together; None for unknown devices."""


def measure_work(config: RunConfig, env: DistEnv, say: Callable[[str], None]) -> Work:
    """Measure the FLOPs of a sample on the meta device; a large model takes a second, no memory.

    Args:
        config: The run.
        env: This process among the run's.
        say: Called with one line for each value that cannot be determined.
    """
    objective = build_on_meta(config)
    flops: float | None = None
    try:
        costs = [(measure(objective, e), n) for e, n in examples(config, torch.device("meta"))]
        flops = sum(cost.model_flops * often for cost, often in costs)
        flops /= sum(cost.samples * often for cost, often in costs)
    except (NotImplementedError, RuntimeError, UserError) as error:
        reason = str(error).partition("\n")[0]
        say(f"operations per sample: unknown, the meta device cannot run the model: {reason}")
    name = device_name(env.device)
    peak = peak_flops(name, getattr(torch, config.train.precision), uses_tf32())
    if peak is None:
        say(f"model FLOP/s utilisation: unknown device {name}")
    return Work(
        flops_per_sample=flops,
        tokens_per_sample=objective.tokens_per_sample,
        peak_flops=None if peak is None else peak * env.world_size,
    )


@final
class Interval:
    """Sums of the steps between two records."""

    def __init__(self, work: Work, now: float) -> None:
        """Begin at a time.

        Args:
            work: The FLOPs and tokens of a sample.
            now: In seconds, on any clock.
        """
        self._work = work
        self.restart(now)

    def restart(self, now: float) -> None:
        """Reset all sums and begin at `now`."""
        self._began, self._steps, self._samples = now, 0, 0
        self._waited = self._stalled = 0.0
        self._exchanged: float | None = None
        self._idle: float | None = None

    def add(self, samples: int, seconds: Mapping[str, float]) -> None:
        """Add a step: its samples over all ranks, and this rank's seconds by phase."""
        self._steps += 1
        self._samples += samples
        self._waited += seconds.get("data", 0.0)
        if "communication" in seconds:
            self._exchanged = (self._exchanged or 0.0) + seconds["communication"]
        if "pipeline" in seconds:
            self._idle = (self._idle or 0.0) + seconds["pipeline"]

    def add_stall(self, seconds: float) -> None:
        """Add seconds that training waited for a checkpoint."""
        self._stalled += seconds

    def fields(self, now: float) -> dict[str, float]:
        """Return the fields of a record for the interval until `now`, which has at least a step."""
        seconds = max(now - self._began, 1e-9)
        rate = self._samples / seconds

        def share(part: float) -> float:
            return min(1.0, part / seconds)

        fields = {
            "step_seconds": seconds / self._steps,
            "data_wait_share": share(self._waited),
            "checkpoint_stall_share": share(self._stalled),
            "samples_per_second": rate,
        }
        if self._exchanged is not None:
            fields["communication_share"] = share(self._exchanged)
        if self._idle is not None:
            fields["pipeline_wait_share"] = share(self._idle)
        if self._work.tokens_per_sample is not None:
            fields["tokens_per_second"] = rate * self._work.tokens_per_sample
        if self._work.flops_per_sample is not None:
            fields["flops_per_second"] = rate * self._work.flops_per_sample
            if self._work.peak_flops is not None:
                fields["mfu"] = fields["flops_per_second"] / self._work.peak_flops
        return fields
