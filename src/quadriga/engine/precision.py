"""The type that matrix products are computed in."""

from __future__ import annotations

import contextlib

import torch

from quadriga.engine.run_config import RunConfig


def precision_of(config: RunConfig) -> torch.dtype:
    """Return the type of the matrix products of a run."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.train.precision]


def reduced_precision(
    device: torch.device, dtype: torch.dtype
) -> contextlib.AbstractContextManager[object]:
    """Return a context in which matrix products are computed in `dtype`.

    Args:
        device: Where they are computed.
        dtype: float32 changes nothing; the weights stay float32 whatever it is.
    """
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)
