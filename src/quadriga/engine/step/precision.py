"""The type that matrix products are computed in.

The loss scale of float16: gradients that would vanish are kept in its range.
"""

from __future__ import annotations

import contextlib
from typing import final

import torch
from torch import Tensor

from quadriga.engine.run_config import TrainConfig
from quadriga.errors import UserError


def check_precision(train: TrainConfig, device: torch.device) -> None:
    """Check that the device computes in the run's type.

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
    """Return a context in which matrix products are computed in the run's type.

    float32 changes nothing; the weights stay float32 whatever it is.
    """
    if train.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, train.precision))


INITIAL = 2.0**16
GROWTH_STEPS = 2000
SMALLEST = 2.0**-14
"""Below this a gradient that overflows is not the scale's fault."""


@final
class LossScale:
    """Halved when a gradient overflows, doubled after `GROWTH_STEPS` steps without one.

    Micikevicius et al., arXiv:1710.03740, section 3.2. The verdict comes from the global gradient
    norm, so all ranks and all shards have the same scale, and its two numbers are all its state.
    """

    def __init__(self, enabled: bool) -> None:
        """Start at `INITIAL`; a scale that is not enabled is 1 for ever."""
        self.enabled = enabled
        self.value = INITIAL if enabled else 1.0
        self._good_steps = 0

    def update(self, overflowed: bool) -> None:
        """Take in whether the gradient of a step overflowed."""
        if not self.enabled:
            return
        if overflowed:
            self.value, self._good_steps = self.value / 2, 0
            return
        self._good_steps += 1
        if self._good_steps == GROWTH_STEPS:
            self.value, self._good_steps = self.value * 2, 0

    def forgives(self, loss_is_finite: bool) -> bool:
        """Return whether a gradient that is not finite is a matter of the scale alone."""
        return self.enabled and loss_is_finite and self.value > SMALLEST

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as scalars; nothing when not enabled."""
        if not self.enabled:
            return {}
        return {
            "loss_scale": torch.tensor(self.value, dtype=torch.float64),
            "loss_scale_good_steps": torch.tensor(self._good_steps),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state that `state_dict` returned."""
        if self.enabled:
            self.value = float(state["loss_scale"])
            self._good_steps = int(state["loss_scale_good_steps"])
