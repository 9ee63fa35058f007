"""The base class of the pipelined executors: a rank's stages, their updates, their state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist

from quadriga.contracts import Batch, Executor, MicroBatch, Objective, Splittable, StepOutput
from quadriga.distributed.collectives import copy_whole
from quadriga.distributed.environment import DistEnv
from quadriga.distributed.mesh import make_ranks
from quadriga.engine.build import Fill, build_on_meta, give_memory
from quadriga.engine.meters.phase_timer import PhaseTimer
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.step.bad_step import BadStep, stop_at
from quadriga.engine.step.blocks import apply_recompute, compile_blocks
from quadriga.engine.step.sharding import build_to_evaluate
from quadriga.engine.step.state import (
    copy_state,
    without_unbegun,
)
from quadriga.pipeline.config import pipeline_of
from quadriga.pipeline.runtime.partition import Part, cut, make_groups, shared_parameters
from quadriga.pipeline.runtime.updates import Outcome, Updates
from quadriga.pipeline.runtime.versions import WeightVersions
from quadriga.pipeline.topology import make_topology


class StagedExecutor(Executor):
    """Holds this rank's part of the model; subclasses decide the order of the passes."""

    def __init__(
        self,
        objective: Objective,
        config: RunConfig,
        plan: RunPlan,
        env: DistEnv,
        *,
        versions: int = 1,
        fill: Fill | None = None,
        phase_timer: PhaseTimer | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
        asked_to_save: Callable[[int], bool] = lambda step: False,
        on_bad_step: Callable[[BadStep], None] = stop_at,
        skipped_steps: Container[int] = (),
    ) -> None:
        """Cut an objective and keep this rank's part of it; collective.

        Args:
            objective: Initialised and on the device, or on the meta device: then this rank's part
                (with `fill`, all of it) is allocated and initialised from ``config.seed``.
            config: The run's config.
            plan: The run's plan.
            env: This process's rank, device and world size.
            versions: Number of weight versions to hold, 1 or 2.
            fill: Copies initial weights into the whole objective.
            phase_timer: Receives the phase that this rank enters.
            asked_to_stop: Returns whether this rank received a stop signal.
            asked_to_save: Returns whether this rank asks for a checkpoint after a step.
            on_bad_step: Called on every rank when a loss or gradient is not finite; it raises, or
                returns to skip the update.
            skipped_steps: Steps that make no update.

        Raises:
            UserError: The stages, ranks and micro-batches do not fit each other.
        """
        self.config, self.plan, self.env = config, plan, env
        self.phase_timer = phase_timer or PhaseTimer()
        self._asked_to_stop, self._asked_to_save = asked_to_stop, asked_to_save
        self._on_bad_step = on_bad_step
        self.ranks = self._all = make_ranks(env, shard=env.world_size)
        self.pipeline, depth = pipeline_of(config), cast(Splittable, objective).depth
        self.topology = make_topology(self.pipeline, depth, env.world_size)
        if fill is not None:
            give_memory(objective, env.device, config.seed)
            fill(objective)
        everything = {n: p for n, p in objective.named_parameters() if p.requires_grad}
        parts = self._parts(objective)
        ties = shared_parameters(parts)
        self.groups = make_groups(self.topology, env, sorted(set(ties.values())))
        part = parts[self.groups.stage].materialise(config.seed, env.device)
        self.versions = WeightVersions(part, versions)
        self._prepare_blocks()
        own = (self.versions, everything, ties)
        self.updates = Updates(*own, config, plan, self.groups, env, objective, skipped_steps)

    def _prepare_blocks(self) -> None:
        """Apply the run's recomputation and compilation to the blocks of every weight version."""
        # After the versions are copied: a wrapper set on a block refers to that block, and a
        # copied wrapper would still call the first version's.
        for module in self.versions.modules:
            if self.config.train.recompute == "selective":
                apply_recompute(module, "selective")
            if self.config.train.compile:
                compile_blocks(module)

    def _parts(self, objective: Objective) -> list[Part]:
        """Return the part of each rank of a replica, in order of those ranks."""
        stages = cast(Splittable, objective).stages(self.topology.depths)
        return cut(stages, self.topology.stages, self.pipeline.schedule)

    def next_batch(self, batches: Iterator[MicroBatch]) -> Batch:
        """Take the next micro-batch."""
        self.phase_timer.enter("data")
        return next(batches)

    def begin_update(self, step: int, sums: Any) -> None:
        """Begin a step's update; `sums` are the `MetricSums` of its micro-batches."""
        self.phase_timer.enter("update")
        self.updates.begin(step, sums, self._asked_to_stop(), self._asked_to_save(step))

    def finish_update(self, step: int) -> Outcome:
        """Wait for a step's update and return its outcome."""
        self.phase_timer.enter("reduce")
        return self.updates.wait(step)

    def report(self, outcome: Outcome, stop: bool, save: bool) -> StepOutput:
        """End the timing of a step and return its output."""
        verdict = outcome.verdict
        return StepOutput(
            verdict.step,
            outcome.metrics,
            verdict.norm,
            outcome.lr,
            self.plan.batch_size,
            self.phase_timer.end_step(),
            not verdict.is_applied,
            stop,
            save,
        )

    def handle_bad_step(self, bad: BadStep) -> None:
        """Call the policy for bad steps, which raises, or returns if the run continues."""
        with self.phase_timer.during("save"):
            self._on_bad_step(bad)

    def close(self) -> None:
        """End the thread of the updates."""
        self.updates.close()

    @contextlib.contextmanager
    def frozen(self, weights: str = "raw") -> Iterator[Objective]:
        """Return a context that gives the objective for evaluation; see `Executor.frozen`.

        It is a second one, sharded over all ranks: protocols compute more than what the stages do
        in turn, such as features, and so no rank holds all of it.
        """
        ema = self.updates.update.ema if weights == "ema" else None
        with ema.swapped_in() if ema is not None else contextlib.nullcontext():
            objective = self._sharded()
        yield objective

    @torch.no_grad()
    def _sharded(self) -> Objective:
        """Return the objective in shards, filled tensor by tensor from where its stage lies."""
        holders = {
            name: self.topology.ranks[number][0]
            for number, part in enumerate(self._parts(build_on_meta(self.config)))
            for name in part.state_dict()
        }
        objective = build_to_evaluate(self.config, self._all, self.config.seed)
        own = self.versions.newest.state_dict()
        for name, target in sorted(objective.state_dict().items()):
            source = holders[name]
            if source == self.env.rank:
                values = own[name]
            else:
                values = torch.empty(target.shape, dtype=target.dtype, device=self.env.device)
            if self.env.world_size > 1:
                dist.broadcast(values, src=source)
            copy_whole(target, values)
        return objective

    def state_dict(self) -> dict[str, Any]:
        """Return the live tensors of this rank's part by global name.

        Names are ``objective.NAME``, ``previous.NAME`` (2bw), ``optimizer.PARAMETER.KEY``,
        ``ema.PARAMETER``, ``feedback.PARAMETER`` and ``executor.NAME``.
        """
        updates = self.updates
        state: dict[str, Any] = {**self.versions.state_dict(), **updates.update.state_dict()}
        state |= {f"feedback.{name}": tensor for name, tensor in updates.feedback.items()}
        if self.pipeline.error_feedback:
            state["executor.has_feedback"] = torch.tensor(int(updates.has_feedback))
        return state

    def match_state(self, names: Collection[str]) -> None:
        """Make or drop optimizer state so that it has `names`; see `Executor.match_state`."""
        self.updates.update.match_state(names)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy `state` into the live tensors; see `Executor.load_state_dict`."""
        state = without_unbegun(state)
        self.match_state(state)
        copy_state(self.state_dict(), state)
        self.updates.update.load_numbers(state)
        if "executor.has_feedback" in state:
            self.updates.has_feedback = bool(int(state["executor.has_feedback"]))


def batches_of(executor: StagedExecutor, batches: Iterator[MicroBatch]) -> Sequence[Batch]:
    """Take all micro-batches of a step."""
    return [executor.next_batch(batches) for _ in range(executor.plan.accumulate)]
