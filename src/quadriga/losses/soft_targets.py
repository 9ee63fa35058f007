"""Classification losses against smoothed and mixed labels, without a matrix of targets."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Criterion = Literal["cross_entropy", "binary_cross_entropy"]


def soft_target_loss(
    scores: Float[Tensor, "batch classes"],
    label: Int[Tensor, " batch"],
    mixed_label: Int[Tensor, " batch"] | None = None,
    share: Float[Tensor, " batch"] | None = None,
    smoothing: float = 0.0,
    criterion: Criterion = "cross_entropy",
) -> Float[Tensor, ""]:
    """Return the sum of the samples' losses, float32.

    Cross-entropy: against ``q = share * onehot(label) + (1 - share) * onehot(mixed_label)``,
    smoothed to ``(1 - smoothing) * q + smoothing / classes`` (Szegedy et al., 2016, section 7;
    Zhang et al., "mixup", 2018). Binary cross-entropy: the mean over the classes, with target 1 for
    each class with a positive share (Wightman et al., 2021; Touvron et al., "DeiT III", 2022),
    smoothed in the same way.

    Args:
        scores: Logits of any floating dtype.
        label: int64 class of each sample.
        mixed_label: int64 class of the image mixed in, together with `share`; None without mixing.
        share: Weight of `label`, from 0 to 1.
        smoothing: Mass that is spread over all classes, in [0, 1).
        criterion: Which of the two losses.
    """
    scores = scores.float()
    if criterion == "binary_cross_entropy":
        return _binary(scores, label, mixed_label, share, smoothing)
    logs = functional.log_softmax(scores, dim=1)
    right = logs.gather(1, label[:, None])[:, 0]
    if mixed_label is not None and share is not None:
        right = share * right + (1 - share) * logs.gather(1, mixed_label[:, None])[:, 0]
    loss = -(1 - smoothing) * right.sum()
    if smoothing > 0:
        loss = loss - smoothing * logs.mean(dim=1).sum()
    return loss


def _binary(
    scores: Tensor,
    label: Tensor,
    mixed_label: Tensor | None,
    share: Tensor | None,
    smoothing: float,
) -> Tensor:
    targets = torch.zeros_like(scores)
    targets.scatter_(1, label[:, None], 1.0)
    if mixed_label is not None and share is not None:
        mixed_in = (share < 1).to(targets.dtype)
        targets.scatter_reduce_(1, mixed_label[:, None], mixed_in[:, None], "amax")
        own = (share > 0).to(targets.dtype)
        # A label with share 0 has target 0, unless the other image has the same label.
        kept = torch.maximum(own, mixed_in * (label == mixed_label))
        targets.scatter_(1, label[:, None], kept[:, None])
    targets = (1 - smoothing) * targets + smoothing / scores.shape[1]
    losses = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return losses.mean(dim=1).sum()
