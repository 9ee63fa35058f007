"""The rows of two views of each image, from an encoder and from its teacher."""

from __future__ import annotations

from torch import Tensor

from quadriga import randomness
from quadriga.contracts import Batch
from quadriga.methods.parts.encoders import encode, two_crops
from quadriga.models.resnet import ResNet
from quadriga.models.vit import ViT

VIEWS = ("first", "second")
"""Names of the rows."""


def embed_views(encoder: ViT | ResNet, batch: Batch, method: str) -> dict[str, Tensor]:
    """Encode the two views separately, each with its own random draws.

    Args:
        encoder: In training mode its batch normalisation takes the statistics of each view.
        batch: Has ``crops`` and ``key``.
        method: Name of the method, for error messages.

    Returns:
        Name of each view -> float32 (samples, features).

    Raises:
        UserError: The batch has another number of views.
    """
    return {
        name: encode(encoder, view, randomness.pass_keys(batch["key"], name)).float()
        for name, view in zip(VIEWS, two_crops(batch, method), strict=True)
    }


def teach_views(encoder: ViT | ResNet, batch: Batch, method: str) -> dict[str, Tensor]:
    """Encode the two views with a teacher, which draws nothing; see `embed_views`."""
    return {
        name: encode(encoder, view).float()
        for name, view in zip(VIEWS, two_crops(batch, method), strict=True)
    }
