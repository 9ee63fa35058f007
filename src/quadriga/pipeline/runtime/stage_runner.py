"""One stage's forward and backward passes, and the exchange of tensors with its neighbours.

Tensors travel as point-to-point messages in order, and are received ahead of their use.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from quadriga import randomness
from quadriga.contracts import Batch, LossOutput, Stage
from quadriga.distributed.environment import DistEnv
from quadriga.engine.meters.phase_timer import PhaseTimer
from quadriga.engine.run_config import RunConfig
from quadriga.engine.step.precision import reduced_precision
from quadriga.pipeline.runtime.partition import Group, Groups

_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@final
class Sender:
    """Sends tensors to one neighbour, asynchronously."""

    def __init__(self, group: Group, peer: int) -> None:
        """Send to rank `peer` in `group`, which has no other use."""
        self._group, self._peer = group, peer
        self._under_way: deque[tuple[Any, Tensor]] = deque()
        self._said_type = False

    @property
    def under_way(self) -> int:
        """Number of messages whose tensors are still held."""
        return len(self._under_way)

    def send(self, tensor: Tensor, most: int, says_type: bool = False) -> None:
        """Start to send a tensor, and hold it until it is sent.

        Args:
            tensor: Any shape; its type is one of `_TYPES`. It must not be written to afterwards.
            most: Maximum number of messages, with this one, that the receiver has not yet
                expected. Older ones are waited for, since gloo reports a send as completed only
                when it is waited for, and dropped.
            says_type: Whether to send the type ahead of the first tensor, for a receiver that
                expects tensors without a type.
        """
        if says_type and not self._said_type:
            self._said_type = True
            self._start(torch.tensor([_TYPES.index(tensor.dtype)], device=tensor.device))
        self._start(tensor.contiguous())
        while self._under_way and self._under_way[0][0].is_completed():
            self._under_way.popleft()
        while len(self._under_way) > most:
            self._under_way.popleft()[0].wait()

    def _start(self, tensor: Tensor) -> None:
        if tensor.numel():
            work = dist.isend(tensor, self._peer, group=self._group)
            self._under_way.append((work, tensor))

    def finish(self) -> None:
        """Wait until everything is sent."""
        while self._under_way:
            self._under_way.popleft()[0].wait()


@final
class Receiver:
    """Receives tensors from one neighbour, in the order of the calls of `expect`."""

    def __init__(self, group: Group, peer: int, device: torch.device) -> None:
        """Receive from rank `peer` in `group`, which has no other use, onto `device`."""
        self._group, self._peer, self._device = group, peer, device
        self._dtype: torch.dtype | None = None
        self._expected: deque[tuple[Any, Tensor]] = deque()

    def expect(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
        """Start to receive the next tensor.

        Args:
            shape: Its shape.
            dtype: Its type; None to use the type that the sender sends ahead.
        """
        dtype = dtype or self._type()
        buffer = torch.empty(shape, dtype=dtype, device=self._device)
        work = dist.irecv(buffer, self._peer, group=self._group) if buffer.numel() else None
        self._expected.append((work, buffer))

    def take(self) -> Tensor:
        """Wait for the oldest expected tensor and return it."""
        work, buffer = self._expected.popleft()
        if work is not None:
            work.wait()
        return buffer

    def _type(self) -> torch.dtype:
        if self._dtype is None:
            number = torch.zeros(1, dtype=torch.int64, device=self._device)
            dist.recv(number, self._peer, group=self._group)
            self._dtype = _TYPES[int(number)]
        return self._dtype


@dataclass
class _Stashed:
    """A micro-batch between its forward and its backward pass."""

    hidden: Tensor | None
    output: Tensor | GradientEdge | None = None
    """The loss (scalar), or the graph edge of the output that was sent, whose values are freed."""
    again: tuple[Stage, Batch] | None = None
    """Arguments for recomputing the forward pass; None if it is not recomputed."""


@final
class StageRunner:
    """Carries out forward and backward passes of this rank's stage.

    Randomness is keyed by (seed, step, micro-batch, replica, layer), so a recomputed forward pass
    draws the same dropout masks without any stored state.
    """

    def __init__(
        self,
        config: RunConfig,
        groups: Groups,
        env: DistEnv,
        phase_timer: PhaseTimer,
        stages: int,
        in_flight: int,
    ) -> None:
        """Connect to the neighbours.

        Args:
            config: The run's config.
            groups: This rank's groups.
            env: This rank.
            phase_timer: Receives the phase that the rank enters.
            stages: Number of stages.
            in_flight: Maximum number of micro-batches between their forward and backward pass.
        """
        self._config, self._groups, self._env, self._phase_timer = config, groups, env, phase_timer
        self.is_first, self.is_last = groups.stage == 0, groups.stage == stages - 1
        # With one micro-batch in flight, its backward pass follows at once: recomputing would
        # save no memory.
        self._recomputes = config.train.recompute == "full" and in_flight > 1
        self.blocks_recompute = config.train.recompute == "selective"
        """Whether backward passes recompute blocks, and so need the randomness of the forward."""
        self._stash: dict[tuple[int, int], _Stashed] = {}
        before, behind, device = groups.previous, groups.following, env.device
        if before is not None:
            self._hidden_in = Receiver(groups.activations_in, before, device)
            self._gradient_out = Sender(groups.gradients_out, before)
        if behind is not None:
            self._hidden_out = Sender(groups.activations_out, behind)
            self._gradient_in = Receiver(groups.gradients_in, behind, device)

    @property
    def in_flight(self) -> int:
        """Number of micro-batches between their forward and their backward pass."""
        return len(self._stash)

    def expect(self, module: Stage, batch: Batch) -> None:
        """Start to receive a micro-batch's input; call it in the order of the forward passes."""
        if not self.is_first:
            self._hidden_in.expect(module.hidden_shape(batch))

    def forward(self, module: Stage, batch: Batch, step: int, micro: int) -> LossOutput | None:
        """Compute a forward pass; send its output on, or on the last stage return the loss."""
        hidden = None
        if not self.is_first:
            self._phase_timer.enter("pipeline")
            hidden = self._hidden_in.take()
            hidden.requires_grad_(hidden.is_floating_point())
        self._phase_timer.enter("forward")
        with torch.no_grad() if self._recomputes else contextlib.nullcontext():
            output = self._compute(module, hidden, batch, step, micro)
        stashed = self._stash[step, micro] = _Stashed(hidden)
        if self._recomputes:
            stashed.again = module, batch
        if isinstance(output, LossOutput):
            if not self._recomputes:
                stashed.output = self._share(output)
            return output
        if not self._recomputes:
            stashed.output = get_gradient_edge(output)
        # A message is certainly received once its gradient is back, so at most `in_flight`
        # messages are outstanding.
        self._hidden_out.send(output.detach(), self.in_flight, says_type=True)
        self._gradient_in.expect(tuple(output.shape), output.dtype)
        return None

    def _share(self, output: LossOutput) -> Tensor:
        """Return the micro-batch's loss, a scalar, divided by the micro-batches per step."""
        return output.only.total / self._config.train.accumulate

    def backward(self, step: int, micro: int) -> None:
        """Compute a backward pass and send the input's gradient to the previous stage.

        Raises:
            RuntimeError: The stage's output does not depend on its input.
        """
        stashed = self._stash.pop((step, micro))
        gradient = None
        if not self.is_last:
            self._phase_timer.enter("pipeline")
            gradient = self._gradient_in.take()
        self._phase_timer.enter("backward")
        output = stashed.output
        if stashed.again is not None:
            module, batch = stashed.again
            again = self._compute(module, stashed.hidden, batch, step, micro)
            output = self._share(again) if isinstance(again, LossOutput) else again
        assert output is not None
        with self._randomness(step, micro) if self.blocks_recompute else contextlib.nullcontext():
            torch.autograd.backward(output, gradient)
        if stashed.hidden is not None:
            if stashed.hidden.grad is None:
                raise RuntimeError("a stage does not use its input")
            # The previous stage expects it since it sent the input, so the send does not block.
            self._gradient_out.send(stashed.hidden.grad, 1)

    def _compute(
        self, module: Stage, hidden: Tensor | None, batch: Batch, step: int, micro: int
    ) -> Tensor | LossOutput:
        with (
            self._randomness(step, micro),
            reduced_precision(self._env.device, self._config.train),
        ):
            output: Tensor | LossOutput = module(hidden, batch)
        return output

    def _randomness(self, step: int, micro: int) -> contextlib.AbstractContextManager[None]:
        return randomness.micro_batch(self._config.seed, step, micro, self._groups.replica)

    def finish(self) -> None:
        """Wait until all messages are sent.

        Raises:
            RuntimeError: A micro-batch is still in flight.
        """
        if self._stash:
            raise RuntimeError(f"{len(self._stash)} micro-batches are still in flight")
        if not self.is_first:
            self._gradient_out.finish()
        if not self.is_last:
            self._hidden_out.finish()
