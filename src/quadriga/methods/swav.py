"""SwAV (Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments", NeurIPS 2020, arXiv:2006.09882).

Views of each image are compared with prototypes. The assignment of a global crop, balanced over the
prototypes, is predicted from each other view.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
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
    Term,
    with_initial_values,
)
from quadriga.distributed.collectives import slice_of
from quadriga.distributed.slots import Slots
from quadriga.losses.prototypes import crossed, prototype_cross_entropy, sinkhorn_offset
from quadriga.methods.parts.collapse import DEVIATION, embedding_deviation
from quadriga.methods.parts.encoders import encode, encode_local_crops, image_model, two_crops
from quadriga.models.parts.heads import ProjectionHead, Prototypes
from quadriga.models.parts.initialise import Filler, initialise
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

_VIEWS = ("first", "second")


@final
class SwAVConfig(ObjectiveConfig):
    """Online clustering: views of an image predict each other's assignment."""

    prototypes: int = Field(3000, ge=2, le=2**24)
    """Number of clusters."""
    hidden_width: int = Field(2048, ge=1, le=2**20)
    """Features of the projector's hidden layer."""
    output_width: int = Field(128, ge=1, le=2**20)
    """Features of the vectors that are compared with the prototypes."""
    temperature: float = Field(0.1, gt=0, le=1e3)
    """Temperature of the predictions."""
    epsilon: float = Field(0.05, ge=0.002, le=1e3)
    """Regularisation of the assignments; the lower, the sharper they are."""
    sinkhorn_iterations: int = Field(3, ge=1, le=10_000)
    """Iterations that balance the assignments."""
    queue: int = Field(0, ge=0, le=2**40)
    """Length of the queue of earlier embeddings of each view, over all ranks, that are assigned
    together with the step's; used once it is full. 3840 in the paper's runs with small batches."""
    queue_start_epoch: float = Field(15.0, ge=0, le=1e6)
    """Epoch from which embeddings enter the queue."""
    frozen_epochs: float = Field(1.0, ge=0, le=1e6)
    """Epochs at the start in which the prototypes are not trained."""
    statistics_group: int | None = Field(None, ge=1, le=2**30)
    """Consecutive samples of a step that share statistics in a ResNet's batch normalisation; none:
    each micro-batch. The paper uses statistics of the whole step."""

    def build(self, model: ModelConfig) -> SwAV:
        """Make the objective for a residual network or a vision transformer.

        Raises:
            UserError: `model` is of another kind, or has no statistics for the groups.
        """
        checked = image_model("swav", model, self.statistics_group)
        return with_initial_values(lambda: SwAV(self, checked), SwAV.initialise_all)


@final
class SwAV(PooledObjective):
    """An encoder, a projector and prototypes."""

    healthy = DEVIATION
    metric_names = ("assignment_entropy", "embedding_deviation")
    entry_points = ("features",)
    combined_parts = ("projector.", "prototypes.")
    queue: Tensor
    queued: Tensor

    def __init__(self, config: SwAVConfig, model: ViTConfig | ResNetConfig) -> None:
        """Make all modules with undefined values."""
        super().__init__()
        self.config, self.statistics_group = config, config.statistics_group
        if isinstance(model, ViTConfig):
            self.tokens_per_sample = len(_VIEWS) * model.patches
        self.encoder = model.build()
        widths = (model.width, config.hidden_width, config.output_width)
        self.projector = ProjectionHead(widths, last_bias=True)
        self.prototypes = Prototypes(config.output_width, config.prototypes)
        if config.queue:
            shape = (len(_VIEWS), config.queue, config.output_width)
            self.register_buffer("queue", torch.empty(shape))
            self.register_buffer("queued", torch.empty((1,), dtype=torch.int64))
        self.is_queueing = False

    def initialise(self, seed: int) -> None:
        """Fill every tensor: Xavier-uniform linear maps, He-normal convolutions, no queue."""
        initialise(self, seed)

    def fill(self, filler: Filler) -> None:
        """Empty the queue."""
        for name in filler.names:
            filler.constant(name, 0.0)

    def before_step(self, progress: Progress) -> None:
        """Set whether the prototypes are trained, and whether embeddings enter the queue."""
        config = self.config
        self.frozen_parts = ("prototypes.",) if progress.epoch < config.frozen_epochs else ()
        self.is_queueing = config.queue > 0 and progress.epoch >= config.queue_start_epoch

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Encode each view separately, and the local crops."""
        rows = {
            name: encode(self.encoder, view, randomness.pass_keys(batch["key"], name)).float()
            for name, view in zip(_VIEWS, two_crops(batch, "swav"), strict=True)
        }
        local = encode_local_crops(self.encoder, batch)
        return rows | {f"local {n}": view.float() for n, view in enumerate(local)}

    def combine(self, rows: Rows, targets: Rows, slots: Slots) -> LossOutput:
        """Sum the loss over this rank's images: eq. 1, 2 and 6.

        The mean over the pairs of an assigned view and another one of ``l(z, q) = -sum_k q_k log
        softmax(z C^T / temperature)_k`` with the embeddings z of unit length, the prototypes C and
        the assignments q, which only the two global crops get. The views are projected together:
        they share the statistics of the projector's batch normalisation.
        """
        every = self.projector(torch.cat(list(rows.values())), slots.sum)
        embeddings = functional.normalize(every.float(), dim=1).chunk(len(rows))
        assigned = embeddings[: len(_VIEWS)]
        prototypes = self.prototypes()
        offsets = [
            self._offset(own.detach(), prototypes.detach(), view, slots)
            for view, own in enumerate(assigned)
        ]
        loss, entropy = prototype_cross_entropy(
            torch.stack(embeddings, dim=1),
            prototypes,
            self.config.temperature,
            torch.stack(assigned, dim=1),
            prototypes,
            self.config.epsilon,
            torch.stack(offsets),
            crossed(len(embeddings)),
        )
        count = loss.new_full((), len(assigned[0]))
        metrics = {
            "assignment_entropy": (entropy / len(_VIEWS), count),
            "embedding_deviation": (embedding_deviation(assigned[0], slots) * count, count),
        }
        kept = {"embeddings": torch.stack(assigned, dim=1).detach()} if self.is_queueing else {}
        return LossOutput({"loss": Term(loss, count)}, metrics, rows=kept)

    def _offset(
        self,
        own: Float[Tensor, "rows width"],
        prototypes: Float[Tensor, "prototypes width"],
        view: int,
        slots: Slots,
    ) -> Float[Tensor, " prototypes"]:
        """Return the offset that balances the assignments of the step's rows and of a full queue.

        Every rank holds the whole queue and uses its share of it.
        """
        config, group, weights = self.config, slots.group, None
        if config.queue:
            part = slice_of(config.queue, group.rank, group.size)
            kept = self.queue[view, part.start : part.stop]
            is_full = (self.queued >= config.queue).to(own.dtype)
            weights = torch.cat([own.new_ones(len(own)), is_full.expand(len(kept))])
            own = torch.cat([own, kept])
        return sinkhorn_offset(
            own, prototypes, config.epsilon, config.sinkhorn_iterations, slots.sum, weights
        )

    def after_step(
        self, progress: Progress, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> None:
        """Put the step's embeddings at the front of the queue, and drop the oldest."""
        if not self.is_queueing:
            return
        new = rows["embeddings"].transpose(0, 1)
        self.queue.copy_(torch.cat([new, self.queue], dim=1)[:, : self.config.queue])
        self.queued += new.shape[1]

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image from the encoder."""
        return encode(self.encoder, images)
