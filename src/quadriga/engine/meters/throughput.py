"""How fast a run is, and where its time goes: samples, tokens and operations per second."""

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


@final
@dataclass(frozen=True)
class Work:
    """What a sample costs, and what the run's devices could do."""

    flops_per_sample: float | None = None
    """Model FLOPs of the forward and the backward pass: nothing that is computed twice."""
    tokens_per_sample: int | None = None
    peak_flops: float | None = None
    """Peak FLOP/s of all ranks together; None for devices that are not in the table."""


def measure_work(config: RunConfig, env: DistEnv, say: Callable[[str], None]) -> Work:
    """Work out what a sample costs on the meta device; a second for a large model, no memory.

    Args:
        config: The run.
        env: Where it runs.
        say: Told what cannot be known.
    """
    objective = build_on_meta(config)
    flops: float | None = None
    try:
        costs = [(measure(objective, e), n) for e, n in examples(config, torch.device("meta"))]
        flops = sum(cost.model_flops * often for cost, often in costs)
        flops /= sum(cost.samples * often for cost, often in costs)
    except (NotImplementedError, RuntimeError) as error:
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
    """Adds up the steps between two records."""

    def __init__(self, work: Work, now: float) -> None:
        """Begin at a time.

        Args:
            work: What a sample costs.
            now: In seconds, on any clock.
        """
        self._work = work
        self.restart(now)

    def restart(self, now: float) -> None:
        """Begin anew."""
        self._began, self._steps, self._samples = now, 0, 0
        self._waited = self._stalled = 0.0
        self._exchanged: float | None = None
        self._idle: float | None = None

    def add(self, samples: int, seconds: Mapping[str, float]) -> None:
        """Take a step: its samples over all ranks and this rank's seconds by phase."""
        self._steps += 1
        self._samples += samples
        self._waited += seconds.get("data", 0.0)
        if "communication" in seconds:
            self._exchanged = (self._exchanged or 0.0) + seconds["communication"]
        if "pipeline" in seconds:
            self._idle = (self._idle or 0.0) + seconds["pipeline"]

    def add_stall(self, seconds: float) -> None:
        """Take the time that training stood still for a checkpoint."""
        self._stalled += seconds

    def fields(self, now: float) -> dict[str, float]:
        """Return the fields of a record on the interval until now; at least one step is in it."""
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
