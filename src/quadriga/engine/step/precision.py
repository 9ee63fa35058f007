"""Dtype of the matrix products, and the loss scale that keeps float16 gradients from vanishing."""

from __future__ import annotations

import contextlib
from typing import Literal, final

import torch
from torch import Tensor

from quadriga.engine.run_config import RunConfig, TrainConfig
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


def automatic(device_type: str) -> Literal["float32", "bfloat16"]:
    """Return what ``train.precision=auto`` means on this machine.

    Emulated bfloat16 is slower than float32. On a GPU float32 stays what is not asked otherwise.

    Args:
        device_type: ``cpu`` or ``cuda``.
    """
    multiplies = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if device_type == "cpu" and multiplies else "float32"


AUTO = "auto, by the processor"
"""Where the values of `decided` come from."""


def decided(config: RunConfig, device_type: str, before: RunConfig | None = None) -> dict[str, str]:
    """Return dotted key -> dtype of the run's precisions that are auto.

    Args:
        config: The run.
        device_type: ``cpu`` or ``cuda``.
        before: The config with which the same run began, on whatever machine: it is kept.
    """
    found: dict[str, str] = {}
    train: str = config.train.precision
    if train == "auto":
        train = automatic(device_type) if before is None else before.train.precision
        found["train.precision"] = train
    if config.evaluation.precision == "auto":
        is_reduced = train == "bfloat16" and device_type == "cpu"
        own = "bfloat16" if is_reduced else "float32"
        found["evaluation.precision"] = own if before is None else before.evaluation.precision
    return found


def dtype_of(train: TrainConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of the matrix products of a run on a device."""
    name = automatic(device.type) if train.precision == "auto" else train.precision
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def reduced_precision(
    device: torch.device, train: TrainConfig
) -> contextlib.AbstractContextManager[object]:
    """Return a context in which matrix products are computed in the run's dtype.

    float32 changes nothing. The weights always stay float32.
    """
    dtype = dtype_of(train, device)
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


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
