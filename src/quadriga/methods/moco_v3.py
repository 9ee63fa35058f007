"""MoCo v3 (Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision
Transformers", ICCV 2021, arXiv:2104.02057).

An encoder and its momentum encoder embed two views of each image. The loss pulls the encoder's
prediction for one view towards the momentum encoder's embedding of the other view, and away from
the momentum encoder's embeddings of all other images of the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from quadriga import randomness
from quadriga.contracts import (
    Batch,
    LossOutput,
    ModelConfig,
    ObjectiveConfig,
    PooledObjective,
    Progress,
    Rows,
    with_initial_values,
)
from quadriga.distributed.slots import Slots
from quadriga.methods.parts.collapse import DEVIATION, embedding_deviation
from quadriga.methods.parts.encoders import encode, image_model, two_crops
from quadriga.methods.parts.teacher import follow, rising, start, teacher_of
from quadriga.models.parts.heads import ProjectionHead
from quadriga.models.parts.initialise import initialise
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViT, ViTConfig

_VIEWS = ("first", "second")


@final
class MoCoV3Config(ObjectiveConfig):
    """Contrastive learning against a momentum encoder, with the step's images as negatives."""

    temperature: float = Field(0.2, gt=0, le=1e3)
    """Temperature of the logits; the default is the paper's value for a ViT (1 for a ResNet)."""
    momentum: float = Field(0.99, ge=0, le=1)
    """Weight of the old momentum encoder in the new one at step 0; rises to 1 along a cosine."""
    hidden_width: int = Field(4096, ge=1, le=2**20)
    """Features of the hidden layers of projector and predictor."""
    output_width: int = Field(256, ge=1, le=2**20)
    """Features of the vectors that are compared."""
    freeze_patches: bool = True
    """Whether a ViT's patch projection is not trained (section 4.2 of the paper)."""
    statistics_group: int | None = Field(None, ge=1, le=2**30)
    """Consecutive samples of a step that share statistics in a ResNet's batch normalisation; none:
    each micro-batch. The paper uses statistics of the whole step."""

    def build(self, model: ModelConfig) -> MoCoV3:
        """Make the objective for a vision transformer or a residual network.

        Raises:
            UserError: `model` is of another kind, or has no statistics for the groups.
        """
        checked = image_model("moco_v3", model, self.statistics_group)
        return with_initial_values(lambda: MoCoV3(self, checked), MoCoV3.initialise_all)


@final
class MoCoV3(PooledObjective):
    """An encoder with projector and predictor, and their momentum encoder and projector."""

    metric_names = ("accuracy", "embedding_deviation", "teacher_momentum")
    healthy = DEVIATION
    entry_points = ("features",)
    combined_parts = ("projector.", "predictor.")

    def __init__(self, config: MoCoV3Config, model: ViTConfig | ResNetConfig) -> None:
        """Make all modules with undefined values.

        Projector and predictor follow the reference implementation. ViT: three and two linear
        maps, both with a final normalisation. ResNet: two and two linear maps, only the projector
        with a final normalisation.
        """
        super().__init__()
        self.config, self.statistics_group = config, config.statistics_group
        hidden, output = config.hidden_width, config.output_width
        self.encoder = model.build()
        is_vit = isinstance(model, ViTConfig)
        if isinstance(model, ViTConfig):
            self.tokens_per_sample = len(_VIEWS) * model.patches
        inner = (hidden, hidden) if is_vit else (hidden,)
        self.projector = ProjectionHead((model.width, *inner, output), last_norm=True)
        self.predictor = ProjectionHead((output, hidden, output), last_norm=is_vit)
        if isinstance(self.encoder, ViT) and config.freeze_patches:
            self.encoder.patch_projection.requires_grad_(False)
        self.teacher_encoder = teacher_of(self.encoder)
        self.teacher_projector = teacher_of(self.projector)
        self.teacher_momentum = config.momentum

    def initialise(self, seed: int) -> None:
        """Fill every tensor: Xavier-uniform linear maps, tokens N(0, 0.02^2), norms 1 and 0."""
        initialise(self, seed)

    def after_initial_weights(self) -> None:
        """Start the momentum encoder as a copy of the encoder."""
        for teacher, student in self._followed():
            start(teacher, student)

    def before_step(self, progress: Progress) -> None:
        """Set the momentum with which the momentum encoder follows."""
        self.teacher_momentum = rising(self.config.momentum, progress)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Encode both views."""
        return {
            name: encode(self.encoder, view, randomness.pass_keys(batch["key"], name)).float()
            for name, view in zip(_VIEWS, two_crops(batch, "moco_v3"), strict=True)
        }

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Encode both views with the momentum encoder."""
        return {
            name: encode(self.teacher_encoder, view).float()
            for name, view in zip(_VIEWS, two_crops(batch, "moco_v3"), strict=True)
        }

    def combine(self, rows: Rows, targets: Rows, slots: Slots) -> LossOutput:
        """Sum the loss of both views over this rank's images: algorithm 1 of the paper.

        ``ctr(q1, k2) + ctr(q2, k1)`` with the queries q of the predictor and the keys k of the
        momentum projector, of all ranks.
        """
        queries = [
            self.predictor(self.projector(rows[name], slots.sum), slots.sum) for name in _VIEWS
        ]
        with torch.no_grad():
            keys = [self.teacher_projector(targets[name], slots.sum) for name in _VIEWS]
        first, first_hits = self._contrast(queries[0], keys[1], slots)
        second, second_hits = self._contrast(queries[1], keys[0], slots)
        count = first.new_full((), len(queries[0]))
        metrics = {
            "accuracy": ((first_hits + second_hits) / 2, count),
            "embedding_deviation": (embedding_deviation(keys[0], slots) * count, count),
            "teacher_momentum": (self.teacher_momentum * count, count),
        }
        return LossOutput.of(first + second, count, metrics)

    def _contrast(
        self, queries: Float[Tensor, "rows width"], keys: Float[Tensor, "rows width"], slots: Slots
    ) -> tuple[Tensor, Tensor]:
        """Return eq. 1 of the paper times 2 * temperature, summed, and the number of hits."""
        temperature = self.config.temperature
        queries = functional.normalize(queries.float(), dim=1)
        keys = slots.gather(functional.normalize(keys.float(), dim=1))
        logits = queries @ keys.t() / temperature
        own = slots.own.to(logits.device)
        loss = functional.cross_entropy(logits, own, reduction="sum")
        hits = (logits.detach().argmax(dim=1) == own).sum().to(loss.dtype)
        return 2 * temperature * loss, hits

    def after_step(
        self, progress: Progress, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> None:
        """Update the momentum encoder and projector."""
        for teacher, student in self._followed():
            follow(teacher, student, self.teacher_momentum)

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image from the encoder, not its momentum encoder."""
        return encode(self.encoder, images)

    def _followed(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return (
            (self.teacher_encoder, self.encoder),
            (self.teacher_projector, self.projector),
        )
