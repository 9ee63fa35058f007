"""The search for the fastest pipeline of a recipe, given the number and memory of ranks.

For each candidate it finds the best cut: the number of blocks of each stage.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from quadriga.errors import UserError, nearest_multiples
from quadriga.formatting import bytes_
from quadriga.pipeline.planner.cost import Candidate, Costs, Memory, Placement
from quadriga.pipeline.planner.profile import Profile, Recompute
from quadriga.pipeline.planner.timeline import Timeline, Times, lower_bound, simulate
from quadriga.pipeline.schedules import SCHEDULES

StageCost = Callable[[int, int], float]
"""(stage, blocks) -> cost, which must not decrease with the number of blocks."""


def best_cut(
    blocks: int, stages: int, cost: StageCost, most: Sequence[int] | None = None
) -> tuple[int, ...] | None:
    """Return the cut with the lowest maximum cost of a stage; of several, the most even one.

    All blocks are equal, so a contiguous cut is a number of blocks per stage. The algorithm is
    greedy: each next block goes to the stage whose cost with it is lowest. It is optimal: costs do
    not decrease, so a cut whose maximum cost is c gives no stage a block at a cost above c, and the
    greedy rule uses all additions of cost at most c before any above c.

    Args:
        blocks: Blocks to distribute; at least ``stages - 1``.
        stages: Number of stages. Each but the last gets at least one block; the last has the loss.
        cost: Cost of a stage.
        most: Maximum number of blocks of each stage.

    Returns:
        Blocks of each stage; None if `most` does not allow all blocks.
    """
    least = [1] * (stages - 1) + [0 if stages > 1 else blocks]
    most = [blocks] * stages if most is None else list(most)
    if sum(least) > blocks or any(low > high for low, high in zip(least, most, strict=True)):
        return None
    given = list(least)
    open_ = [(cost(s, given[s] + 1), s) for s in range(stages) if given[s] < most[s]]
    heapq.heapify(open_)
    for _ in range(blocks - sum(least)):
        if not open_:
            return None
        _, stage = heapq.heappop(open_)
        given[stage] += 1
        if given[stage] < most[stage]:
            heapq.heappush(open_, (cost(stage, given[stage] + 1), stage))
    return tuple(given)


def most_blocks(blocks: int, stages: int, fits: Callable[[int, int], bool]) -> list[int]:
    """Return the maximum number of blocks that fit on each stage; -1 if not even none fits.

    Args:
        blocks: Upper limit for each stage.
        stages: Number of stages.
        fits: (stage, blocks) -> whether they fit; if they do, so must fewer blocks.
    """
    found = []
    for stage in range(stages):
        low, high = -1, blocks
        while low < high:
            middle = (low + high + 1) // 2
            if fits(stage, middle):
                low = middle
            else:
                high = middle - 1
        found.append(low)
    return found


RECOMPUTES: tuple[Recompute, ...] = ("none", "full")
STEPS = 6
"""Simulated steps of a schedule with delay: in the middle, the pipeline is in steady state."""

ROUNDING = 1e-7
"""Relative difference of seconds that counts as rounding error."""


@final
@dataclass(frozen=True)
class Plan:
    """A candidate, its cut and its predicted time and memory."""

    candidate: Candidate
    depths: tuple[int, ...]
    """Blocks of each stage."""
    times: Times
    memory: tuple[Memory, ...]
    """Memory of a rank of each stage."""
    step_seconds: float
    samples_per_second: float
    bubble: float
    """Share of the stages' time in which they are idle."""

    @property
    def most_memory(self) -> int:
        """Maximum bytes of a rank."""
        return max(memory.total for memory in self.memory)


class Refusal(NamedTuple):
    """A class of candidates that cannot run with any size of micro-batch."""

    width: int
    depth: int
    schedule: str
    recompute: Recompute
    reason: str
    need: int | None
    """Maximum bytes of a stage if memory is the reason, else None."""


@final
@dataclass(frozen=True)
class Ranking:
    """The result of `Planner.rank`."""

    plans: tuple[Plan, ...]
    """Plans, the best first."""
    refusals: tuple[Refusal, ...]
    considered: int
    """Number of candidates that can run."""


@final
class Planner:
    """Evaluates the candidates of one profile."""

    def __init__(
        self,
        profile: Profile,
        ranks: int,
        batch_size: int,
        memory: int,
        *,
        is_deferred: bool = True,
        whole_only: str | None = None,
    ) -> None:
        """Plan for a profile.

        Args:
            profile: Costs of the model's parts.
            ranks: Number of ranks; a plan uses all of them.
            batch_size: Samples of a step over all ranks.
            memory: Bytes of a rank.
            is_deferred: Whether 2bw overlaps its updates (`executor.deferred_update`).
            whole_only: The reason why the run's model cannot be cut; None if it can.
        """
        self._whole_only = whole_only
        self._profile, self._ranks, self._batch_size = profile, ranks, batch_size
        self._memory, self._is_deferred = memory, is_deferred

    def rank(self, top: int) -> Ranking:
        """Return the `top` best candidates; the result is deterministic.

        Each candidate gets its best cut and a lower bound of its time; candidates are simulated
        in order of that bound until it exceeds the time of the `top` best.

        Raises:
            UserError: No candidate can run.
        """
        bounded: list[tuple[float, Candidate, Costs, tuple[int, ...]]] = []
        refusals: list[Refusal] = []
        for group in self._classes():
            fitting, refusal = self._evaluate(*group)
            bounded += fitting
            refusals += [refusal] if refusal is not None else []
        if not bounded:
            raise self._nothing_fits(refusals)
        bounded.sort(key=lambda entry: (entry[0], entry[1]))
        plans: list[Plan] = []
        for bound, candidate, costs, depths in bounded:
            if len(plans) >= top and bound > plans[top - 1].step_seconds * (1 + ROUNDING):
                break
            plans.append(self._predict(candidate, costs, depths))
            plans.sort(key=_order)
        return Ranking(tuple(plans[:top]), tuple(refusals), len(bounded))

    def predict(self, candidate: Candidate, depths: tuple[int, ...] | None = None) -> Plan:
        """Return the plan of one candidate.

        Args:
            candidate: Its micro-batch must be in the profile.
            depths: Its cut; the best one by default.

        Raises:
            UserError: The candidate does not fit in memory, or its micro-batch is not measured.
        """
        costs = self._costs(candidate)
        if depths is None:
            depths = self._cut(costs)
        if depths is None:
            raise UserError(
                f"the ranks must have memory for {candidate}, but have {bytes_(self._memory)}"
            )
        return self._predict(candidate, costs, depths)

    def timeline(self, plan: Plan, steps: int) -> Timeline:
        """Return the simulated timing of a plan's first `steps` steps."""
        costs = self._costs(plan.candidate)
        return simulate(costs.schedule, plan.times, plan.candidate.micro_batches, steps)

    def _classes(self) -> Iterator[tuple[int, int, str, Recompute]]:
        for depth in range(1, min(self._ranks, self._profile.blocks) + 1):
            if self._ranks % depth == 0:
                for schedule in ("none",) if depth == 1 else tuple(SCHEDULES):
                    for recompute in RECOMPUTES:
                        yield self._ranks // depth, depth, schedule, recompute

    def _evaluate(
        self, width: int, depth: int, schedule: str, recompute: Recompute
    ) -> tuple[list[tuple[float, Candidate, Costs, tuple[int, ...]]], Refusal | None]:
        """Return the candidates of a class that can run, or the reason why none can."""
        if depth > 1 and self._whole_only is not None:
            return [], Refusal(width, depth, schedule, recompute, self._whole_only, None)
        reasons: list[tuple[int | None, str]] = []
        found = []
        for size in self._profile.sizes:
            if self._batch_size % (width * size):
                continue
            micro_batches = self._batch_size // (width * size)
            candidate = Candidate(width, depth, size, micro_batches, recompute, schedule)
            costs = self._costs(candidate)
            try:
                costs.schedule.check(depth, micro_batches)
            except UserError:
                reasons.append((None, f"needs {depth} micro-batches, has {micro_batches}"))
                continue
            depths = self._cut(costs)
            if depths is None:
                reasons.append(self._need(costs))
                continue
            name = costs.schedule.name
            bound = lower_bound(name, costs.times(depths), micro_batches)
            found.append((bound, candidate, costs, depths))
        if found:
            return found, None
        if not reasons:
            text = f"train.batch_size={self._batch_size} has no such part for {width} copies"
            reasons = [(None, text)]
        need, text = min(reasons, key=lambda reason: (reason[0] is None, reason[0] or 0))
        return [], Refusal(width, depth, schedule, recompute, text, need)

    def _costs(self, candidate: Candidate) -> Costs:
        profile = self._profile
        plain = profile.at(candidate.micro_batch, "none")
        if plain is None:
            raise UserError(
                f"the profile must have micro-batches of {candidate.micro_batch}, but has "
                f"{profile.sizes}; make it anew"
            )
        full = profile.at(candidate.micro_batch, "full")
        return Costs(
            profile,
            plain,
            full if candidate.recompute == "full" else None,
            candidate,
            Placement(profile.network, candidate.width, candidate.depth),
            is_deferred=self._is_deferred,
        )

    def _cut(self, costs: Costs) -> tuple[int, ...] | None:
        blocks, depth = self._profile.blocks, costs.candidate.depth
        most = most_blocks(blocks, depth, lambda s, n: costs.memory(s, n).total <= self._memory)
        return best_cut(blocks, depth, costs.work, most)

    def _need(self, costs: Costs) -> tuple[int, str]:
        """Return the maximum bytes of a stage, minimised over the cuts, and a reason."""
        depth = costs.candidate.depth
        depths = best_cut(self._profile.blocks, depth, lambda s, n: costs.memory(s, n).total)
        assert depths is not None
        need, stage = max((costs.memory(s, n).total, s) for s, n in enumerate(depths))
        where = " (heads)" if stage == depth - 1 else " (input)" if stage == 0 else ""
        where = f" on stage {stage}{where}" if depth > 1 else ""
        return need, f"needs {bytes_(need)}{where}, memory is {bytes_(self._memory)}"

    def _predict(self, candidate: Candidate, costs: Costs, depths: tuple[int, ...]) -> Plan:
        times = costs.times(depths)
        step, bubble = steady_state(costs, times, candidate.micro_batches)
        return Plan(
            candidate=candidate,
            depths=depths,
            times=times,
            memory=tuple(costs.memory(s, n) for s, n in enumerate(depths)),
            step_seconds=step,
            samples_per_second=self._batch_size / step,
            bubble=bubble,
        )

    def _nothing_fits(self, refusals: list[Refusal]) -> UserError:
        needs = [refusal for refusal in refusals if refusal.need is not None]
        if not needs:
            return UserError(
                f"train.batch_size must be shared by {self._ranks} ranks in parts that were "
                f"measured, but is {self._batch_size}; as a multiple of the ranks "
                f"{nearest_multiples(self._batch_size, self._ranks)}"
            )
        best = min(needs, key=lambda refusal: refusal.need or 0)
        return UserError(
            f"--memory must be at least {bytes_(best.need or 0)} (depth {best.depth}, "
            f"{best.schedule}, recompute {best.recompute}), but is {bytes_(self._memory)}; raise "
            "it, use more ranks, or a smaller model"
        )


def _order(plan: Plan) -> tuple[float, int, Candidate]:
    # Times that differ by rounding are equal; then the plan that needs less memory is first.
    return float(f"{plan.step_seconds:.8e}"), plan.most_memory, plan.candidate


def steady_state(costs: Costs, times: Times, micro_batches: int) -> tuple[float, float]:
    """Return the seconds of a step in the steady state, and its bubble.

    Steps of many micro-batches are simulated with fewer, and the time is extrapolated: with a
    flush, each further micro-batch takes the same time; without, step and update scale alike.
    """
    depth = times.stages
    few = 3 * depth + 1
    busy = micro_batches * (sum(times.forward) + sum(times.backward))
    schedule = costs.schedule
    steps = STEPS if schedule.delay else 3
    if micro_batches <= few + depth:
        seconds = simulate(schedule, times, micro_batches, steps).step_seconds
    elif schedule.delay:
        share = few / micro_batches
        smaller = Times(
            forward=times.forward,
            backward=times.backward,
            transfer=times.transfer,
            beside=tuple(share * each for each in times.beside),
            step=tuple(share * each for each in times.step),
            is_deferred=times.is_deferred,
        )
        seconds = simulate(schedule, smaller, few, steps).step_seconds / share
    else:
        one, more = (simulate(schedule, times, m, steps).step_seconds for m in (few, few + depth))
        seconds = more + (micro_batches - few - depth) * (more - one) / depth
    return seconds, 1.0 - busy / (depth * seconds)
