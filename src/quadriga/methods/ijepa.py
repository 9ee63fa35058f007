"""I-JEPA (Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
Architecture", CVPR 2023, arXiv:2301.08243).

From the encodings of a part of an image, the context, a narrow transformer predicts what the
teacher, which sees the whole image, makes of other parts of it. No pixels, no augmented views.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import final

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from quadriga import randomness
from quadriga.contracts import (
    Batch,
    LossOutput,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    Progress,
    with_initial_values,
)
from quadriga.errors import UserError, nearest_divisors, nearest_multiples
from quadriga.methods.parts.encoders import one_view
from quadriga.methods.parts.multi_block import Blocks, BlockSizes, draw_blocks
from quadriga.methods.parts.teacher import follow, start, teacher_of
from quadriga.models.parts.initialise import Filler, initialise
from quadriga.models.parts.patches import take_rows
from quadriga.models.parts.positions import sincos_table
from quadriga.models.parts.transformer import Block, BlockShape
from quadriga.models.vit import ViT, ViTConfig


@final
class IJEPAConfig(ObjectiveConfig):
    """Prediction of a teacher's patch features in four blocks of the image."""

    predictor_width: int = Field(384, ge=4, le=2**20)
    """Features of a token in the predictor."""
    predictor_depth: int = Field(12, ge=1, le=10_000)
    """Blocks of the predictor."""
    predictor_heads: int = Field(16, ge=1, le=10_000)
    """Attention heads of the predictor."""
    momentum: float = Field(0.996, ge=0, le=1)
    """Weight of the old teacher in the new one at step 0; it rises linearly to 1."""

    @model_validator(mode="after")
    def _fields_agree(self) -> IJEPAConfig:
        width = self.predictor_width
        if width % 4:
            raise ValueError(
                f"predictor_width must be a multiple of 4, but is {width}; "
                + nearest_multiples(width, 4)
            )
        if width % self.predictor_heads:
            raise ValueError(
                f"predictor_heads must divide predictor_width ({width}), but is "
                f"{self.predictor_heads}; " + nearest_divisors(self.predictor_heads, width)
            )
        return self

    def build(self, model: ModelConfig) -> IJEPA:
        """Make the objective for a vision transformer.

        Raises:
            UserError: `model` is of another kind, or its grid has no room for blocks.
        """
        if not isinstance(model, ViTConfig):
            raise UserError(f"ijepa needs model.kind=vit, but model.kind is {model.kind()}")
        if model.grid < 3:
            raise UserError(
                f"ijepa needs at least 3 x 3 patches, but has {model.grid} x {model.grid}; lower "
                f"model.patch_px ({model.patch_px})"
            )
        return with_initial_values(lambda: IJEPA(self, model), IJEPA.initialise_all)


@final
class Predictor(nn.Module):
    """Predicts patch features at given places from the encodings of others."""

    positions: Tensor

    def __init__(self, config: IJEPAConfig, model: ViTConfig) -> None:
        """Make the predictor with undefined values."""
        super().__init__()
        width = config.predictor_width
        self.grid = model.grid
        self.embed = nn.Linear(model.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.register_buffer("positions", torch.empty(model.patches, width))
        shape = BlockShape(
            width=width,
            heads=config.predictor_heads,
            mlp_width=int(width * model.mlp_ratio),
            qkv_bias=model.qkv_bias,
            norm_eps=model.norm_eps,
        )
        # Numbered after the encoder's blocks, so that no two blocks of the model share a number.
        first = model.depth
        self.blocks = nn.ModuleList(Block(shape, first + i) for i in range(config.predictor_depth))
        self.norm = nn.LayerNorm(width, eps=model.norm_eps)
        self.output = nn.Linear(width, model.width)

    def fill(self, filler: Filler) -> None:
        """Draw the mask token from a truncated N(0, 0.02^2); compute the table of positions."""
        filler.truncated_normal("mask_token")
        filler.copy("positions", sincos_table(self.grid, self.grid, self.positions.shape[1]))

    def forward(
        self, codes: Float[Tensor, "batch most encoder_width"], blocks: Blocks
    ) -> Float[Tensor, "batch targets patches encoder_width"]:
        """Predict each target block by itself: its tokens do not see those of the others.

        Args:
            codes: Encoded patches in the order of ``blocks.context``.
            blocks: Where the patches are.
        """
        count, most = blocks.targets.shape[1], codes.shape[1]
        context = self.embed(codes) + functional.embedding(blocks.context, self.positions)
        asked = self.mask_token + functional.embedding(blocks.targets, self.positions)
        tokens = torch.cat([context.repeat_interleave(count, 0), asked.flatten(0, 1)], dim=1)
        is_seen = blocks.present.repeat_interleave(count, 0)
        is_seen = functional.pad(is_seen, (0, asked.shape[2]), value=True)[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, is_seen)
        features: Tensor = self.output(self.norm(tokens[:, most:]))
        return features.reshape(*blocks.targets.shape[:2], *features.shape[1:])


@final
class IJEPA(Objective):
    """An encoder, its teacher, and a predictor."""

    metric_names = ("context", "teacher_momentum")
    healthy = MappingProxyType({"embedding_deviation": (0.02, float("inf"))})
    # Lower than for methods of several views: most of a mean over patches is alike for all images,
    # and the deviation first falls to a third, while the positions are learned.
    entry_points = ("features",)

    def __init__(self, config: IJEPAConfig, model: ViTConfig) -> None:
        """Make all modules with undefined values."""
        super().__init__()
        self.config = config
        self.grid = (model.grid, model.grid)
        self.tokens_per_sample = model.patches
        self.encoder = model.build()
        self.teacher_encoder = teacher_of(self.encoder)
        self.predictor = Predictor(config, model)
        self.sizes = BlockSizes.draw(0, self.grid)
        self.teacher_momentum = config.momentum

    def initialise(self, seed: int) -> None:
        """Fill every tensor: linear maps and tokens from a truncated N(0, 0.02^2)."""
        initialise(self, seed, "truncated_normal")

    def after_initial_weights(self) -> None:
        """Start the teacher as a copy of the encoder."""
        start(self.teacher_encoder, self.encoder)

    def before_step(self, progress: Progress) -> None:
        """Draw the sizes of the step's blocks and set the momentum."""
        self.sizes = BlockSizes.draw(progress.step, self.grid)
        first, over = self.config.momentum, progress.step / max(1, progress.total_steps)
        self.teacher_momentum = first + (1.0 - first) * over

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of the sum of the teacher's embeddings, and of their number."""
        return {"embeddings": (self.encoder.config.width,), "images": (1,)}

    def forward(self, batch: Batch) -> LossOutput:
        """Sum the loss over the images: section 3 of the paper.

        ``loss = mean over the blocks, their patches j and the features of d(s_j - t_j)`` with the
        predictions s, and the teacher's features t, of which each patch has mean 0 and variance 1.
        ``d`` is the smooth L1 distance of the reference implementation,
        ``d(e) = e^2 / 2 for |e| < 1, else |e| - 1 / 2``; the paper says the squared distance.

        Args:
            batch: ``image``, normalised, and ``key``, from which blocks and drop path are drawn.
        """
        images, key = one_view(batch, "ijepa"), batch["key"]
        blocks = draw_blocks(key, self.grid, self.sizes)
        with torch.no_grad():
            seen = self.teacher_encoder(images)[:, self.encoder.prefix :].float()
            features = functional.layer_norm(seen, seen.shape[-1:])
            wanted = take_rows(features, blocks.targets.flatten(1))
            # Of unit length, so that their mean over the step says whether they differ.
            unit = functional.normalize(features.mean(dim=1), dim=1)
        pixels = self.encoder.patches(images)
        taken = self.encoder.embed_patches(take_rows(pixels, blocks.context), blocks.context)
        keys = randomness.pass_keys(key, "context")
        codes = self.encoder.encode(taken, keys, blocks.present)[:, self.encoder.prefix :]
        predicted = self.predictor(codes, blocks).flatten(1, 2).float()
        loss = functional.smooth_l1_loss(predicted, wanted, reduction="sum")
        loss = loss / (wanted.shape[1] * wanted.shape[2])
        count = loss.new_full((), len(key))
        metrics = {
            "context": (blocks.present.sum().to(loss.dtype), count),
            "teacher_momentum": (self.teacher_momentum * count, count),
        }
        sums = {"embeddings": unit.sum(dim=0), "images": count[None]}
        return LossOutput.of(loss, count, metrics)._replace(sums=sums)

    def after_step(
        self, progress: Progress, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Let the teacher follow the encoder; return the deviation of its embeddings.

        The deviation is that of `embedding_deviation`, of the means over the patches.
        """
        follow(self.teacher_encoder, self.encoder, self.teacher_momentum)
        mean = sums["embeddings"] / sums["images"]
        return {"embedding_deviation": (1.0 - mean.square().sum()).clamp_min(0.0).sqrt()}

    @property
    def features_of(self) -> ViT:
        """The teacher's encoder, which the paper evaluates."""
        return self.teacher_encoder

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch width"]:
        """Return one vector per image from the teacher's encoder, pooled as the model says."""
        return self.teacher_encoder.features(images)
