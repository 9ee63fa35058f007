"""LeJEPA (Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without
the Heuristics", 2025, arXiv:2511.08544).

All views of an image are pulled to the centre of its large ones, while the embeddings of each view
are held to an isotropic Gaussian. There is no teacher, no predictor and no stop-gradient.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

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
from quadriga.losses.sigreg import epps_pulley, slices
from quadriga.methods.parts.collapse import DEVIATION, embedding_deviation
from quadriga.methods.parts.encoders import encode, encode_local_crops, image_model
from quadriga.methods.parts.two_views import VIEWS, embed_views
from quadriga.models.parts.heads import ProjectionHead
from quadriga.models.parts.initialise import initialise
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig


@final
class LeJEPAConfig(ObjectiveConfig):
    """Invariance of views, and Gaussian embeddings."""

    gaussian_weight: float = Field(0.05, ge=0, le=1)
    """Weight of the regularisation, lambda in the paper; the invariance has the rest to 1."""
    slices: int = Field(1024, ge=1, le=2**20)
    """Random directions of a step."""
    knots: int = Field(17, ge=2, le=10_000)
    """Frequencies at which characteristic functions are compared."""
    highest_frequency: float = Field(3.0, gt=0, le=1e3)
    """The largest of them; the smallest is 0."""
    hidden_width: int = Field(2048, ge=1, le=2**20)
    """Features of the projector's two hidden layers."""
    output_width: int = Field(128, ge=1, le=2**16)
    """Features of the embeddings."""
    statistics_group: int | None = Field(None, ge=1, le=2**30)
    """Consecutive samples of a step that share statistics in a ResNet's batch normalisation; none:
    each micro-batch."""

    def build(self, model: ModelConfig) -> LeJEPA:
        """Make the objective for a residual network or a vision transformer.

        Raises:
            UserError: `model` is of another kind, or has no statistics for the groups.
        """
        checked = image_model("lejepa", model, self.statistics_group)
        return with_initial_values(lambda: LeJEPA(self, checked), LeJEPA.initialise_all)


@final
class LeJEPA(PooledObjective):
    """An encoder with a projector."""

    metric_names = ("invariance", "gaussian", "embedding_deviation")
    healthy = DEVIATION
    entry_points = ("features",)
    combined_parts = ("projector.",)

    def __init__(self, config: LeJEPAConfig, model: ViTConfig | ResNetConfig) -> None:
        """Make all modules with undefined values."""
        super().__init__()
        self.config, self.statistics_group = config, config.statistics_group
        if isinstance(model, ViTConfig):
            self.tokens_per_sample = len(VIEWS) * model.patches
        self.encoder = model.build()
        hidden = config.hidden_width
        self.projector = ProjectionHead(
            (model.width, hidden, hidden, config.output_width), last_bias=True
        )
        self.step = 0

    def initialise(self, seed: int) -> None:
        """Fill every tensor: Xavier-uniform linear maps, He-normal convolutions, norms 1 and 0."""
        initialise(self, seed)

    def before_step(self, progress: Progress) -> None:
        """Remember the step, from which the directions are drawn."""
        self.step = progress.step

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Encode all views: ``views`` is (samples, views, features), the two large ones first."""
        large = embed_views(self.encoder, batch, "lejepa")
        small = [view.float() for view in encode_local_crops(self.encoder, batch)]
        return {"views": torch.stack([*large.values(), *small], dim=1)}

    def combine(self, rows: Rows, targets: Rows, slots: Slots) -> LossOutput:
        """Return the loss of the step: eq. 8 of the paper as in its algorithm 2.

        ``(1 - lambda) P + lambda R`` with the embeddings z_nv of N images in V views and D
        features, of which the first 2 views are large::

            P = sum_n sum_v |m_n - z_nv|^2 / (N V D)      m_n = (z_n1 + z_n2) / 2
            R = sum_v EppsPulley(z_1v, ..., z_Nv) / V

        where R is the mean over the step's random directions (`epps_pulley`).
        """
        views, config = rows["views"], self.config
        flat = self.projector(views.flatten(0, 1), slots.sum).float()
        embeddings = flat.unflatten(0, views.shape[:2])
        centre = embeddings[:, : len(VIEWS)].mean(dim=1, keepdim=True)
        per_image = (centre - embeddings).square().mean(dim=(1, 2))
        invariance = slots.sum(per_image.sum()) / slots.total
        directions = slices(self.step, config.output_width, config.slices, flat.device)
        gaussian = epps_pulley(
            embeddings, directions, config.knots, config.highest_frequency, slots.sum, slots.total
        )
        loss = (1 - config.gaussian_weight) * invariance + config.gaussian_weight * gaussian
        once = loss.new_ones(())
        metrics = {
            "invariance": (invariance.detach(), once),
            "gaussian": (gaussian.detach(), once),
            "embedding_deviation": (embedding_deviation(embeddings[:, 0], slots), once),
        }
        return LossOutput.of(loss, once, metrics)

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image from the encoder."""
        return encode(self.encoder, images)
