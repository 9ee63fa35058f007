"""MoCo v1 and v2 (He, Fan, Wu, Xie and Girshick, "Momentum Contrast for Unsupervised Visual
Representation Learning", CVPR 2020, arXiv:1911.05722; Chen, Fan, Girshick and He, "Improved
Baselines with Momentum Contrastive Learning", arXiv:2003.04297).

The encoder's embedding of one view of an image is to be found by the momentum encoder's embedding
of the other view, the key, among a queue of the keys of earlier steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from pydantic import Field
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
from quadriga.losses.cross_entropy import types_as_written
from quadriga.methods.parts.collapse import DEVIATION, deviation
from quadriga.methods.parts.encoders import encode, image_model, two_crops
from quadriga.methods.parts.teacher import follow, start, teacher_of
from quadriga.models.parts.initialise import Filler, initialise
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

_SHUFFLE = randomness.fold("shuffled batch normalisation")


@final
class MoCoConfig(ObjectiveConfig):
    """Contrastive learning against a momentum encoder, with a queue of negatives."""

    temperature: float = Field(0.2, gt=0, le=1e3)
    """Temperature of the logits; 0.07 in MoCo v1."""
    queue: int = Field(65_536, ge=1, le=2**40)
    """Number of the newest keys, over all ranks, that are the negatives."""
    momentum: float = Field(0.999, ge=0, le=1)
    """Weight of the old momentum encoder in the new one."""
    hidden_width: int | None = Field(2048, ge=1, le=2**20)
    """Features of the head's hidden layer; none: the head is linear, as in MoCo v1."""
    output_width: int = Field(128, ge=1, le=2**20)
    """Features of the vectors that are compared."""
    statistics_group: int | None = Field(None, ge=1, le=2**30)
    """Consecutive samples of a step that share statistics in a ResNet's batch normalisation; none:
    each micro-batch. 32 in the paper's runs of 256 samples on 8 GPUs."""
    shuffled_groups: int = Field(8, ge=1, le=2**20)
    """Neighbouring groups whose samples are exchanged by a keyed draw before the momentum encoder
    (shuffled batch normalisation), so that a key does not share its query's statistics; 1: none.
    A micro-batch consists of so many groups, or a multiple."""

    def build(self, model: ModelConfig) -> MoCo:
        """Make the objective for a residual network or a vision transformer.

        Raises:
            UserError: `model` is of another kind, or has no statistics for the groups.
        """
        checked = image_model("moco", model, self.statistics_group)
        return with_initial_values(lambda: MoCo(self, checked), MoCo.initialise_all)


@final
class MoCo(Objective):
    """An encoder with a head, their momentum encoder and head, and the queue."""

    healthy = DEVIATION
    metric_names = ("accuracy",)
    entry_points = ("features",)
    queue: Tensor

    def __init__(self, config: MoCoConfig, model: ViTConfig | ResNetConfig) -> None:
        """Make all modules with undefined values."""
        super().__init__()
        self.config, self.statistics_group = config, config.statistics_group
        if config.statistics_group is not None and config.shuffled_groups > 1:
            self.exchange_group = config.statistics_group * config.shuffled_groups
        if isinstance(model, ViTConfig):
            self.tokens_per_sample = 2 * model.patches
        self.encoder = model.build()
        hidden, output = config.hidden_width, config.output_width
        if hidden is None:
            self.head = nn.Sequential(nn.Linear(model.width, output))
        else:
            self.head = nn.Sequential(
                nn.Linear(model.width, hidden), nn.ReLU(), nn.Linear(hidden, output)
            )
        self.teacher_encoder = teacher_of(self.encoder)
        self.teacher_head = teacher_of(self.head)
        self.register_buffer("queue", torch.empty(config.queue, output))

    def initialise(self, seed: int) -> None:
        """Fill every tensor: Xavier-uniform linear maps, He-normal convolutions, norms 1 and 0."""
        initialise(self, seed)

    def fill(self, filler: Filler) -> None:
        """Fill the queue with random directions."""
        filler.normal("queue", 1.0)

    @torch.no_grad()
    def after_initial_weights(self) -> None:
        """Start the momentum encoder as a copy of the encoder; give the queue's keys length 1."""
        for teacher, student in self._followed():
            start(teacher, student)
        self.queue.copy_(functional.normalize(self.queue, dim=1))

    def forward(self, batch: Batch) -> LossOutput:
        """Sum the loss over the images: eq. 1 of the first paper.

        ``-log(exp(q k / t) / (exp(q k / t) + sum_j exp(q n_j / t)))`` with the query q, its key k,
        the keys n_j of the queue, all of unit length, and the temperature t.
        """
        first, second = two_crops(batch, "moco")
        encoded = encode(self.encoder, first, randomness.pass_keys(batch["key"], "query"))
        queries = functional.normalize(self.head(encoded).float(), dim=1)
        keys = self._keys(second, batch["key"])
        with types_as_written(queries.device.type):
            own = (queries * keys).sum(dim=1, keepdim=True)
            logits = torch.cat([own, queries @ self.queue.t()], dim=1) / self.config.temperature
        places = torch.zeros_like(batch["key"])
        loss = functional.cross_entropy(logits, places, reduction="sum")
        count = loss.new_full((), len(places))
        hits = (logits.detach().argmax(dim=1) == places).sum().to(loss.dtype)
        output = LossOutput.of(loss, count, {"accuracy": (hits, count)})
        return output._replace(rows={"keys": keys})

    @torch.no_grad()
    def _keys(
        self,
        images: Float[Tensor, "batch channels height width"],
        sample_keys: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch features"]:
        """Return the key of each image, with the batch normalisation shuffled."""
        if self.exchange_group is None:
            keys = self.teacher_head(encode(self.teacher_encoder, images))
        else:
            order = shuffled_within(self.exchange_group, sample_keys)
            keys = self.teacher_head(encode(self.teacher_encoder, images[order]))[order.argsort()]
        return functional.normalize(keys.float(), dim=1)

    def after_step(
        self, progress: Progress, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Put the step's keys at the front of the queue, and drop the oldest; update the teacher.

        The momentum encoder follows after the update of the encoder.
        """
        self.queue.copy_(torch.cat([rows["keys"], self.queue])[: self.config.queue])
        for teacher, student in self._followed():
            follow(teacher, student, self.config.momentum)
        keys = rows["keys"]
        return {"embedding_deviation": deviation(keys.sum(dim=0), len(keys))}

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image from the encoder, not its momentum encoder."""
        return encode(self.encoder, images)

    def _followed(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return (self.teacher_encoder, self.encoder), (self.teacher_head, self.head)


def shuffled_within(block: int, sample_keys: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Return a permutation of a batch that exchanges samples within blocks of consecutive ones.

    Args:
        block: Samples of a block; the last one may have fewer.
        sample_keys: int64 key of each sample, which decides the order within the block.
    """
    draws = randomness.uniform_rows(sample_keys, _SHUFFLE, 1)[:, 0].double()
    blocks = torch.arange(len(draws), device=draws.device) // block
    return (blocks + draws).argsort(stable=True)
