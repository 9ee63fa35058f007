"""Dtype of the matrix products, and the loss scale that keeps float16 gradients from vanishing."""

from __future__ import annotations

import contextlib
from typing import final

import torch
from torch import Tensor

from quadriga.engine.run_config import TrainConfig
from quadriga.errors import UserError


def check_precision(train: TrainConfig, device: torch.device) -> None:
    """Check that the device supports the run's dtype.

    Raises:
        UserError: It does not.
    """
    if device.type != "cuda" or train.precision != "bfloat16":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"train.precision=bfloat16 is not computed by {torch.cuda.get_device_name(device)}; "
            "use train.precision=float16"
        )


def reduced_precision(
    device: torch.device, train: TrainConfig
) -> contextlib.AbstractContextManager[object]:
    """Return a context in which matrix products are computed in the run's dtype.

    float32 changes nothing. The weights always stay float32.
    """
    if train.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, train.precision))


INITIAL = 2.0**16
GROWTH_STEPS = 2000
SMALLEST = 2.0**-14
"""At or below this scale, an overflowing gradient counts as a bad step."""


@final
class LossScale:
    """Halved when a gradient overflows, doubled after `GROWTH_STEPS` steps without one.

    Micikevicius et al., arXiv:1710.03740, section 3.2. The global gradient norm decides whether a
    gradient overflows, so all ranks have the same scale.
    """

    def __init__(self, enabled: bool, fixed: float | None = None) -> None:
        """Start at `INITIAL`, or stay at `fixed`; a scale that is not enabled is always 1."""
        self.enabled, self._is_fixed = enabled, fixed is not None
        self.value = (fixed or INITIAL) if enabled else 1.0
        self._good_steps = 0

    def update(self, overflowed: bool) -> None:
        """Update the scale after a step whose gradient overflowed or not."""
        if not self.enabled or self._is_fixed:
            return
        if overflowed:
            self.value, self._good_steps = self.value / 2, 0
            return
        self._good_steps += 1
        if self._good_steps == GROWTH_STEPS:
            self.value, self._good_steps = self.value * 2, 0

    def forgives(self, loss_is_finite: bool) -> bool:
        """Return whether a non-finite gradient is an overflow that a smaller scale avoids."""
        return self.enabled and loss_is_finite and self.value > SMALLEST

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as scalar tensors; empty if not enabled."""
        if not self.enabled:
            return {}
        return {
            "loss_scale": torch.tensor(self.value, dtype=torch.float64),
            "loss_scale_good_steps": torch.tensor(self._good_steps),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the state that `state_dict` returned."""
        if self.enabled:
            self.value = float(state["loss_scale"])
            self._good_steps = int(state["loss_scale_good_steps"])
