"""The type that matrix products are computed in."""

from __future__ import annotations

import contextlib

import torch

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
