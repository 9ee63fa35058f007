"""DINO (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021,
arXiv:2104.14294).

A student sees one view of an image and predicts which of many prototypes a teacher, its moving
average, assigns to another view. Centring and sharpening the teacher keep both from collapsing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from quadriga import randomness
from quadriga.contracts import (
    Batch,
    LossOutput,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    Progress,
    Term,
    with_initial_values,
)
from quadriga.losses.prototypes import crossed, prototype_cross_entropy, summed_scores
from quadriga.methods.parts.collapse import deviation, entropy_range
from quadriga.methods.parts.encoders import encode, encode_local_crops, image_model, two_crops
from quadriga.methods.parts.teacher import follow, rising, start, teacher_of, warmed_up
from quadriga.models.parts.heads import DINOHead, Prototypes
from quadriga.models.parts.initialise import Filler, initialise
from quadriga.models.resnet import ResNet, ResNetConfig
from quadriga.models.vit import ViT, ViTConfig


@final
class DINOConfig(ObjectiveConfig):
    """Self-distillation without labels, on two global crops and any number of local ones."""

    prototypes: int = Field(65_536, ge=2, le=2**24)
    """Number of prototypes, the outputs that the softmax runs over."""
    hidden_width: int = Field(2048, ge=1, le=2**20)
    """Features of the head's hidden layers."""
    bottleneck_width: int = Field(256, ge=1, le=2**20)
    """Features of the vectors that are compared with the prototypes."""
    student_temperature: float = Field(0.1, gt=0, le=1e3)
    """Temperature of the student's softmax."""
    teacher_temperature: float = Field(0.07, gt=0, le=1e3)
    """Temperature of the teacher's softmax after its warm-up."""
    first_teacher_temperature: float = Field(0.04, gt=0, le=1e3)
    """Temperature of the teacher's softmax at step 0; it rises linearly."""
    temperature_warmup_epochs: float = Field(30.0, ge=0, le=1e6)
    """Length of the temperature's warm-up in epochs."""
    centre_momentum: float = Field(0.9, ge=0, lt=1)
    """Weight of the old centre in the new one."""
    momentum: float = Field(0.996, ge=0, le=1)
    """Weight of the old teacher in the new one at step 0; it rises to 1 along a half cosine."""
    frozen_epochs: float = Field(1.0, ge=0, le=1e6)
    """Epochs at the start in which the prototypes are not trained."""
    statistics_group: int | None = Field(None, ge=1, le=2**30)
    """Consecutive samples of a step that share statistics in a ResNet's batch normalisation; none:
    each micro-batch."""

    def build(self, model: ModelConfig) -> DINO:
        """Make the objective for a vision transformer or a residual network.

        Raises:
            UserError: `model` is of another kind, or has no statistics for the groups.
        """
        checked = image_model("dino", model, self.statistics_group)
        return with_initial_values(lambda: DINO(self, checked), DINO.initialise_all)

    def teacher_temperature_at(self, progress: Progress) -> float:
        """Return the temperature of the teacher's softmax at a step."""
        return warmed_up(
            self.first_teacher_temperature,
            self.teacher_temperature,
            self.temperature_warmup_epochs,
            progress,
        )


@final
class DINO(Objective):
    """A student and its teacher, each an encoder with a head and prototypes."""

    metric_names = ("teacher_entropy", "teacher_temperature", "teacher_momentum")
    entry_points = ("features",)
    centre: Tensor

    def __init__(self, config: DINOConfig, model: ViTConfig | ResNetConfig) -> None:
        """Make student and teacher with undefined values."""
        super().__init__()
        self.config, self.statistics_group = config, config.statistics_group
        if isinstance(model, ViTConfig):
            self.tokens_per_sample = 2 * model.patches
        self.healthy = entropy_range(config.prototypes)
        self.encoder = model.build()
        self.head = DINOHead(model.width, config.hidden_width, config.bottleneck_width)
        self.prototypes = Prototypes(config.bottleneck_width, config.prototypes)
        self.teacher_encoder = teacher_of(self.encoder)
        self.teacher_head = teacher_of(self.head)
        self.teacher_prototypes = teacher_of(self.prototypes)
        self.register_buffer("centre", torch.empty(config.prototypes))
        self.teacher_temperature, self.teacher_momentum = (
            config.teacher_temperature,
            config.momentum,
        )

    def initialise(self, seed: int) -> None:
        """Fill every tensor: linear maps from a truncated N(0, 0.02^2), the centre with 0."""
        initialise(self, seed, "truncated_normal")

    def fill(self, filler: Filler) -> None:
        """Set the centre to 0."""
        filler.constant("centre", 0.0)

    def after_initial_weights(self) -> None:
        """Start the teacher as a copy of the student."""
        for teacher, student in self._followed():
            start(teacher, student)

    def before_step(self, progress: Progress) -> None:
        """Set the teacher's temperature and momentum, and whether the prototypes are trained."""
        self.teacher_temperature = self.config.teacher_temperature_at(progress)
        self.teacher_momentum = rising(self.config.momentum, progress)
        is_frozen = progress.epoch < self.config.frozen_epochs
        self.frozen_parts = ("prototypes.",) if is_frozen else ()

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the sums from which the centre is updated."""
        return {
            "teacher_scores": (self.config.prototypes,),
            "teacher_rows": (1,),
            "teacher_sum": (self.config.bottleneck_width,),
        }

    def forward(self, batch: Batch) -> LossOutput:
        """Sum the loss over the images: algorithm 1 of the paper.

        The mean over the pairs of different views of ``H(t, s) = -softmax((t - centre) / teacher
        temperature) log softmax(s / student temperature)``, with the scores t of the teacher for a
        global crop and s of the student for any crop (eq. 3).
        """
        crops, key = two_crops(batch, "dino"), batch["key"]
        encoded = [
            encode(self.encoder, crop, randomness.pass_keys(key, f"crop {number}"))
            for number, crop in enumerate(crops)
        ]
        encoded += encode_local_crops(self.encoder, batch)
        students = torch.stack(self.head(torch.cat(encoded)).chunk(len(encoded)), dim=1)
        with torch.no_grad():
            teachers = [self.teacher_head(encode(self.teacher_encoder, crop)) for crop in crops]
            directions = self.teacher_prototypes()
        loss, entropy = prototype_cross_entropy(
            students,
            self.prototypes(),
            self.config.student_temperature,
            torch.stack(teachers, dim=1),
            directions,
            self.teacher_temperature,
            -self.centre / self.teacher_temperature,
            crossed(len(encoded)),
        )
        count = loss.new_full((), len(key))
        return LossOutput(
            {"loss": Term(loss, count)},
            {
                "teacher_entropy": (entropy / 2, count),
                "teacher_temperature": (self.teacher_temperature * count, count),
                "teacher_momentum": (self.teacher_momentum * count, count),
            },
            sums={
                "teacher_scores": summed_scores(torch.cat(teachers), directions),
                "teacher_rows": loss.new_full((1,), len(crops) * len(key)),
                "teacher_sum": torch.cat(teachers).sum(dim=0),
            },
        )

    def after_step(
        self, progress: Progress, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Update the centre with the mean of the teacher's scores (eq. 4), and the teacher.

        The teacher follows the student with the momentum of this step, after the update.
        """
        mean = sums["teacher_scores"] / sums["teacher_rows"]
        self.centre.lerp_(mean, 1.0 - self.config.centre_momentum)
        for teacher, student in self._followed():
            follow(teacher, student, self.teacher_momentum)
        return {"embedding_deviation": deviation(sums["teacher_sum"], sums["teacher_rows"])}

    @property
    def features_of(self) -> ViT | ResNet:
        """The teacher's encoder, which the paper evaluates."""
        return self.teacher_encoder

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image from the teacher's encoder."""
        return encode(self.features_of, images)

    def _followed(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return (
            (self.teacher_encoder, self.encoder),
            (self.teacher_head, self.head),
            (self.teacher_prototypes, self.prototypes),
        )
