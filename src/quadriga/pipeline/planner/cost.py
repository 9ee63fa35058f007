"""What a configuration costs: the memory of each stage and the seconds of its parts.

The model is that of PipeDream-2BW's planner (Narayanan et al., arXiv:2006.09503, section 3.3 and
appendix A) with what this package's executor really holds. With W parameters, G gradients and S
optimizer state of a stage in bytes, A what one micro-batch keeps in it, I what goes from stage to
stage, and f = `Schedule.in_flight` micro-batches in flight:

    flush            W +  G + S + f A + (f + 1) I + f I
    2bw             2W + 2G + S + f A + (f + 1) I + f I
    recomputed                    A instead of f A

where the last two terms are inputs (one received ahead; not on the first stage) and places for
gradients to come (not on the last stage). Only the weights and the gradients are held twice.

What the network makes of a placement: ranks stage by stage, the copies of a stage together.
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
    """So many stages of so many copies on a network: rank ``stage * width + copy``."""

    def __init__(self, network: Network, width: int, depth: int) -> None:
        """Place `depth` stages of `width` copies."""
        self._network, self.width, self.depth = network, width, depth
        ranks = width * depth
        self._per_node = min(network.ranks_per_node or ranks, ranks)
        self._leaving = self._most_that_leave()

    def _node(self, rank: int) -> int:
        return rank // self._per_node

    def _most_that_leave(self) -> int:
        """Return the most ranks of one node that send activations to another node."""
        leaving: dict[int, int] = {}
        for rank in range(self.width * (self.depth - 1)):
            if self._node(rank) != self._node(rank + self.width):
                leaving[self._node(rank)] = leaving.get(self._node(rank), 0) + 1
        return max(leaving.values(), default=0)

    def transfer_seconds(self, stage: int, size: float) -> float:
        """Return how long a message from a stage to the next one takes.

        Args:
            stage: The sender.
            size: Bytes.
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
        """Return how long the sum of a stage's gradients over its copies takes.

        A ring sends ``2 (w - 1) / w`` of the bytes through each rank (Patarasuk and Yuan, 2009).
        Rings that leave a node share what joins it to the others.

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
        """Return how long the sum of tied gradients of the first and the last stage takes.

        Args:
            size: Bytes that both hold.
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
    """Copies of the model."""
    depth: int
    """Stages of a copy."""
    micro_batch: int
    """Samples."""
    micro_batches: int
    """Of a step, through each copy."""
    recompute: Recompute
    schedule: str
    """A schedule's name; "none" for whole models on every rank."""


class Memory(NamedTuple):
    """Bytes of one rank."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    boundary: int
    """Inputs that are kept, and places for what is to be received."""

    @property
    def total(self) -> int:
        """Sum of the parts."""
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
            profile: What its parts cost.
            measured: Its micro-batch, nothing computed anew.
            full: Its micro-batch, every block computed anew; for whole models.
            candidate: What is to be evaluated.
            placement: Its ranks.
            is_deferred: Whether 2bw makes its updates beside.
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
        """Return (how many, size, cost) of what a stage holds."""
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
        # One stage holds a tied parameter once.
        return size - (self._profile.shared_bytes if self.candidate.depth == 1 else 0)

    def memory(self, stage: int, blocks: int) -> Memory:
        """Return what a rank of a stage of so many blocks needs."""
        candidate, units = self.candidate, self._units(stage, blocks)
        trainable = self.trainable(stage, blocks)
        whole = candidate.depth == 1
        twice = self._profile.shared_bytes if whole else 0
        states = sum(n * unit.state_bytes for n, unit, _ in units)
        shared_states = round(states * twice / max(1, trainable + twice))
        flying = self._in_flight(stage)
        kept = sum(n * cost.kept for n, _, cost in units)
        if self._is_whole and candidate.recompute == "full":
            kept += self._plain.block.kept  # of the block that is computed anew
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
        """Return the seconds of a stage's forward and backward pass of one micro-batch."""
        units = self._units(stage, blocks)
        forward = sum(n * cost.forward for n, _, cost in units)
        backward = sum(n * cost.backward for n, _, cost in units)
        if self._recomputes(stage):
            backward += forward
        if not self._profile.network.overlaps:
            # Each end of a message spends half of its time on it, in both directions.
            ends = sum(self.transfer[max(0, stage - 1) : stage + 1]) / 2
            forward, backward = forward + ends, backward + ends
        return forward, backward

    def work(self, stage: int, blocks: int) -> float:
        """Return the seconds of both passes."""
        return sum(self.passes(stage, blocks))

    def times(self, depths: tuple[int, ...]) -> Times:
        """Return the seconds of all parts of a cut."""
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
            # On a GPU both run on a stream of their own; on a CPU they take the rank's core.
            beside=both if overlaps else (),
            step=() if overlaps else both,
            is_deferred=self._is_deferred,
        )

    def _message_seconds(self, stage: int, blocks: int, backward: float) -> float:
        """Return the seconds of an update's sums over copies and ends."""
        profile = self._profile
        seconds = self._placement.reduce_seconds(stage, self.trainable(stage, blocks))
        if self._is_whole and profile.network.overlaps:
            return max(0.0, seconds - backward)  # in buckets, while the last backward pass runs
        if stage in (0, self.candidate.depth - 1):
            seconds += self._placement.tie_seconds(profile.shared_bytes)
        return seconds
