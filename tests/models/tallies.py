"""The tallies of all batch normalisations of a model, as the executor handles them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from quadriga.models.parts.batch_norm import BatchNorm, Reduce


def norms(module: nn.Module) -> dict[str, BatchNorm]:
    return {name: m for name, m in module.named_modules() if isinstance(m, BatchNorm)}


def set_groups(module: nn.Module, group: int | None, reduce: Reduce | None = None) -> None:
    for norm in norms(module).values():
        norm.set_groups(group, reduce)


@contextlib.contextmanager
def tallying(module: nn.Module) -> Iterator[None]:
    for norm in norms(module).values():
        norm.is_tallying = True
    yield
    for norm in norms(module).values():
        norm.is_tallying = False


def take_tallies(module: nn.Module) -> dict[str, Tensor]:
    return {name: norm.take_tally() for name, norm in norms(module).items()}


def apply_tallies(module: nn.Module, sums: Mapping[str, Tensor]) -> None:
    for name, norm in norms(module).items():
        norm.apply_tally(sums[name])
