"""One stage's forward and backward passes, and what lies between them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from quadriga import randomness
from quadriga.contracts import Batch, LossOutput, Stage
from quadriga.distributed.environment import DistEnv
from quadriga.engine.meters.activity import Activity
from quadriga.engine.run_config import RunConfig
from quadriga.engine.step.precision import reduced_precision
from quadriga.pipeline.groups import Groups
from quadriga.pipeline.links import Receiver, Sender


@dataclass
class _Stashed:
    """A micro-batch between its forward and its backward pass."""

    hidden: Tensor | None
    output: Tensor | GradientEdge | None = None
    """The loss, or the graph of what was sent on, whose values are not kept."""
    again: tuple[Stage, Batch] | None = None
    """What the forward pass is computed with once more."""


@final
class StageRunner:
    """Carries out forward and backward passes of this rank's stage.

    Randomness is keyed by (seed, step, micro-batch, replica, layer), so a forward pass that is
    computed again for its backward pass draws the same dropout without any state.
    """

    def __init__(
        self,
        config: RunConfig,
        groups: Groups,
        env: DistEnv,
        activity: Activity,
        stages: int,
        in_flight: int,
    ) -> None:
        """Connect to the neighbours.

        Args:
            config: The run.
            groups: This rank's groups.
            env: This rank.
            activity: Told what the rank is doing.
            stages: Number of stages.
            in_flight: The most micro-batches between their forward and their backward pass.
        """
        self._config, self._groups, self._env, self._activity = config, groups, env, activity
        self.is_first, self.is_last = groups.stage == 0, groups.stage == stages - 1
        # Of one micro-batch nothing is kept beside what its backward pass needs in any case.
        self._recomputes = config.train.recompute == "full" and in_flight > 1
        self.blocks_recompute = config.train.recompute == "selective"
        """Whether backward passes compute blocks anew, and so draw their dropout again."""
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
        """Start to receive the input of a micro-batch, in the order of the forward passes."""
        if not self.is_first:
            self._hidden_in.expect(module.hidden_shape(batch))

    def forward(self, module: Stage, batch: Batch, step: int, micro: int) -> LossOutput | None:
        """Compute a forward pass and send its output on; the last stage returns the loss."""
        hidden = None
        if not self.is_first:
            self._activity.enter("pipeline")
            hidden = self._hidden_in.take()
            hidden.requires_grad_(hidden.is_floating_point())
        self._activity.enter("forward")
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
        # Outputs whose gradients are back have arrived.
        self._hidden_out.send(output.detach(), self.in_flight, says_type=True)
        self._gradient_in.expect(tuple(output.shape), output.dtype)
        return None

    def _share(self, output: LossOutput) -> Tensor:
        """Return the loss of a micro-batch as its part of the step's."""
        return output.loss / self._config.train.accumulate

    def backward(self, step: int, micro: int) -> None:
        """Compute a backward pass and send the gradient of the input back."""
        stashed = self._stash.pop((step, micro))
        gradient = None
        if not self.is_last:
            self._activity.enter("pipeline")
            gradient = self._gradient_in.take()
        self._activity.enter("backward")
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
            # The stage before asked for it when it sent the input: it waits for nobody.
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
        """Wait until all that was sent has left; nothing is in flight afterwards."""
        if self._stash:
            raise RuntimeError(f"{len(self._stash)} micro-batches are still in flight")
        if not self.is_first:
            self._gradient_out.finish()
        if not self.is_last:
            self._hidden_out.finish()
