"""The end of an optimizer step, the same in every executor: check, scale, clip, step, EMA."""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from quadriga.contracts import Progress
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.engine.step.bad_step import BadStep
from quadriga.engine.step.precision import LossScale
from quadriga.engine.step.state import match_optimizer_state, optimizer_state
from quadriga.engine.step.sums import Reduced
from quadriga.optim.parts.ema import WeightEMA


@dataclass(frozen=True)
class Verdict:
    """What becomes of a step, the same on every rank."""

    step: int
    is_applied: bool
    """Whether the gradient is applied to the weights."""
    stop: bool
    """Whether a rank was asked to stop."""
    norm: Tensor
    """Scalar: the norm of the step's whole gradient before clipping."""
    factors: tuple[Tensor, ...]
    """What the gradients of each separately clipped part are multiplied with."""
    bad: BadStep | None = None
    """What was not finite, if anything."""


@final
class Update:
    """Applies gradients that are sums over all ranks and micro-batches of a step."""

    def __init__(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
        plan: RunPlan,
        skipped_steps: Container[int],
        scale: LossScale | None = None,
    ) -> None:
        """Take over the parameters of one rank.

        Args:
            named: Global names and parameters, whole or sharded.
            optimizer: Theirs.
            config: The run.
            plan: Its numbers.
            skipped_steps: Steps that make no update.
            scale: What the loss is multiplied with; 1 by default.
        """
        self.named, self.optimizer, self.scale = named, optimizer, scale or LossScale(False)
        self._config, self._plan, self._skipped_steps = config, plan, skipped_steps
        self.skipped = 0
        """Steps so far that made no update."""
        decay = config.ema.decay
        self.ema = WeightEMA(named, decay, config.ema.warmup) if decay is not None else None

    def is_skipped(self, step: int) -> bool:
        """Return whether a step is to make no update, whatever its gradient is."""
        return step in self._skipped_steps

    def progress(self, step: int) -> Progress:
        """Return what schedules, momenta and temperatures follow: the updates that were made."""
        return self._plan.progress(step - self.skipped)

    def lr(self, progress: Progress) -> float:
        """Return the learning rate of an update."""
        return self._plan.lr * self._config.schedule.factor(progress)

    def check_step(
        self, step: int, reduced: Reduced, squares: Sequence[Tensor], factor: Tensor
    ) -> Verdict:
        """Decide, the same on all ranks, whether a step's gradient is applied.

        Args:
            step: The step.
            reduced: Its sums over all ranks.
            squares: For each separately clipped part the sum of the squares of its gradient.
            factor: Scalar: what makes the gradient of the mean loss of what is there.
        """
        if self.is_skipped(step):
            nothing = torch.full((), torch.nan)
            return Verdict(step, False, bool(reduced.asked_to_stop), nothing, ())
        norm = torch.stack(list(squares)).sum().sqrt().to(torch.float32) * factor
        # The one moment of a step in which the host waits for the device.
        has_targets, loss_is_finite, norm_is_finite, stop = (
            torch.stack(
                [
                    reduced.targets > 0,
                    reduced.metrics["loss"].isfinite(),
                    norm.isfinite(),
                    reduced.asked_to_stop > 0,
                ]
            )
            .cpu()
            .tolist()
        )
        if not has_targets:  # 0 / 0: nothing to learn from, and no fault
            return Verdict(step, False, stop, norm, ())
        is_good, bad = loss_is_finite and norm_is_finite, None
        if not is_good and not self.scale.forgives(loss_is_finite):
            value = norm if loss_is_finite else reduced.metrics["loss"]
            what = "gradient norm" if loss_is_finite else "loss"
            bad = BadStep(step, what, float(value), self.scale.value, step - self.skipped)
        if loss_is_finite:
            self.scale.update(overflowed=not norm_is_finite)
        clip = self._config.optim.clip_norm
        factors = [factor for _ in squares]
        if clip is not None:
            norms = [square.sqrt().to(torch.float32) * factor for square in squares]
            factors = [factor * (clip / (own + 1e-6)).clamp(max=1.0) for own in norms]
        return Verdict(step, is_good, stop, norm, tuple(factors), bad)

    def step(self, progress: Progress) -> None:
        """Step the optimizer on gradients that were multiplied with `Verdict.factors`."""
        lr = self.lr(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.step()

    def update_ema(self, progress: Progress) -> None:
        """Take the weights after a step into their moving average, where there is one."""
        if self.ema is not None:
            self.ema.update(progress.step)

    def state_dict(self) -> dict[str, Any]:
        """Return ``optimizer.PARAMETER.KEY``, ``ema.PARAMETER`` and ``executor.NAME``, live."""
        state: dict[str, Any] = dict(optimizer_state(self.optimizer, dict(self.named)))
        if self.ema is not None:
            state |= {f"ema.{name}": tensor for name, tensor in self.ema.tensors.items()}
        own = {"skipped": torch.tensor(self.skipped), **self.scale.state_dict()}
        return {**state, **{f"executor.{name}": tensor for name, tensor in own.items()}}

    def match_state(self, names: Collection[str]) -> None:
        """Make or drop the optimizer's state as `names` have it; see `Executor.match_state`."""
        match_optimizer_state(self.optimizer, dict(self.named), names)

    def load_numbers(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` returned that is no tensor of a parameter."""
        self.skipped = int(state["executor.skipped"])
        own = {n.removeprefix("executor."): v for n, v in state.items()}
        self.scale.load_state_dict(own)
