"""The cost model of the planner: the memory of each stage and the seconds of its parts.

It is the model of PipeDream-2BW's planner (Narayanan et al., arXiv:2006.09503, section 3.3 and
appendix A), adapted to the tensors that this package's executor holds. With W, G and S the bytes of
a stage's parameters, gradients and optimizer state, A the bytes of one micro-batch's activations
in it, I the bytes sent between stages, and f = `Schedule.in_flight` micro-batches in flight:

    flush            W +  G + S + f A + (f + 1) I + f I
    2bw             2W + 2G + S + f A + (f + 1) I + f I
    recomputed                    A instead of f A

where the last two terms are inputs (one received ahead; not on the first stage) and buffers for
gradients to receive (not on the last stage). 2bw holds only weights and gradients twice.
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

from quadriga.pipeline.planner.profile import (
    Link,
    Measurement,
    Network,
    Profile,
    Recompute,
    UnitCost,
    UnitSize,
)
from quadriga.pipeline.planner.timeline import Times
from quadriga.pipeline.schedules import make_schedule
from quadriga.pipeline.schedules.actions import Place, Schedule


@final
class Placement:
    """Stages and replicas on a network, and the times of their messages.

    Rank ``stage * width + replica`` holds a stage of a replica.
    """

    def __init__(self, network: Network, width: int, depth: int) -> None:
        """Place `width` replicas of `depth` stages."""
        self._network, self.width, self.depth = network, width, depth
        ranks = width * depth
        self._per_node = min(network.ranks_per_node or ranks, ranks)
        self._leaving = self._most_that_leave()

    def _node(self, rank: int) -> int:
        return rank // self._per_node

    def _most_that_leave(self) -> int:
        """Return the maximum, over the nodes, of ranks that send activations to another node."""
        leaving: dict[int, int] = {}
        for rank in range(self.width * (self.depth - 1)):
            if self._node(rank) != self._node(rank + self.width):
                leaving[self._node(rank)] = leaving.get(self._node(rank), 0) + 1
        return max(leaving.values(), default=0)

    def transfer_seconds(self, stage: int, size: float) -> float:
        """Return the seconds of a message from a stage to the next one.

        Args:
            stage: The sender.
            size: Bytes of the message.
        """
        first = stage * self.width
        crosses = any(
            self._node(rank) != self._node(rank + self.width)
            for rank in range(first, first + self.width)
        )
        if not crosses:
            return self._network.within.seconds(size)
        return self._network.between.seconds(size * max(1, self._leaving))

    def _spans(self, stage: int) -> range:
        first = stage * self.width
        return range(self._node(first), self._node(first + self.width - 1) + 1)

    def reduce_seconds(self, stage: int, size: float) -> float:
        """Return the seconds of the all-reduce of a stage's gradients over its replicas.

        A ring sends ``2 (w - 1) / w`` of the bytes through each rank (Patarasuk and Yuan, 2009).
        Rings that leave a node share the node's link.

        Args:
            stage: The stage.
            size: Bytes of its gradients.
        """
        width = self.width
        if width == 1:
            return 0.0
        link, sharing = self._network.within, 1
        nodes = self._spans(stage)
        if len(nodes) > 1:
            link = self._network.between
            spans = [self._spans(s) for s in range(self.depth)]
            sharing = max(sum(node in s for s in spans if len(s) > 1) for node in nodes)
        return _ring(link, width, size * sharing)

    def tie_seconds(self, size: float) -> float:
        """Return the seconds of the all-reduce of gradients tied between first and last stage.

        Args:
            size: Bytes of the tied parameters.
        """
        if self.depth == 1 or not size:
            return 0.0
        last = (self.depth - 1) * self.width
        away = self._node(0) != self._node(last)
        link = self._network.between if away else self._network.within
        return _ring(link, 2, size * (min(self.width, self._per_node) if away else 1))


def _ring(link: Link, ranks: int, size: float) -> float:
    waits = 2 * math.ceil(math.log2(ranks)) * link.latency
    return waits + 2 * (ranks - 1) / ranks * size / link.bandwidth


class Candidate(NamedTuple):
    """One way to spread a step over the ranks."""

    width: int
    """Number of replicas."""
    depth: int
    """Stages of a replica."""
    micro_batch: int
    """Samples of a micro-batch."""
    micro_batches: int
    """Micro-batches of a step in each replica."""
    recompute: Recompute
    schedule: str
    """A schedule's name; "none" for data parallelism: the whole model on every rank."""


class Memory(NamedTuple):
    """Bytes of one rank."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    boundary: int
    """Stored stage inputs, and buffers for messages to receive."""

    @property
    def total(self) -> int:
        """Sum of the parts in bytes."""
        return sum(self)


@final
class Costs:
    """The costs of one candidate's stages, as functions of how many blocks they have."""

    def __init__(
        self,
        profile: Profile,
        measured: Measurement,
        full: Measurement | None,
        candidate: Candidate,
        placement: Placement,
        *,
        is_deferred: bool = True,
    ) -> None:
        """Prepare the costs of one candidate.

        Args:
            profile: Costs of the model's parts.
            measured: Costs for the candidate's micro-batch without recomputation.
            full: Costs with every block recomputed; used for whole models.
            candidate: The candidate.
            placement: Its ranks.
            is_deferred: Whether 2bw overlaps its updates with the passes.
        """
        self.candidate, self._profile, self._placement = candidate, profile, placement
        self._is_whole = candidate.schedule == "none"
        self._measured = full if full is not None and self._is_whole else measured
        self._plain, self._is_deferred = measured, is_deferred
        name = "sequential" if self._is_whole else candidate.schedule
        self.schedule: Schedule = make_schedule(name)
        self._versions = 1 + self.schedule.delay
        crossings = range(candidate.depth - 1)
        self.transfer = tuple(
            placement.transfer_seconds(s, measured.boundary_bytes) for s in crossings
        )

    def _recomputes(self, stage: int) -> bool:
        if self.candidate.recompute != "full" or self._is_whole:
            return False
        return self._in_flight(stage) > 1

    def _in_flight(self, stage: int) -> int:
        candidate = self.candidate
        return self.schedule.in_flight(Place(stage, candidate.depth, candidate.micro_batches))

    def _units(self, stage: int, blocks: int) -> list[tuple[int, UnitSize, UnitCost]]:
        """Return (count, size, cost) of each kind of part in a stage."""
        profile, measured = self._profile, self._measured
        units = [(blocks, profile.block, measured.block)]
        if stage == 0:
            units.append((1, profile.input, measured.input))
        if stage == self.candidate.depth - 1:
            units.append((1, profile.head, measured.head))
        return units

    def trainable(self, stage: int, blocks: int) -> int:
        """Return the bytes of a stage's trainable parameters."""
        size = sum(n * unit.trainable_bytes for n, unit, _ in self._units(stage, blocks))
        # With one stage, the tied parameter of input and heads is held once.
        return size - (self._profile.shared_bytes if self.candidate.depth == 1 else 0)

    def memory(self, stage: int, blocks: int) -> Memory:
        """Return the memory that a rank needs for a stage of `blocks` blocks."""
        candidate, units = self.candidate, self._units(stage, blocks)
        trainable = self.trainable(stage, blocks)
        whole = candidate.depth == 1
        twice = self._profile.shared_bytes if whole else 0
        states = sum(n * unit.state_bytes for n, unit, _ in units)
        shared_states = round(states * twice / max(1, trainable + twice))
        flying = self._in_flight(stage)
        kept = sum(n * cost.kept for n, _, cost in units)
        if self._is_whole and candidate.recompute == "full":
            kept += self._plain.block.kept  # for the block that is being recomputed
        boundary = self._plain.boundary_bytes
        inputs = (flying + 1) * boundary if stage > 0 else 0
        to_come = flying * boundary if stage < candidate.depth - 1 else 0
        return Memory(
            weights=self._versions * (sum(n * u.parameter_bytes for n, u, _ in units) - twice),
            gradients=self._versions * trainable,
            optimizer=states - shared_states,
            ema=trainable if self._profile.has_average else 0,
            activations=flying * self._plain.batch_bytes
            + (kept if self._recomputes(stage) else flying * kept),
            boundary=inputs + to_come,
        )

    def passes(self, stage: int, blocks: int) -> tuple[float, float]:
        """Return the seconds of a stage's forward and backward pass for one micro-batch."""
        units = self._units(stage, blocks)
        forward = sum(n * cost.forward for n, _, cost in units)
        backward = sum(n * cost.backward for n, _, cost in units)
        if self._recomputes(stage):
            backward += forward
        if not self._profile.network.overlaps:
            # Sender and receiver each spend half of a message's time on it, in both directions.
            ends = sum(self.transfer[max(0, stage - 1) : stage + 1]) / 2
            forward, backward = forward + ends, backward + ends
        return forward, backward

    def work(self, stage: int, blocks: int) -> float:
        """Return the seconds of the forward plus the backward pass of one micro-batch."""
        return sum(self.passes(stage, blocks))

    def times(self, depths: tuple[int, ...]) -> Times:
        """Return the times of all stages of a cut, given the blocks of each stage."""
        stages = range(len(depths))
        passes = [self.passes(s, depths[s]) for s in stages]
        backward = tuple(b for _, b in passes)
        messages = [self._message_seconds(s, depths[s], backward[s]) for s in stages]
        steps = [self._profile.update_seconds * self.trainable(s, depths[s]) for s in stages]
        both = tuple(m + step for m, step in zip(messages, steps, strict=True))
        overlaps = self._profile.network.overlaps
        return Times(
            forward=tuple(f for f, _ in passes),
            backward=backward,
            transfer=self.transfer,
            # On a GPU, messages and the step run on a separate stream; on a CPU they take the
            # time of the rank's core.
            beside=both if overlaps else (),
            step=() if overlaps else both,
            is_deferred=self._is_deferred,
        )

    def _message_seconds(self, stage: int, blocks: int, backward: float) -> float:
        """Return the seconds of an update's all-reduces, over replicas and of tied gradients."""
        profile = self._profile
        seconds = self._placement.reduce_seconds(stage, self.trainable(stage, blocks))
        if self._is_whole and profile.network.overlaps:
            return max(0.0, seconds - backward)  # in buckets, while the last backward pass runs
        if stage in (0, self.candidate.depth - 1):
            seconds += self._placement.tie_seconds(profile.shared_bytes)
        return seconds
