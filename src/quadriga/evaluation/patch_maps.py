"""What a vision transformer's patches hold: principal components as colours, and attention.

The first three principal components of the patches of all images, after the final norm, are red,
green and blue (Oquab et al., "DINOv2", 2023, figure 1), each over its range. Attention is that of
the class token to the patches in the last block, the mean of its heads (Caron et al., "DINO", 2021,
figure 1), over its range in each image.
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from quadriga.contracts import EvaluationContext, EvaluationResult, Evaluator, EvaluatorConfig
from quadriga.distributed.collectives import from_main, is_sharded
from quadriga.errors import UserError
from quadriga.evaluation.parts.features import evaluation_mode
from quadriga.evaluation.parts.pictures import (
    chosen_rows,
    principal_components,
    read_images,
    shown,
)
from quadriga.evaluation.parts.tokens import evaluated_network
from quadriga.evaluation.reconstruction import Pixels, draw_grid, save_picture
from quadriga.models.parts.transformer import Attention
from quadriga.models.vit import ViT

FILE = "patch_maps.png"


@final
class PatchMapsConfig(EvaluatorConfig):
    """A picture of patch features and attention, beside the random encoder's patches."""

    images: int = Field(8, ge=1, le=1000)
    """Test images, one a row."""

    def build(self) -> PatchMaps:
        """Make the evaluator."""
        return PatchMaps(self)


@final
class PatchMaps(Evaluator):
    """Draws ``patch_maps.png``; it has no metrics."""

    def __init__(self, config: PatchMapsConfig) -> None:
        """Keep the config."""
        self.config = config

    def check(self, context: EvaluationContext) -> None:
        """Check that there are a vision transformer and a test image.

        Raises:
            UserError: One of these is missing, or the parameters are sharded.
        """
        _network(context.objective)
        if len(context.data("test")) == 0:
            raise UserError(
                "patch_maps needs at least 1 test image, but the split is empty; leave it out"
            )

    def run(self, context: EvaluationContext) -> EvaluationResult:
        """Draw the picture.

        Raises:
            UserError: As `check`, or the picture cannot be written.
        """
        self.check(context)
        titles = from_main(lambda: self._draw(context), context.env)
        caption = f"Test images: {', '.join(titles)}"
        return EvaluationResult("patch_maps", {}, pictures={FILE: caption})

    def _draw(self, context: EvaluationContext) -> list[str]:
        rows = chosen_rows(len(context.data("test")), self.config.images, context)
        images = read_images(context, context.data("test"), rows)
        columns = [("image", shown(images, context))]
        random = context.fresh().to(context.env.device)
        for title, objective in (("patches", context.objective), ("random", random)):
            network = _network(objective)
            with torch.no_grad(), evaluation_mode(objective), context.reduced_precision():
                tokens, attention = last_block(network, images)
            colours = _colours(tokens[:, network.prefix :])
            columns.append((title, _enlarged(colours, images)))
            if title == "patches" and attention is not None:
                columns.append(("attention", _enlarged(attention, images)))
        save_picture(draw_grid(columns), context.output / FILE)
        return [title for title, _ in columns]


def last_block(
    network: ViT, images: Float[Tensor, "batch channels height width"]
) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch patches 1"] | None]:
    """Return the tokens after the final norm, and the attention of the class token to patches.

    The attention, the mean of the heads from 0 to 1 in each image, is None without a class token,
    without blocks, and where queries and keys are turned by their positions.
    """
    tokens = network.with_prefix(network.embed(images))
    weights: Tensor | None = None
    block: Any
    for number, block in enumerate(network.blocks):
        is_last = number == len(network.blocks) - 1
        turned = network.config.positions not in ("sincos", "learned")
        if is_last and network.config.class_token and not turned:
            weights = attention_weights(block.attention, block.attention_norm(tokens))
        tokens = block(tokens)
    if weights is not None:
        weights = _over_range(weights[:, :, 0, network.prefix :].mean(dim=1)[:, :, None], dim=1)
    normed: Tensor = network.norm(tokens)
    return normed, weights


def attention_weights(
    attention: Attention, tokens: Float[Tensor, "batch tokens width"]
) -> Float[Tensor, "batch heads tokens tokens"]:
    """Return how each token weighs every other (Vaswani et al., 2017, equation 1)."""
    batch, length, width = tokens.shape
    size = width // attention.heads
    fused = attention.qkv(tokens).view(batch, length, 3, attention.heads, size)
    query, key, _ = fused.permute(2, 0, 3, 1, 4).unbind(0)
    scores: Tensor = query @ key.transpose(2, 3) / math.sqrt(size)
    return scores.softmax(dim=3)


def _network(objective: Any) -> ViT:
    network = evaluated_network(objective)
    if not isinstance(network, ViT):
        raise UserError(
            f"patch_maps needs a vision transformer as encoder, but {type(objective).__name__} has "
            "another; leave patch_maps out"
        )
    if is_sharded(network.parameters()):
        raise UserError(
            "patch_maps needs whole parameters, but they are sharded; evaluate with "
            "train.parallel=ddp"
        )
    return network


def _colours(patches: Float[Tensor, "batch patches width"]) -> Float[Tensor, "batch patches 3"]:
    count = min(3, patches.shape[2])
    points, _ = principal_components(patches.flatten(0, 1), count)
    scaled = _over_range(points, dim=0).view(*patches.shape[:2], count)
    return torch.nn.functional.pad(scaled, (0, 3 - count))


def _over_range(values: Tensor, dim: int) -> Tensor:
    least, most = values.amin(dim, keepdim=True), values.amax(dim, keepdim=True)
    return (values - least) / (most - least).clamp_min(1e-12)


def _enlarged(maps: Float[Tensor, "batch patches colours"], images: Tensor) -> Pixels:
    """Return maps over the patches, from 0 to 1, as uint8 pictures of the images' size."""
    height, width = images.shape[2:]
    side = math.isqrt(height * width // maps.shape[1])
    grid = maps.view(len(maps), height // side, width // side, -1).expand(-1, -1, -1, 3)
    pixels = (255 * grid).round().to(torch.uint8).cpu().numpy()
    return np.asarray(pixels.repeat(side, axis=1).repeat(side, axis=2))
