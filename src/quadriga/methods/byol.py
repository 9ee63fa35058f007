"""BYOL (Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, arXiv:2006.07733).

An encoder predicts, from one view of an image, what its moving average makes of another view. No
image is pushed away from another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

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
from quadriga.methods.parts.encoders import encode, image_model
from quadriga.methods.parts.teacher import follow, rising, start, teacher_of
from quadriga.methods.parts.two_views import VIEWS, embed_views, teach_views
from quadriga.models.parts.heads import ProjectionHead
from quadriga.models.parts.initialise import initialise
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig


@final
class BYOLConfig(ObjectiveConfig):
    """Prediction of a moving average of the encoder, without negatives."""

    momentum: float = Field(0.996, ge=0, le=1)
    """Weight of the old moving average in the new one at step 0; rises to 1 along a cosine."""
    hidden_width: int = Field(4096, ge=1, le=2**20)
    """Features of the hidden layers of projector and predictor."""
    output_width: int = Field(256, ge=1, le=2**20)
    """Features of the vectors that are compared."""
    statistics_group: int | None = Field(None, ge=1, le=2**30)
    """Consecutive samples of a step that share statistics in a ResNet's batch normalisation; none:
    each micro-batch. The paper uses statistics of the whole step."""

    def build(self, model: ModelConfig) -> BYOL:
        """Make the objective for a residual network or a vision transformer.

        Raises:
            UserError: `model` is of another kind, or has no statistics for the groups.
        """
        checked = image_model("byol", model, self.statistics_group)
        return with_initial_values(lambda: BYOL(self, checked), BYOL.initialise_all)


@final
class BYOL(PooledObjective):
    """An encoder with projector and predictor, and a moving average of encoder and projector."""

    metric_names = ("embedding_deviation", "teacher_momentum")
    healthy = DEVIATION
    entry_points = ("features",)
    combined_parts = ("projector.", "predictor.")

    def __init__(self, config: BYOLConfig, model: ViTConfig | ResNetConfig) -> None:
        """Make all modules with undefined values."""
        super().__init__()
        self.config, self.statistics_group = config, config.statistics_group
        if isinstance(model, ViTConfig):
            self.tokens_per_sample = len(VIEWS) * model.patches
        self.encoder = model.build()
        hidden, output = config.hidden_width, config.output_width
        self.projector = ProjectionHead((model.width, hidden, output))
        self.predictor = ProjectionHead((output, hidden, output))
        self.teacher_encoder = teacher_of(self.encoder)
        self.teacher_projector = teacher_of(self.projector)
        self.teacher_momentum = config.momentum

    def initialise(self, seed: int) -> None:
        """Fill every tensor: Xavier-uniform linear maps, He-normal convolutions, norms 1 and 0."""
        initialise(self, seed)

    def after_initial_weights(self) -> None:
        """Start the moving average as a copy of the encoder and the projector."""
        for teacher, student in self._followed():
            start(teacher, student)

    def before_step(self, progress: Progress) -> None:
        """Set the momentum with which the moving average follows."""
        self.teacher_momentum = rising(self.config.momentum, progress)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Encode both views."""
        return embed_views(self.encoder, batch, "byol")

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Encode both views with the moving average."""
        return teach_views(self.teacher_encoder, batch, "byol")

    def combine(self, rows: Rows, targets: Rows, slots: Slots) -> LossOutput:
        """Sum the loss of both orders of the views over this rank's images (eq. 2 of the paper).

        ``|| q1 - z2 ||^2 + || q2 - z1 ||^2 = (2 - 2 cos(q1, z2)) + (2 - 2 cos(q2, z1))`` with the
        predictions q and the projections z of the moving average, all of unit length.
        """
        predictions = [
            self.predictor(self.projector(rows[name], slots.sum), slots.sum) for name in VIEWS
        ]
        with torch.no_grad():
            projections = [self.teacher_projector(targets[name], slots.sum) for name in VIEWS]
        cosines = [
            functional.cosine_similarity(q.float(), z.float(), dim=1, eps=1e-12)
            for q, z in zip(predictions, reversed(projections), strict=True)
        ]
        loss = (4 - 2 * cosines[0] - 2 * cosines[1]).sum()
        count = loss.new_full((), len(cosines[0]))
        metrics = {
            "embedding_deviation": (embedding_deviation(projections[0], slots) * count, count),
            "teacher_momentum": (self.teacher_momentum * count, count),
        }
        return LossOutput.of(loss, count, metrics)

    def after_step(
        self, progress: Progress, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> None:
        """Update the moving average with the momentum of this step."""
        for teacher, student in self._followed():
            follow(teacher, student, self.teacher_momentum)

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image from the encoder, which the paper evaluates."""
        return encode(self.encoder, images)

    def _followed(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return (
            (self.teacher_encoder, self.encoder),
            (self.teacher_projector, self.projector),
        )
