"""Image encoders of any architecture, and the views of each image in a batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from quadriga import randomness
from quadriga.contracts import Batch, ModelConfig
from quadriga.errors import UserError
from quadriga.models.resnet import ResNet, ResNetConfig
from quadriga.models.vit import ViT, ViTConfig


def image_model(
    method: str, model: ModelConfig, statistics_group: int | None
) -> ViTConfig | ResNetConfig:
    """Return `model` after checking that it encodes images.

    Args:
        method: Name of the method, for error messages.
        model: Any model.
        statistics_group: The objective's field of that name.

    Raises:
        UserError: The model is of another kind, or the group is set for a model without batch
            normalisation.
    """
    if not isinstance(model, ViTConfig | ResNetConfig):
        raise UserError(
            f"{method} needs model.kind=vit or resnet, but model.kind is {model.kind()}; set it"
        )
    if isinstance(model, ViTConfig) and statistics_group is not None:
        raise UserError(
            f"objective.statistics_group must be none for model.kind=vit, which has no batch "
            f"normalisation, but is {statistics_group}; remove it"
        )
    return model


def encode(
    encoder: ViT | ResNet,
    images: Float[Tensor, "batch channels height width"],
    keys: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch features"]:
    """Return one vector per image; `keys` as for `ViT.encode`, ignored by a ResNet."""
    if isinstance(encoder, ViT):
        return encoder.features(images, keys)
    return encoder.features(images)


def one_view(batch: Batch, method: str) -> Float[Tensor, "batch channels height width"]:
    """Return the only view of each image in a batch.

    Raises:
        UserError: The batch has several views, or no images.
    """
    if "image" not in batch:
        crops = batch["crops"].shape[1] if "crops" in batch else 0
        raise UserError(f"{method} needs 1 view of each image, but has {crops}; set views.crops=1")
    return batch["image"]


def two_crops(
    batch: Batch, method: str
) -> tuple[
    Float[Tensor, "batch channels height width"], Float[Tensor, "batch channels height width"]
]:
    """Return the two views of each image in a batch.

    Raises:
        UserError: The batch has another number of views.
    """
    crops = batch["crops"].shape[1] if "crops" in batch else 1
    if crops != 2:
        raise UserError(
            f"{method} compares 2 views of each image, but has {crops}; set views.crops=2, and "
            "leave held_out, which sees one view, out of evaluation.protocols"
        )
    first, second = batch["crops"].unbind(1)
    return first, second


def encode_local_crops(
    encoder: ViT | ResNet, batch: Batch
) -> list[Float[Tensor, "batch features"]]:
    """Return one vector per image of each of the batch's local crops; none where it has none.

    Vision transformers encode all at once; a ResNet one after another, so that the samples that
    share statistics of its batch normalisation are the same for each crop.
    """
    if "local_crops" not in batch:
        return []
    crops, key = batch["local_crops"], batch["key"]
    if not isinstance(encoder, ViT):
        return [encode(encoder, crop) for crop in crops.unbind(1)]
    keys = [randomness.pass_keys(key, f"local crop {n}") for n in range(crops.shape[1])]
    # Crop by crop, so that the result is cut into views without a copy.
    images = crops.transpose(0, 1).flatten(0, 1)
    return list(encoder.features(images, torch.cat(keys)).chunk(len(keys)))


def patch_model(method: str, model: ModelConfig) -> ViTConfig:
    """Return `model` after checking that it has patches and a class token.

    Raises:
        UserError: The model is no vision transformer, or has no class token.
    """
    if not isinstance(model, ViTConfig):
        raise UserError(f"{method} needs model.kind=vit, but model.kind is {model.kind()}; set it")
    if not model.class_token:
        raise UserError(f"{method} needs model.class_token=true, but it is false; set it")
    return model
