"""Batch normalisation over groups of samples, with running statistics that move once a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from quadriga.errors import UserError
from quadriga.models.parts.initialise import Filler

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over ranks; its backward pass sums the gradient over the same ranks."""


@final
class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015, arXiv:1502.03167) of feature vectors or maps.

    In training, each group of consecutive samples is normalised with its own mean and biased
    variance, in float32. In evaluation the running statistics are used. With one group the result
    is that of `nn.BatchNorm1d` and `nn.BatchNorm2d`.

    A forward pass never moves the running statistics: a step may have several micro-batches, and
    may compute a micro-batch twice. Inside `tallying` it adds the statistics of its groups to a
    tally; `take_tallies` and `apply_tallies` move the running statistics once a step.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    tally: Tensor

    def __init__(
        self, features: int, eps: float = 1e-5, momentum: float = 0.1, initial_scale: float = 1.0
    ) -> None:
        """Make the module with undefined values.

        Args:
            features: Channels, dimension 1 of the input.
            eps: Added to the variance.
            momentum: Share of a step's statistics in the new running statistics.
            initial_scale: Initial value of the factors; 0 lets a residual branch start at zero.
        """
        super().__init__()
        self.eps, self.momentum, self.initial_scale = eps, momentum, initial_scale
        self.weight = nn.Parameter(torch.empty(features))
        self.bias = nn.Parameter(torch.empty(features))
        self.register_buffer("running_mean", torch.empty(features))
        self.register_buffer("running_var", torch.empty(features))
        self.register_buffer("num_batches_tracked", torch.empty((), dtype=torch.int64))
        self.register_buffer("tally", torch.empty(3, features), persistent=False)
        self.group: int | None = None
        self.reduce: Reduce | None = None
        self.is_tallying = False

    def fill(self, filler: Filler) -> None:
        """Make the module the identity, or zero for `initial_scale` 0, and its tally empty."""
        for name in filler.names:
            filler.constant(name, 1.0 if name == "running_var" else 0.0)
        filler.constant("weight", self.initial_scale)

    def forward(
        self, inputs: Float[Tensor, "batch features *positions"]
    ) -> Float[Tensor, "batch features *positions"]:
        """Normalise each channel over the samples of a group and their positions.

        Raises:
            UserError: In training, a group has a single value per channel.
            ValueError: In training, the groups do not divide the batch.
        """
        if self.training and self.reduce is not None:
            return self._normalise_over_ranks(inputs, self.reduce)
        if self.training and inputs.shape[0] > 0:
            return self._normalise_groups(inputs)
        return functional.batch_norm(
            inputs, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def _normalise_groups(self, inputs: Tensor) -> Tensor:
        """Normalise each group with torch's own kernel, the fastest there is on each device."""
        batch = inputs.shape[0]
        size = batch if self.group is None else self.group
        if batch % size:
            raise ValueError(f"the batch must be a multiple of the group ({size}), but is {batch}")
        if inputs[:size].numel() == inputs.shape[1]:
            raise UserError(
                "batch normalisation must have more than one value per channel in training, but a "
                f"group of {size} sample has one; raise train.batch_size"
            )
        statistics = self.running_mean.new_zeros(2, batch // size, inputs.shape[1])
        outputs = [
            # With momentum 1 torch writes the group's mean and unbiased variance themselves.
            functional.batch_norm(part, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            for part, mean, var in zip(torch.split(inputs, size), *statistics, strict=True)
        ]
        if self.is_tallying:
            self._add_to_tally(statistics)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _normalise_over_ranks(self, inputs: Tensor, reduce: Reduce) -> Tensor:
        """Normalise the input as this rank's share, perhaps empty, of one group.

        The squares are those of the distances from the common mean: nothing cancels where the mean
        is large. The gradient flows back through both sums.
        """
        places = [0, *range(2, inputs.dim())]
        shape = (-1, *(1,) * (inputs.dim() - 2))
        values = inputs.float()
        own = values.new_full((1,), values.numel() // values.shape[1])
        sums = reduce(torch.cat([values.sum(dim=places), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        variance = reduce(centred.square().sum(dim=places)) / count
        if self.is_tallying:
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self._add_to_tally(torch.stack([mean, unbiased])[:, None])
        scale = (variance + self.eps).rsqrt() * self.weight
        outputs = torch.addcmul(self.bias.view(shape), centred, scale.view(shape))
        return outputs.to(inputs.dtype)

    @torch.no_grad()
    def _add_to_tally(self, statistics: Float[Tensor, "2 groups features"]) -> None:
        self.tally[:2] += statistics.sum(dim=1)
        self.tally[2] += statistics.shape[1]


def set_groups(module: nn.Module, group: int | None, reduce: Reduce | None = None) -> None:
    """Say which samples share statistics in every batch normalisation below `module`.

    Args:
        module: The root.
        group: Number of consecutive samples; it divides every micro-batch. None: all samples of a
            micro-batch.
        reduce: Sums over the ranks whose micro-batches together are one group; `group` is not
            heeded then. None: groups lie within a rank.
    """
    for _, norm in _norms(module):
        norm.group, norm.reduce = group, reduce


@contextlib.contextmanager
def tallying(module: nn.Module) -> Iterator[None]:
    """Return a context in which the forward passes of `module` are tallied.

    It holds the forward pass that counts and not the backward pass, in which recomputed blocks run
    a second time.
    """
    norms = [norm for _, norm in _norms(module)]
    for norm in norms:
        norm.is_tallying = True
    try:
        yield
    finally:
        for norm in norms:
            norm.is_tallying = False


@torch.no_grad()
def take_tallies(module: nn.Module) -> dict[str, Tensor]:
    """Return what was tallied since the last call, and clear it.

    Returns:
        Name of each batch normalisation below `module` -> float32 (3, features): the sum of its
        groups' means, the sum of their unbiased variances, and the number of groups. The tallies of
        all ranks are to be added; groups over ranks are then in them once for each rank, and their
        mean is the same.
    """
    taken = {}
    for name, norm in _norms(module):
        taken[name] = norm.tally.clone()
        norm.tally.zero_()
    return taken


@torch.no_grad()
def apply_tallies(module: nn.Module, sums: Mapping[str, Tensor]) -> None:
    """Move the running statistics by one step.

    ``running = (1 - momentum) * running + momentum * mean over the step's groups``, of the means
    and of the unbiased variances. What saw no group stays as it is.

    Args:
        module: As for `take_tallies`.
        sums: What it returned, added over all ranks.
    """
    for name, norm in _norms(module):
        groups = sums[name][2]
        means = sums[name][:2] / groups.clamp(min=1)
        momentum = norm.momentum * (groups > 0)
        for running, mean in zip((norm.running_mean, norm.running_var), means, strict=True):
            running.mul_(1 - momentum).add_(momentum * mean)
        norm.num_batches_tracked += groups[0] > 0


def _norms(module: nn.Module) -> Iterator[tuple[str, BatchNorm]]:
    return ((name, m) for name, m in module.named_modules() if isinstance(m, BatchNorm))
