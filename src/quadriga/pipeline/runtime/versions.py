"""The versions of a stage's weights: one, or the two of PipeDream-2BW.

Version v lives in copy v mod 2 of the stage, so that a graph of one copy never sees the other; the
next version is written into the copy that nothing in flight uses, which autograd checks once more:
it counts the writes to a tensor, and refuses a backward pass through one that was overwritten.

A step's gradients in one piece of memory: summed over the replicas in one operation.
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

    The optimizer's parameters have the memory of the newest version. They are in no graph, so
    their memory may be exchanged.
    """

    def __init__(self, stage: Part, count: int) -> None:
        """Take an initialised part on its device; the second copy starts equal.

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
            # .data and not detach(), which would share the count of writes with the copy's tensor.
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
        """Return the copy that holds a version."""
        return self.modules[self._number(version)]

    def tensors(self, version: int) -> dict[str, nn.Parameter]:
        """Return the trainable parameters of a version by global name."""
        return self._own[self._number(version)]

    def begin_at(self, version: int) -> None:
        """Say which version the newest weights are: the number of steps before a segment."""
        self._offset = (self._newest - version) % self.count

    @torch.no_grad()
    def advance(self, version: int) -> None:
        """Make the next version a copy of `version`, and let the optimizer step on it.

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
