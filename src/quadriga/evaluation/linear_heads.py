"""Several linear classifiers trained at once on the same features, one per learning rate.

The heads see the same batches, so that their weights lie side by side in one matrix and a step
is two matrix products, whatever the number of heads. The gradient of soft-max cross-entropy is
written out; it is ``features^T (softmax(logits) - onehot(labels)) / batch``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from quadriga.distributed.collectives import slice_of
from quadriga.randomness import fold, shuffled

MOMENTUM = 0.9
PREDICT_CHUNK = 16384
"""Samples whose scores are held at once."""


@dataclass(frozen=True)
class Heads:
    """Linear classifiers side by side."""

    weight: Float[Tensor, "width heads_x_classes"]
    bias: Float[Tensor, " heads_x_classes"]
    classes: int

    @property
    def count(self) -> int:
        """Number of heads."""
        return len(self.bias) // self.classes

    def scores(
        self, features: Float[Tensor, "samples width"]
    ) -> Float[Tensor, "samples heads classes"]:
        """Return the logits of every head."""
        logits = torch.addmm(self.bias, features, self.weight)
        return logits.view(len(features), self.count, self.classes)


def cosine(step: int, total: int) -> float:
    """Return the learning-rate factor of a step, from 1 towards 0 (Loshchilov and Hutter, 2017).

    Args:
        step: From 0.
        total: Number of steps.
    """
    return 0.5 * (1.0 + math.cos(math.pi * step / total))


def fit_heads(
    features: Float[Tensor, "samples width"],
    labels: Int[Tensor, " samples"],
    *,
    classes: int,
    learning_rates: Sequence[float],
    epochs: int,
    batch_size: int,
    key: int,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> Heads:
    """Train one head per learning rate by SGD with momentum and a cosine schedule.

    The problem is convex, so that the heads start at zero and nothing is drawn but the order.

    Args:
        features: Standardised float32 features.
        labels: int64 classes, on the same device.
        classes: Number of classes.
        learning_rates: Peak learning rate of each head, for a gradient averaged over the batch.
        epochs: Passes over the samples.
        batch_size: Samples per step at most; an epoch is cut into equal steps.
        key: Key of the samples' order, which is another one in each epoch.
        after_epoch: Told the number of finished epochs.

    Returns:
        The trained heads; one that diverged has non-finite weights.
    """
    samples, width = features.shape
    columns = len(learning_rates) * classes
    weight, bias = features.new_zeros(width, columns), features.new_zeros(columns)
    heads = Heads(weight, bias, classes)
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    rates = features.new_tensor(learning_rates).repeat_interleave(classes)
    steps = math.ceil(samples / batch_size)
    minus_one = features.new_full((1, 1, 1), -1.0)
    for epoch in range(epochs):
        order = torch.from_numpy(shuffled(np.arange(samples), samples, fold(key, epoch)))
        order = order.to(features.device)
        for step in range(steps):
            share = slice_of(samples, step, steps)
            rows = order[share.start : share.stop]
            batch, target = features.index_select(0, rows), labels.index_select(0, rows)
            error = heads.scores(batch).softmax(dim=2)
            target = target[:, None, None].expand(-1, heads.count, 1)
            error.scatter_add_(2, target, minus_one.expand_as(target))
            error = error.view(len(rows), columns).div_(len(rows))
            weight_velocity.mul_(MOMENTUM).addmm_(batch.T, error)
            bias_velocity.mul_(MOMENTUM).add_(error.sum(0))
            factor = cosine(epoch * steps + step, epochs * steps)
            weight.addcmul_(weight_velocity, rates, value=-factor)
            bias.addcmul_(bias_velocity, rates, value=-factor)
        after_epoch(epoch + 1)
    return heads
