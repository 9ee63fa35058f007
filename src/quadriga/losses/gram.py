"""Gram anchoring (Siméoni et al., "DINOv3", 2025, arXiv:2508.10104, section 4)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from quadriga.losses.cross_entropy import types_as_written


def gram_distance(
    patches: Float[Tensor, "images patches width"],
    anchors: Float[Tensor, "images patches other_width"],
) -> Float[Tensor, " images"]:
    """Return how far the similarities of each image's patches are from those of the anchors.

    ``|| X X^T - Y Y^T ||_F^2 / patches^2`` with rows of unit length, as in the authors' code: the
    mean over all pairs of patches of the squared difference of their cosines. float32.

    Args:
        patches: Features X of the patches, any length.
        anchors: Features Y of the same patches; they get no gradient.
    """
    with types_as_written(patches.device.type):
        own = functional.normalize(patches.float(), dim=2)
        wanted = functional.normalize(anchors.detach().float(), dim=2)
        difference = own @ own.transpose(1, 2) - wanted @ wanted.transpose(1, 2)
        return difference.square().mean(dim=(1, 2))
