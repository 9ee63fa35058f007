"""Initial values, each tensor drawn from (seed, its full name).

The full name decides, not the order of drawing: a tensor gets the same values in the whole model,
in a pipeline stage that holds a slice of it, and on any device (values are drawn on the CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from quadriga import randomness

LinearRule = Literal["xavier_uniform", "normal", "truncated_normal"]
"""How weights of linear maps are drawn: Glorot and Bengio (2010), eq. 16, or with standard
deviation 0.02 (Devlin et al., 2019), cut at two deviations in the last case."""

DEVIATION = 0.02
"""Standard deviation of tokens, embeddings and of the normal rules."""

Draw = Callable[[Tensor, torch.Generator], None]
"""Fills a float32 CPU tensor in place from a generator."""


class Filler:
    """Fills the own tensors of one module, by their local names."""

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
        self._tensors[name].fill_(value)

    def copy(self, name: str, values: Tensor) -> None:
        """Copy `values`, of the same shape, into the tensor `name`."""
        self._tensors[name].copy_(values)

    def normal(self, name: str, deviation: float = DEVIATION) -> None:
        """Fill the tensor `name` from N(0, deviation^2)."""
        self.draw(name, lambda values, source: _normal(values, source, deviation))

    def draw(self, name: str, draw: Draw) -> None:
        """Fill the tensor `name` with what `draw` makes, seen as (rows, all the rest)."""
        target = self._tensors[name]
        if target.is_meta:
            return
        values = torch.empty(target.shape, dtype=torch.float32, device="cpu")
        draw(values.flatten(1) if values.dim() > 2 else values, self.generator(name))
        target.copy_(values)

    def generator(self, name: str) -> torch.Generator:
        """Return the generator of the tensor `name`."""
        return randomness.generator(self._seed, "initialise", self._prefix + name)


@runtime_checkable
class FillsItself(Protocol):
    """A module with parameters or buffers of its own, beside those of its sub-modules.

    A class token, a table of positions, the factors of a layer scale: the module knows their rule.
    """

    def fill(self, filler: Filler) -> None:
        """Fill each of the module's own tensors, and only those, through `filler`."""
        ...


def initialise(
    root: nn.Module, seed: int, linear: LinearRule = "xavier_uniform", prefix: str = ""
) -> None:
    """Fill every parameter and buffer below `root` in place, whatever its memory held before.

    Linear maps and convolutions (on the flattened kernel) follow `linear` with biases 0, layer
    normalisation is the identity, embeddings are N(0, 0.02^2), all other modules with tensors of
    their own fill themselves (`FillsItself`). On the meta device nothing is drawn.

    Args:
        root: The module tree.
        seed: The run's seed.
        linear: The rule for the weights of linear maps.
        prefix: Full name of `root` in the whole model, for a slice of it.

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
                filler.draw("weight", _RULES[linear])
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
    """Yield the parameters and buffers of `module` itself, without its sub-modules'."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _normal(values: Tensor, source: torch.Generator, deviation: float = DEVIATION) -> None:
    values.normal_(0.0, deviation, generator=source)


def _truncated_normal(values: Tensor, source: torch.Generator) -> None:
    bound = 2 * DEVIATION
    nn.init.trunc_normal_(values, std=DEVIATION, a=-bound, b=bound, generator=source)


def _xavier_uniform(values: Tensor, source: torch.Generator) -> None:
    nn.init.xavier_uniform_(values, generator=source)


_RULES: dict[LinearRule, Draw] = {
    "xavier_uniform": _xavier_uniform,
    "normal": _normal,
    "truncated_normal": _truncated_normal,
}
