"""Config of the executor in which each rank computes the whole model for its own samples.

Imports are inside the methods, so that reading a config does not import FSDP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from quadriga.config.base import load
from quadriga.contracts.executor import Executor, ExecutorConfig, Share, StepConfig
from quadriga.contracts.objective import Objective
from quadriga.contracts.step import StepPlan
from quadriga.distributed.environment import DistEnv
from quadriga.formatting import bytes_

if TYPE_CHECKING:
    from quadriga.engine.meters.cost import Cost


@final
class DataParallelConfig(ExecutorConfig):
    """Replicas or shards of the model (``train.parallel``); each rank computes its own samples."""

    def check(self, config: StepConfig, objective: Objective, world_size: int) -> None:
        """Check that the ranks can be grouped; see `ExecutorConfig.check`."""
        from quadriga.engine.step.sharding import shard_ranks

        shard_ranks(config.train, world_size, world_size)

    def share(self, rank: int, world_size: int) -> Share:
        """Return a share for each rank."""
        return Share(rank, world_size, is_leader=True)

    def describe(self, config: StepConfig, objective: Objective, env: DistEnv) -> str | None:
        """Return one line on the layout; None for a single process without sharding."""
        from quadriga.engine.step.sharding import describe_layout

        if env.world_size == 1 and config.train.parallel == "ddp":
            return None
        return describe_layout(config.train, env)

    def memory_rows(
        self,
        config: StepConfig,
        objective: Objective,
        cost: Cost,
        world_size: int,
        local_world_size: int,
    ) -> list[tuple[str, str]]:
        """Return one row on state and activations; see `ExecutorConfig.memory_rows`."""
        from quadriga.engine.meters.cost import memory_estimate
        from quadriga.engine.step.blocks import blocks_of
        from quadriga.engine.step.sharding import shard_ranks

        train, shards = config.train, shard_ranks(config.train, world_size, local_world_size)
        sizes = [
            sum(p.numel() * p.element_size() for p in block.parameters())
            for _, block in blocks_of(objective)
        ]
        gathered = max(sizes, default=0) if train.reshard_after_forward else sum(sizes)
        estimate = memory_estimate(
            cost, shards=shards, gathered=gathered, has_ema=config.ema.decay is not None
        )
        parts = [
            f"parameters {bytes_(estimate.parameters)}",
            f"gradients {bytes_(estimate.gradients)}",
            f"optimizer {bytes_(estimate.optimizer)}",
        ]
        if estimate.ema:
            parts.append(f"moving average {bytes_(estimate.ema)}")
        if shards > 1:
            parts[-1] += f" (each a shard of {shards})"
            what = "the largest block" if train.reshard_after_forward else "all blocks"
            parts.append(f"{what} gathered {bytes_(estimate.gathered)}")
        how = "" if train.recompute == "none" else f" with {train.recompute} recomputation"
        parts.append(f"activations {bytes_(estimate.activations)} for {cost.samples} samples{how}")
        return [("memory per rank", f"about {bytes_(estimate.total)}: {', '.join(parts)}")]

    def build(
        self, objective: Objective, config: StepConfig, plan: StepPlan, env: DistEnv, **options: Any
    ) -> Executor:
        """Make a `DataParallelExecutor`."""
        make = load("quadriga.engine.step.data_parallel:DataParallelExecutor")
        made: Executor = make(objective, config, plan, env, **options)
        return made
