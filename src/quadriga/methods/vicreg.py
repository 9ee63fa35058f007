"""VICReg (Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for
Self-Supervised Learning", ICLR 2022, arXiv:2105.04906).

The embeddings of two views of each image are pulled together, while each feature keeps its spread
over the images of a step and different features are decorrelated.
"""

from __future__ import annotations

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
from quadriga.losses.cross_entropy import types_as_written
from quadriga.methods.parts.encoders import encode, image_model
from quadriga.methods.parts.two_views import VIEWS, embed_views
from quadriga.models.parts.heads import ProjectionHead
from quadriga.models.parts.initialise import initialise
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

_EPS = 1e-4
"""Added to variances before their roots (section 4.1 of the paper)."""


@final
class VICRegConfig(ObjectiveConfig):
    """Invariance, variance and covariance of embeddings, without negatives and teacher."""

    invariance_weight: float = Field(25.0, ge=0, le=1e6)
    """Weight of the squared distance between the views, lambda in the paper."""
    variance_weight: float = Field(25.0, ge=0, le=1e6)
    """Weight of the hinge on the deviations of the features, mu in the paper."""
    covariance_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the covariances between different features, nu in the paper."""
    hidden_width: int = Field(8192, ge=1, le=2**20)
    """Features of the projector's two hidden layers."""
    output_width: int = Field(8192, ge=1, le=2**16)
    """Features of the embeddings; the covariance matrix has as many rows and columns."""
    statistics_group: int | None = Field(None, ge=1, le=2**30)
    """Consecutive samples of a step that share statistics in a ResNet's batch normalisation; none:
    each micro-batch. The paper uses statistics of the whole step."""

    def build(self, model: ModelConfig) -> VICReg:
        """Make the objective for a residual network or a vision transformer.

        Raises:
            UserError: `model` is of another kind, or has no statistics for the groups.
        """
        checked = image_model("vicreg", model, self.statistics_group)
        return with_initial_values(lambda: VICReg(self, checked), VICReg.initialise_all)


@final
class VICReg(PooledObjective):
    """An encoder with a projector, the paper's expander."""

    metric_names = ("invariance", "variance", "covariance")
    entry_points = ("features",)
    combined_parts = ("projector.",)

    def __init__(self, config: VICRegConfig, model: ViTConfig | ResNetConfig) -> None:
        """Make all modules with undefined values."""
        super().__init__()
        self.config, self.statistics_group = config, config.statistics_group
        if isinstance(model, ViTConfig):
            self.tokens_per_sample = len(VIEWS) * model.patches
        self.encoder = model.build()
        hidden = config.hidden_width
        self.projector = ProjectionHead((model.width, hidden, hidden, config.output_width))

    def initialise(self, seed: int) -> None:
        """Fill every tensor: Xavier-uniform linear maps, He-normal convolutions, norms 1 and 0."""
        initialise(self, seed)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Encode both views."""
        return embed_views(self.encoder, batch, "vicreg")

    def combine(self, rows: Rows, targets: Rows, slots: Slots) -> LossOutput:
        """Return the loss of the step: eq. 6 of the paper as in its algorithm 1.

        ``lambda s(Z1, Z2) + mu (v(Z1) + v(Z2)) / 2 + nu (c(Z1) + c(Z2))`` with the embeddings Z of
        each view, of N images and D features::

            s = sum of (Z1 - Z2)^2 / (N D)
            v(Z) = sum_j max(0, 1 - sqrt(Var(Z)_jj + 1e-4)) / D
            c(Z) = sum_i sum_{j != i} Var(Z)_ij^2 / D        Var(Z) = Zc^T Zc / (N - 1)

        and Zc = Z minus its mean over the step. A single image has variances and covariances of 0.
        """
        first, second = (self.projector(rows[name], slots.sum).float() for name in VIEWS)
        width = first.shape[1]
        distance = slots.sum((first - second).square().sum()) / (slots.total * width)
        variances, covariances = zip(*(_spread(z, slots) for z in (first, second)), strict=True)
        terms = {
            "invariance": distance,
            "variance": (variances[0] + variances[1]) / 2,
            "covariance": covariances[0] + covariances[1],
        }
        config = self.config
        loss = (
            config.invariance_weight * terms["invariance"]
            + config.variance_weight * terms["variance"]
            + config.covariance_weight * terms["covariance"]
        )
        once = loss.new_ones(())
        return LossOutput.of(loss, once, {n: (term.detach(), once) for n, term in terms.items()})

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image from the encoder."""
        return encode(self.encoder, images)


def _spread(rows: Float[Tensor, "rows width"], slots: Slots) -> tuple[Tensor, Tensor]:
    """Return v and c of the embeddings of one view; see `VICReg.combine`."""
    centred = rows - slots.sum(rows.sum(dim=0)) / slots.total
    with types_as_written(rows.device.type):
        covariances = slots.sum(centred.t() @ centred) / max(1, slots.total - 1)
    variances = covariances.diagonal()
    hinge = functional.relu(1 - (variances + _EPS).sqrt()).mean()
    others = covariances.square().sum() - variances.square().sum()
    return hinge, others / rows.shape[1]
