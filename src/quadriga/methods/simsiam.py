"""SimSiam (Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021,
arXiv:2011.10566).

An encoder predicts, from one view of an image, its own output for another view, to which no
gradient flows. There is no teacher and there are no negatives.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from quadriga.contracts import (
    Batch,
    LossOutput,
    ModelConfig,
    ObjectiveConfig,
    PooledObjective,
    Rows,
    with_initial_values,
)
from quadriga.distributed.slots import Slots
from quadriga.methods.parts.collapse import DEVIATION, embedding_deviation
from quadriga.methods.parts.encoders import encode, image_model
from quadriga.methods.parts.two_views import VIEWS, embed_views
from quadriga.models.parts.heads import ProjectionHead
from quadriga.models.parts.initialise import initialise
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig


@final
class SimSiamConfig(ObjectiveConfig):
    """Prediction of the encoder's own output for another view, with a stopped gradient."""

    output_width: int = Field(2048, ge=1, le=2**20)
    """Features of the projector's layers and of the vectors that are compared."""
    hidden_width: int = Field(512, ge=1, le=2**20)
    """Features of the predictor's hidden layer, a quarter of `output_width` in the paper."""
    statistics_group: int | None = Field(None, ge=1, le=2**30)
    """Consecutive samples of a step that share statistics in a ResNet's batch normalisation; none:
    each micro-batch. The paper uses statistics of the whole step."""

    def build(self, model: ModelConfig) -> SimSiam:
        """Make the objective for a residual network or a vision transformer.

        Raises:
            UserError: `model` is of another kind, or has no statistics for the groups.
        """
        checked = image_model("simsiam", model, self.statistics_group)
        return with_initial_values(lambda: SimSiam(self, checked), SimSiam.initialise_all)


@final
class SimSiam(PooledObjective):
    """An encoder with projector and predictor."""

    metric_names = ("embedding_deviation",)
    healthy = MappingProxyType({**DEVIATION, "loss": (-0.98, math.inf)})
    # Normalisation over the step keeps projections apart where the encoder's output is a point; the
    # loss then goes to -1, which that of a healthy run does not reach.
    entry_points = ("features",)
    combined_parts = ("projector.", "predictor.")

    def __init__(self, config: SimSiamConfig, model: ViTConfig | ResNetConfig) -> None:
        """Make all modules with undefined values."""
        super().__init__()
        self.config, self.statistics_group = config, config.statistics_group
        if isinstance(model, ViTConfig):
            self.tokens_per_sample = len(VIEWS) * model.patches
        self.encoder = model.build()
        output = config.output_width
        self.projector = ProjectionHead((model.width, output, output, output), last_norm=True)
        self.predictor = ProjectionHead((output, config.hidden_width, output), last_bias=True)

    def initialise(self, seed: int) -> None:
        """Fill every tensor: Xavier-uniform linear maps, He-normal convolutions, norms 1 and 0."""
        initialise(self, seed)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Encode both views."""
        return embed_views(self.encoder, batch, "simsiam")

    def combine(self, rows: Rows, targets: Rows, slots: Slots) -> LossOutput:
        """Sum the loss over this rank's images: algorithm 1 of the paper.

        ``D(p1, z2) / 2 + D(p2, z1) / 2`` with ``D(p, z) = -cos(p, z)``, the projections z without
        gradient and the predictions p = predictor(z).
        """
        projections = [self.projector(rows[name], slots.sum) for name in VIEWS]
        predictions = [self.predictor(z, slots.sum) for z in projections]
        cosines = [
            functional.cosine_similarity(p.float(), z.detach().float(), dim=1, eps=1e-12)
            for p, z in zip(predictions, reversed(projections), strict=True)
        ]
        loss = -(cosines[0] + cosines[1]).sum() / 2
        count = loss.new_full((), len(cosines[0]))
        spread = embedding_deviation(projections[0], slots)
        return LossOutput.of(loss, count, {"embedding_deviation": (spread * count, count)})

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image from the encoder."""
        return encode(self.encoder, images)
