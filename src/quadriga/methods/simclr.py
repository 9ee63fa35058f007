"""SimCLR (Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of
Visual Representations", ICML 2020, arXiv:2002.05709).

Each view of an image is to be found by its other view among all views of the step. With
``decoupled`` the loss is DCL (Yeh et al., "Decoupled Contrastive Learning", ECCV 2022,
arXiv:2110.06848).
"""

from __future__ import annotations

import math
from typing import final

import torch
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
from quadriga.methods.parts.collapse import DEVIATION, embedding_deviation
from quadriga.methods.parts.encoders import encode, image_model
from quadriga.methods.parts.two_views import VIEWS, embed_views
from quadriga.models.parts.heads import ProjectionHead
from quadriga.models.parts.initialise import initialise
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig


@final
class SimCLRConfig(ObjectiveConfig):
    """Contrastive learning with all other views of the step as negatives."""

    temperature: float = Field(0.1, gt=0, le=1e3)
    """Temperature of the similarities; the paper's best for large batches and long training."""
    decoupled: bool = False
    """Whether the denominator leaves out the view that is to be found (DCL)."""
    hidden_width: int = Field(2048, ge=1, le=2**20)
    """Features of the projector's hidden layer."""
    output_width: int = Field(128, ge=1, le=2**20)
    """Features of the vectors that are compared."""
    last_affine: bool = False
    """Whether the projector's last normalisation has learned factors and offsets, as in
    mmselfsup."""
    statistics_group: int | None = Field(None, ge=1, le=2**30)
    """Consecutive samples of a step that share statistics in a ResNet's batch normalisation; none:
    each micro-batch. The paper uses statistics of the whole step."""

    def build(self, model: ModelConfig) -> SimCLR:
        """Make the objective for a residual network or a vision transformer.

        Raises:
            UserError: `model` is of another kind, or has no statistics for the groups.
        """
        checked = image_model("simclr", model, self.statistics_group)
        return with_initial_values(lambda: SimCLR(self, checked), SimCLR.initialise_all)


@final
class SimCLR(PooledObjective):
    """An encoder and a projector."""

    healthy = DEVIATION
    metric_names = ("accuracy", "embedding_deviation")
    entry_points = ("features",)
    combined_parts = ("projector.",)

    def __init__(self, config: SimCLRConfig, model: ViTConfig | ResNetConfig) -> None:
        """Make both modules with undefined values."""
        super().__init__()
        self.config, self.statistics_group = config, config.statistics_group
        if isinstance(model, ViTConfig):
            self.tokens_per_sample = len(VIEWS) * model.patches
        self.encoder = model.build()
        widths = (model.width, config.hidden_width, config.output_width)
        self.projector = ProjectionHead(widths, last_norm=True, last_affine=config.last_affine)

    def initialise(self, seed: int) -> None:
        """Fill every tensor: Xavier-uniform linear maps, He-normal convolutions, norms 1 and 0."""
        initialise(self, seed)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Encode both views."""
        return embed_views(self.encoder, batch, "simclr")

    def combine(self, rows: Rows, targets: Rows, slots: Slots) -> LossOutput:
        """Sum the loss over this rank's images: eq. 1 of the paper, averaged over both views.

        The views are projected together: they share the statistics of the batch normalisation.
        """
        both = self.projector(torch.cat([rows[name] for name in VIEWS]), slots.sum)
        own = functional.normalize(both.float(), dim=1).chunk(2)
        gathered = torch.cat(slots.gather(torch.stack(own, dim=1)).unbind(dim=1))
        losses, hits = zip(
            *(self._contrast(z, gathered, view, slots) for view, z in enumerate(own)), strict=True
        )
        count = both.new_full((), len(own[0]), dtype=torch.float32)
        metrics = {
            "accuracy": (sum(hits) / 2, count),
            "embedding_deviation": (embedding_deviation(own[0], slots) * count, count),
        }
        return LossOutput.of(sum(losses) / 2, count, metrics)

    def _contrast(
        self,
        own: Float[Tensor, "rows width"],
        gathered: Float[Tensor, "views width"],
        view: int,
        slots: Slots,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of one view of this rank's images, summed, and the number of hits.

        ``-log(exp(s_p / t) / sum_k exp(s_k / t))`` with the cosine s_k of each other view of the
        step, s_p that of the same image, which DCL leaves out of the sum, and the temperature t.
        An image that is alone in a step has a loss of 0.

        Args:
            own: One view of each of this rank's images, of unit length.
            gathered: The first view of all images of the step, then the second, likewise.
            view: 0 or 1, which one `own` is.
            slots: The positions of this rank's images.
        """
        place = slots.own.to(own.device)[:, None]
        itself, other = (place + which * slots.total for which in (view, 1 - view))
        with types_as_written(own.device.type):
            logits = (own @ gathered.t()) / self.config.temperature
        logits = logits.scatter(1, itself, -math.inf)
        positive = logits.gather(1, other)
        hits = logits.detach().argmax(dim=1, keepdim=True) == other
        if self.config.decoupled and slots.total > 1:
            logits = logits.scatter(1, other, -math.inf)
        loss = logits.logsumexp(dim=1, keepdim=True) - positive
        return loss.sum(), hits.sum().to(loss.dtype)

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image from the encoder."""
        return encode(self.encoder, images)
