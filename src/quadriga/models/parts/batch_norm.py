"""Batch normalisation over groups of samples, whose running statistics are updated once a step."""

from __future__ import annotations

from collections.abc import Callable
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

    A forward pass never updates the running statistics, because a step may have several
    micro-batches and may compute a micro-batch twice. While `is_tallying`, it adds the statistics
    of its groups to a tally; `take_tally` and `apply_tally` update the running statistics once a
    step (see `quadriga.contracts.Tallies`).
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    tally: Tensor

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        initial_scale: float = 1.0,
        affine: bool = True,
    ) -> None:
        """Make the module with undefined values.

        Args:
            features: Channels, dimension 1 of the input.
            eps: Added to the variance.
            momentum: Weight of a step's statistics in the new running statistics.
            initial_scale: Initial value of the factors; with 0 a residual branch starts at zero.
            affine: Whether learned factors and offsets follow the normalisation.
        """
        super().__init__()
        self.eps, self.momentum, self.initial_scale = eps, momentum, initial_scale
        self.weight = nn.Parameter(torch.empty(features)) if affine else None
        self.bias = nn.Parameter(torch.empty(features)) if affine else None
        self.register_buffer("running_mean", torch.empty(features))
        self.register_buffer("running_var", torch.empty(features))
        self.register_buffer("num_batches_tracked", torch.empty((), dtype=torch.int64))
        self.register_buffer("tally", torch.empty(3, features), persistent=False)
        self.group: int | None = None
        self.reduce: Reduce | None = None
        self.is_tallying = False
        self.keeps_tally = True

    def fill(self, filler: Filler) -> None:
        """Make the module the identity, or zero for `initial_scale` 0, and its tally empty."""
        for name in filler.names:
            filler.constant(name, 1.0 if name == "running_var" else 0.0)
        if self.weight is not None:
            filler.constant("weight", self.initial_scale)

    def set_groups(self, group: int | None, reduce: Reduce | None) -> None:
        """Set which samples share statistics in training.

        Args:
            group: Number of consecutive samples; it divides every micro-batch. None: all samples
                of a micro-batch.
            reduce: Sums over the ranks whose micro-batches together form one group; `group` is
                then ignored. None: every group is within one rank.
        """
        self.group, self.reduce = group, reduce

    @torch.no_grad()
    def take_tally(self) -> Float[Tensor, "3 features"]:
        """Return the statistics since the last call, and reset them.

        Returns:
            float32: the sum of the groups' means, the sum of their unbiased variances, and the
            number of groups, to be summed over all ranks. A group over several ranks counts once
            per rank, which does not change the mean.
        """
        taken = self.tally.clone()
        self.tally.zero_()
        return taken

    @torch.no_grad()
    def apply_tally(self, sums: Float[Tensor, "3 features"]) -> None:
        """Update the running statistics once.

        ``running = (1 - momentum) * running + momentum * mean over the step's groups``, for the
        means and for the unbiased variances. Without a group nothing changes.

        Args:
            sums: The results of `take_tally`, float32, summed over all ranks.
        """
        groups = sums[2]
        momentum = self.momentum * (groups > 0)
        for running, total in zip((self.running_mean, self.running_var), sums[:2], strict=True):
            running.mul_(1 - momentum).add_(momentum * total / groups.clamp(min=1))
        self.num_batches_tracked += groups[0] > 0

    def forward(
        self,
        inputs: Float[Tensor, "batch features *positions"],
        reduce: Reduce | None = None,
    ) -> Float[Tensor, "batch features *positions"]:
        """Normalise each channel over the samples of a group and their positions.

        Args:
            inputs: Feature vectors or feature maps.
            reduce: As for `set_groups`, for this call only.

        Raises:
            UserError: In training, a group has a single value per channel.
            ValueError: In training, the groups do not divide the batch.
        """
        reduce = reduce or self.reduce
        if self.training and reduce is not None:
            return self._normalise_over_ranks(inputs, reduce)
        if self.training and inputs.shape[0] > 0:
            return self._normalise_groups(inputs)
        return functional.batch_norm(
            inputs, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def _normalise_groups(self, inputs: Tensor) -> Tensor:
        """Normalise each group with torch's kernel, the fastest on each device."""
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
            # With momentum 1 torch writes exactly the group's mean and unbiased variance.
            functional.batch_norm(part, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            for part, mean, var in zip(torch.split(inputs, size), *statistics, strict=True)
        ]
        if self.is_tallying:
            self._add_to_tally(statistics)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _normalise_over_ranks(self, inputs: Tensor, reduce: Reduce) -> Tensor:
        """Normalise the input as this rank's (perhaps empty) share of one group.

        The variance is computed from deviations from the common mean, so that a large mean causes
        no cancellation. The gradient flows back through both sums.
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
        scale = (variance + self.eps).rsqrt()
        if self.weight is None or self.bias is None:
            return (centred * scale.view(shape)).to(inputs.dtype)
        scale = (scale * self.weight).view(shape)
        return torch.addcmul(self.bias.view(shape), centred, scale).to(inputs.dtype)

    @torch.no_grad()
    def _add_to_tally(self, statistics: Float[Tensor, "2 groups features"]) -> None:
        self.tally[:2] += statistics.sum(dim=1)
        self.tally[2] += statistics.shape[1]
