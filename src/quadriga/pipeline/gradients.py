"""A step's gradients in one piece of memory: summed over the replicas in one operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn


@final
class FlatGradients:
    """A buffer whose parts are the gradients of parameters; backward passes add into it."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Make room for the gradients of `parameters`, which lie on one device in one type.

        Raises:
            TypeError: They are of several types.
        """
        types = {(p.dtype, p.device) for p in parameters.values()}
        if len(types) > 1:
            raise TypeError(f"the parameters of a stage must have one type, but have {types}")
        dtype, device = next(iter(types), (torch.float32, torch.device("cpu")))
        sizes = {name: p.numel() for name, p in parameters.items()}
        self.flat = torch.zeros(sum(sizes.values()), dtype=dtype, device=device)
        parts = torch.split(self.flat, list(sizes.values())) if sizes else ()
        self.views: dict[str, Tensor] = {
            name: part.view(parameters[name].shape) for name, part in zip(sizes, parts, strict=True)
        }
        """Gradient by name, each a view of `flat`."""

    def collect(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Set the gradients of `parameters` to zero, and let backward passes add into them."""
        self.flat.zero_()
        for name, parameter in parameters.items():
            parameter.grad = self.views[name]

    def release(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Let the parameters go: later backward passes add in elsewhere."""
        for name, parameter in parameters.items():
            gradient, view = parameter.grad, self.views[name]
            if gradient is not None and gradient.data_ptr() != view.data_ptr():
                view.copy_(gradient)  # autograd has put another tensor in its place
            parameter.grad = None
