"""Barlow Twins (Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
ICML 2021, arXiv:2103.03230).

The features of two views of each image are correlated over the images of a step. Each feature is
to agree with itself and with no other.
"""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

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
from quadriga.losses.cross_entropy import types_as_written
from quadriga.methods.parts.encoders import encode, image_model
from quadriga.methods.parts.two_views import VIEWS, embed_views
from quadriga.models.parts.heads import ProjectionHead
from quadriga.models.parts.initialise import initialise
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig


@final
class BarlowTwinsConfig(ObjectiveConfig):
    """Decorrelation of features, without negatives, teacher and predictor."""

    redundancy_weight: float = Field(0.0051, ge=0, le=1e6)
    """Weight of the correlations between different features, lambda in the paper."""
    hidden_width: int = Field(8192, ge=1, le=2**20)
    """Features of the projector's two hidden layers."""
    output_width: int = Field(8192, ge=1, le=2**16)
    """Features that are correlated; the matrix has as many rows and columns."""
    statistics_group: int | None = Field(None, ge=1, le=2**30)
    """Consecutive samples of a step that share statistics in a ResNet's batch normalisation; none:
    each micro-batch. The paper uses statistics of the whole step."""

    def build(self, model: ModelConfig) -> BarlowTwins:
        """Make the objective for a residual network or a vision transformer.

        Raises:
            UserError: `model` is of another kind, or has no statistics for the groups.
        """
        checked = image_model("barlow_twins", model, self.statistics_group)
        return with_initial_values(lambda: BarlowTwins(self, checked), BarlowTwins.initialise_all)


@final
class BarlowTwins(PooledObjective):
    """An encoder with a projector."""

    metric_names = ("invariance", "redundancy")
    entry_points = ("features",)
    combined_parts = ("projector.",)

    def __init__(self, config: BarlowTwinsConfig, model: ViTConfig | ResNetConfig) -> None:
        """Make all modules with undefined values."""
        super().__init__()
        self.config, self.statistics_group = config, config.statistics_group
        if isinstance(model, ViTConfig):
            self.tokens_per_sample = len(VIEWS) * model.patches
        self.encoder = model.build()
        hidden = config.hidden_width
        widths = (model.width, hidden, hidden, config.output_width)
        self.projector = ProjectionHead(widths, last_norm=True)

    def initialise(self, seed: int) -> None:
        """Fill every tensor: Xavier-uniform linear maps, He-normal convolutions, norms 1 and 0."""
        initialise(self, seed)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Encode both views."""
        return embed_views(self.encoder, batch, "barlow_twins")

    def combine(self, rows: Rows, targets: Rows, slots: Slots) -> LossOutput:
        """Return the loss of the step: eq. 1 and 2 of the paper.

        ``sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2`` with ``C = Z1^T Z2 / N``. The N
        rows of Z1 and Z2 are the projections of each view, each feature with mean 0 and deviation
        1 over the step.
        """
        first, second = (self.projector(rows[name], slots.sum).float() for name in VIEWS)
        with types_as_written(first.device.type):
            correlations = slots.sum(first.t() @ second) / slots.total
        diagonal = correlations.diagonal()
        invariance = (1 - diagonal).square().sum()
        redundancy = correlations.square().sum() - diagonal.square().sum()
        loss = invariance + self.config.redundancy_weight * redundancy
        once = loss.new_ones(())
        metrics = {
            "invariance": (invariance.detach(), once),
            "redundancy": (redundancy.detach(), once),
        }
        return LossOutput.of(loss, once, metrics)

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image from the encoder."""
        return encode(self.encoder, images)
