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
    """Whether and how a step's gradient is applied, the same on every rank."""

    step: int
    is_applied: bool
    """Whether the gradient is applied to the weights."""
    stop: bool
    """Whether a rank received a stop signal."""
    save: bool
    """Whether a rank asked for a checkpoint."""
    norm: Tensor
    """Scalar, the norm of the step's whole gradient before clipping; NaN for a skipped step."""
    factors: tuple[Tensor, ...]
    """float32 scalars, the factor of the gradients of each separately clipped part."""
    bad: BadStep | None = None
    """The bad step, if its loss or gradient is not finite."""


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
        """Store the arguments, and make the moving average if the config has one.

        Args:
            named: Global names and trainable parameters of this rank, full or sharded.
            optimizer: The optimizer of these parameters.
            config: The run.
            plan: The plan of its steps.
            skipped_steps: Steps without an update.
            scale: The loss scale; 1 by default.
        """
        self.named, self.optimizer, self.scale = named, optimizer, scale or LossScale(False)
        self._config, self._plan, self._skipped_steps = config, plan, skipped_steps
        self.skipped = 0
        """Number of steps without an update so far."""
        decay = config.ema.decay
        self.ema = WeightEMA(named, decay, config.ema.warmup) if decay is not None else None

    def is_skipped(self, step: int) -> bool:
        """Return whether a step has no update, whatever its gradient is."""
        return step in self._skipped_steps

    def progress(self, step: int) -> Progress:
        """Return the progress of schedules, momenta and temperatures, which counts updates."""
        return self._plan.progress(step - self.skipped)

    def lr(self, progress: Progress) -> float:
        """Return the learning rate of an update."""
        return self._plan.lr * self._config.schedule.factor(progress)

    def check_step(
        self, step: int, reduced: Reduced, squares: Sequence[Tensor], factor: Tensor
    ) -> Verdict:
        """Decide, equally on all ranks, whether a step's gradient is applied.

        Args:
            step: The step.
            reduced: Its sums over all ranks.
            squares: For each separately clipped part the sum of squares of its gradient.
            factor: Scalar that turns the summed gradient into that of the step's loss.
        """
        if self.is_skipped(step):
            nothing = torch.full((), torch.nan)
            stop, save = bool(reduced.asked_to_stop), bool(reduced.asked_to_save)
            return Verdict(step, False, stop, save, nothing, ())
        norm = torch.stack(list(squares)).sum().sqrt().to(torch.float32) * factor
        # The one moment of a step in which the host waits for the device.
        has_targets, loss_is_finite, norm_is_finite, stop, save = (
            torch.stack(
                [
                    reduced.targets > 0,
                    reduced.metrics["loss"].isfinite(),
                    norm.isfinite(),
                    reduced.asked_to_stop > 0,
                    reduced.asked_to_save > 0,
                ]
            )
            .cpu()
            .tolist()
        )
        if not has_targets:  # 0 / 0: nothing to learn from, and no error
            return Verdict(step, False, stop, save, norm, ())
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
        return Verdict(step, is_good, stop, save, norm, tuple(factors), bad)

    def step(self, progress: Progress) -> None:
        """Step the optimizer on gradients that are multiplied by `Verdict.factors`."""
        lr = self.lr(progress)
        for group in self.optimizer.param_groups:
            rate = self._plan.lr if group["constant_lr"] else lr
            group["lr"] = rate * group["lr_scale"]
        self.optimizer.step()

    def update_ema(self, progress: Progress) -> None:
        """Update the moving average with the weights after a step, if there is one."""
        if self.ema is not None:
            self.ema.update(progress.step)

    def state_dict(self) -> dict[str, Any]:
        """Return live tensors ``optimizer.PARAMETER.KEY``, ``ema.PARAMETER``, ``executor.NAME``."""
        state: dict[str, Any] = dict(optimizer_state(self.optimizer, dict(self.named)))
        if self.ema is not None:
            state |= {f"ema.{name}": tensor for name, tensor in self.ema.tensors.items()}
        own = {"skipped": torch.tensor(self.skipped), **self.scale.state_dict()}
        return {**state, **{f"executor.{name}": tensor for name, tensor in own.items()}}

    def match_state(self, names: Collection[str]) -> None:
        """Create or drop optimizer state to match `names`; see `Executor.match_state`."""
        match_optimizer_state(self.optimizer, dict(self.named), names)

    def load_numbers(self, state: dict[str, Any]) -> None:
        """Load the ``executor`` part of a state that `state_dict` returned."""
        self.skipped = int(state["executor.skipped"])
        own = {n.removeprefix("executor."): v for n, v in state.items()}
        self.scale.load_state_dict(own)
