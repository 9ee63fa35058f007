"""The versions of a stage's weights, and the flat buffer of its gradients.

A stage has one version of its weights, or the two of PipeDream-2BW. Version v is held by copy
v mod 2 of the stage, so the graph of one copy never refers to the other. The next version is
written into the copy that nothing in flight uses. Autograd checks this too: it counts the writes to
a tensor, and refuses a backward pass through a tensor that was overwritten.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from quadriga.pipeline.runtime.partition import Part


@final
class WeightVersions:
    """One or two copies of a stage, and the parameters that the optimizer steps on.

    The optimizer's parameters share the memory of the newest version. With two copies they are in
    no graph, so `advance` may replace their memory.
    """

    def __init__(self, stage: Part, count: int) -> None:
        """Take an initialised part on its device; a second copy starts with equal weights.

        Args:
            stage: The stages of this rank.
            count: 1 or 2.
        """
        self.modules = [stage, *(copy.deepcopy(stage) for _ in range(count - 1))]
        self._own = [
            {name: p for name, p in module.named_parameters() if p.requires_grad}
            for module in self.modules
        ]
        self.parameters: dict[str, nn.Parameter] = (
            self._own[0]
            if count == 1
            # .data instead of detach(): detach() would share autograd's count of writes with the
            # copy's tensor.
            else {name: nn.Parameter(p.data) for name, p in self._own[0].items()}
        )
        """What the optimizer steps on, by global name."""
        self._newest, self._offset = 0, 0

    @property
    def count(self) -> int:
        """Number of copies."""
        return len(self.modules)

    def _number(self, version: int) -> int:
        return (version + self._offset) % self.count

    def module(self, version: int) -> Part:
        """Return the copy of the stage that holds a version."""
        return self.modules[self._number(version)]

    def tensors(self, version: int) -> dict[str, nn.Parameter]:
        """Return the trainable parameters of a version by global name."""
        return self._own[self._number(version)]

    def begin_at(self, version: int) -> None:
        """Set the version number of the newest weights: the number of steps before a segment."""
        self._offset = (self._newest - version) % self.count

    @torch.no_grad()
    def advance(self, version: int) -> None:
        """Make the next version a copy of `version`, and point the optimizer's parameters at it.

        Args:
            version: The newest one.
        """
        if self.count == 1:
            return
        source, target = self.tensors(version), self.tensors(version + 1)
        if target:
            torch._foreach_copy_(list(target.values()), list(source.values()))
        for name, parameter in self.parameters.items():
            parameter.data = target[name].data
        self._newest = self._number(version + 1)

    @property
    def newest(self) -> Part:
        """The copy with the newest weights."""
        return self.modules[self._newest]

    def state_dict(self) -> dict[str, Tensor]:
        """Return ``objective.NAME`` of the newest version, ``previous.NAME`` of the one before."""
        state = {f"objective.{name}": t for name, t in self.newest.state_dict().items()}
        if self.count == 2:
            before = self._own[1 - self._newest]
            state |= {f"previous.{name}": p.detach() for name, p in before.items()}
        return state


@final
class FlatGradients:
    """A 1-d buffer that holds the gradients of all parameters; backward passes add into it.

    One buffer makes the sum over the replicas a single all-reduce.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Allocate a buffer of the type and on the device of `parameters`.

        Raises:
            TypeError: The parameters have several types or devices.
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
        """Gradient by name, in its parameter's shape; each is a view of `flat`."""

    def collect(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Zero the buffer and make its views the gradients of `parameters`."""
        self.flat.zero_()
        for name, parameter in parameters.items():
            parameter.grad = self.views[name]

    def release(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Detach the buffer from `parameters`: later backward passes no longer change it."""
        for name, parameter in parameters.items():
            gradient, view = parameter.grad, self.views[name]
            if gradient is not None and gradient.data_ptr() != view.data_ptr():
                view.copy_(gradient)  # autograd has put another tensor in its place
            parameter.grad = None
