"""Initial values: each element of a tensor is a function of (seed, full name, element number).

Values do not depend on the order of drawing or on other elements, so a tensor gets the same values
in the whole model, in a pipeline stage and on a rank that holds some of its rows. Values are drawn
on the tensor's device. Uniform values are bit-equal on all devices; normal ones are rounded from
float64 values that may differ between devices in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from quadriga import randomness
from quadriga.distributed.collectives import first_element, local_part

LinearRule = Literal["xavier_uniform", "normal", "truncated_normal"]
"""How weights of linear maps are drawn: Glorot and Bengio (2010), eq. 16, or with standard
deviation 0.02 (Devlin et al., 2019), cut at two deviations in the last case."""

DEVIATION = 0.02
"""Standard deviation of tokens, embeddings and of the normal rules."""

Quantile = Callable[[Tensor], Tensor]
"""Maps float64 uniforms in (0, 1), which it may overwrite, to values, element by element: the
inverse of the values' distribution function."""

CHUNK = 1 << 15
"""Elements drawn at once: they fit in the cache, and torch computes so few in a single thread."""


class Filler:
    """Fills the tensors of one module itself, by their local names; of a shard this rank's part."""

    def __init__(self, module: nn.Module, name: str, seed: int) -> None:
        """Fill tensors of `module`, whose full name is `name`, from `seed`."""
        self._tensors = dict(own_tensors(module))
        self._prefix = f"{name}." if name else ""
        self._seed = seed

    @property
    def names(self) -> tuple[str, ...]:
        """Local names of the module's own parameters and buffers."""
        return tuple(self._tensors)

    def constant(self, name: str, value: float) -> None:
        """Fill the tensor `name` with one value."""
        local_part(self._tensors[name]).fill_(value)

    def copy(self, name: str, values: Tensor) -> None:
        """Copy `values`, of the full tensor's shape, into the tensor `name`."""
        first, local = first_element(self._tensors[name]), local_part(self._tensors[name])
        local.copy_(values.reshape(-1)[first : first + local.numel()].view(local.shape))

    def normal(self, name: str, deviation: float = DEVIATION) -> None:
        """Fill the tensor `name` from N(0, deviation^2)."""
        self.draw(name, lambda uniform: _normal(uniform, deviation))

    def truncated_normal(self, name: str, deviation: float = DEVIATION) -> None:
        """Fill the tensor `name` from N(0, deviation^2), given that |value| < 2 deviations."""
        inside = math.erf(math.sqrt(2.0))
        self.draw(name, lambda uniform: _normal(uniform, deviation, inside))

    def xavier_uniform(self, name: str) -> None:
        """Fill a matrix from U(-b, b), with b^2 = 6 / (rows + columns).

        A tensor of more dimensions is flattened to (rows, all other dimensions).
        """
        shape = self._tensors[name].shape
        bound = math.sqrt(6.0 / (shape[0] + shape[1:].numel()))
        self.draw(name, lambda uniform: _centred(uniform).mul_(bound))

    def draw(self, name: str, quantile: Quantile) -> None:
        """Fill the tensor `name` with `quantile` of each element's own uniform draw."""
        first, local = first_element(self._tensors[name]), local_part(self._tensors[name])
        if local.is_meta:
            return
        key = randomness.fold(self._seed, "initialise", self._prefix + name)
        flat, end = local.view(-1), first + local.numel()
        # Always the same complete chunks, whichever part this rank holds, because torch's rounding
        # of an element may depend on its position in a loop.
        for start in range(first - first % CHUNK, end, CHUNK):
            values = quantile(randomness.element_uniform(key, start, CHUNK, flat.device))
            low, high = max(start, first), min(start + CHUNK, end)
            flat[low - first : high - first].copy_(values[low - start : high - start])


@runtime_checkable
class FillsItself(Protocol):
    """A module with parameters or buffers of its own and a rule to initialise them.

    Examples are a class token, a position embedding and the factors of a layer scale.
    """

    def fill(self, filler: Filler) -> None:
        """Fill each of the module's own tensors, and no others, with `filler`."""
        ...


def initialise(
    root: nn.Module, seed: int, linear: LinearRule = "xavier_uniform", prefix: str = ""
) -> None:
    """Fill every parameter and buffer below `root` in place.

    Linear maps and convolutions (flattened kernel) follow `linear` with biases 0, layer
    normalisations are the identity, embeddings are N(0, 0.02^2), and all other modules with tensors
    of their own implement `FillsItself`. On the meta device nothing is drawn.

    Args:
        root: The module tree.
        seed: The run's seed.
        linear: The rule for the weights of linear maps.
        prefix: Full name of `root` in the whole model, if `root` is a part of it.

    Raises:
        TypeError: A module has tensors of its own and no rule.
    """
    with torch.no_grad():
        for path, module in root.named_modules():
            name = ".".join(part for part in (prefix, path) if part)
            filler = Filler(module, name, seed)
            if isinstance(module, FillsItself):
                module.fill(filler)
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                _RULES[linear](filler, "weight")
                if module.bias is not None:
                    filler.constant("bias", 0.0)
            elif isinstance(module, nn.LayerNorm):
                for tensor in filler.names:
                    filler.constant(tensor, 1.0 if tensor == "weight" else 0.0)
            elif isinstance(module, nn.Embedding):
                filler.normal("weight")
            elif filler.names:
                raise TypeError(f"{name}: {type(module).__name__} has {filler.names} and no rule")


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of `module` itself, without those of its sub-modules."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _centred(uniform: Tensor) -> Tensor:
    """Map (0, 1) to (-1, 1), without rounding."""
    return uniform.mul_(2.0).sub_(1.0)


def _normal(uniform: Tensor, deviation: float, inside: float = 1.0) -> Tensor:
    """Return values of a normal distribution truncated to its central mass `inside`."""
    return _centred(uniform).mul_(inside).erfinv_().mul_(math.sqrt(2.0) * deviation)


_RULES: dict[LinearRule, Callable[[Filler, str], None]] = {
    "xavier_uniform": Filler.xavier_uniform,
    "normal": Filler.normal,
    "truncated_normal": Filler.truncated_normal,
}
