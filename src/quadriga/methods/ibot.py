"""iBOT (Zhou et al., "Image BERT Pre-Training with Online Tokenizer", ICLR 2022,
arXiv:2111.07832).

DINO on images of which the student sees a part of the patches only, and for each masked patch the
prediction of what the teacher, which sees all, assigns to it. The teacher is the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from quadriga import randomness
from quadriga.config.base import Number
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
from quadriga.methods.parts.encoders import encode_local_crops, patch_model, two_crops
from quadriga.methods.parts.masks import check_mask_ratio, crop_masks, masked_first
from quadriga.methods.parts.teacher import follow, rising, start, teacher_of, warmed_up
from quadriga.models.parts.heads import DINOHead, Prototypes
from quadriga.models.parts.initialise import Filler, initialise
from quadriga.models.parts.patches import take_rows
from quadriga.models.vit import ViT, ViTConfig


@final
class IBOTConfig(ObjectiveConfig):
    """Self-distillation of class tokens and masked patches."""

    prototypes: int = Field(8192, ge=2, le=2**24)
    """Number of prototypes, the outputs that the softmax runs over."""
    hidden_width: int = Field(2048, ge=1, le=2**20)
    """Features of the head's hidden layers."""
    bottleneck_width: int = Field(256, ge=1, le=2**20)
    """Features of the vectors that are compared with the prototypes."""
    shared_head: bool = True
    """Whether patches and class tokens have one head and prototypes."""
    mask_probability: float = Field(0.5, ge=0, le=1)
    """Probability that a global crop is masked."""
    mask_ratio: tuple[Number, Number] = (0.1, 0.5)
    """Between these shares the masked share of a masked crop is uniform."""
    student_temperature: float = Field(0.1, gt=0, le=1e3)
    """Temperature of the student's softmax."""
    teacher_temperature: float = Field(0.07, gt=0, le=1e3)
    """Temperature of the teacher's softmax for class tokens after its warm-up."""
    patch_temperature: float = Field(0.07, gt=0, le=1e3)
    """Temperature of the teacher's softmax for patches after its warm-up."""
    first_teacher_temperature: float = Field(0.04, gt=0, le=1e3)
    """Both temperatures of the teacher at step 0; they rise linearly."""
    temperature_warmup_epochs: float = Field(30.0, ge=0, le=1e6)
    """Length of the temperatures' warm-up in epochs."""
    centre_momentum: float = Field(0.9, ge=0, lt=1)
    """Weight of the old centres in the new ones."""
    momentum: float = Field(0.996, ge=0, le=1)
    """Weight of the old teacher in the new one at step 0; it rises to 1 along a half cosine."""
    frozen_epochs: float = Field(1.0, ge=0, le=1e6)
    """Epochs at the start in which the prototypes are not trained."""
    patch_weight: float = Field(1.0, ge=0, le=1e6)
    """Factor of the patches' term in the loss."""

    @model_validator(mode="after")
    def _check_ratio(self) -> IBOTConfig:
        check_mask_ratio(self.mask_ratio)
        return self

    def build(self, model: ModelConfig) -> IBOT:
        """Make the objective for a vision transformer.

        Raises:
            UserError: `model` is of another kind, or has no class token.
        """
        checked = patch_model("ibot", model)
        return with_initial_values(lambda: IBOT(self, checked), IBOT.initialise_all)


@final
class IBOT(Objective):
    """A student and its teacher, each an encoder with heads and prototypes, and a mask token."""

    term_names = ("class", "patches")
    metric_names = (
        "teacher_entropy",
        "patch_entropy",
        "masked",
        "teacher_temperature",
        "patch_temperature",
        "teacher_momentum",
    )
    entry_points = ("features",)
    centre: Tensor
    patch_centre: Tensor

    def __init__(self, config: IBOTConfig, model: ViTConfig) -> None:
        """Make student and teacher with undefined values."""
        super().__init__()
        self.config = config
        self.tokens_per_sample = 2 * model.patches
        self.most = int(config.mask_ratio[1] * model.patches) if config.mask_probability else 0
        self.healthy = entropy_range(config.prototypes)
        self.encoder = model.build()
        self.mask_token = nn.Parameter(torch.empty(model.width))
        widths = (model.width, config.hidden_width, config.bottleneck_width)
        self.head = DINOHead(*widths)
        self.prototypes = Prototypes(config.bottleneck_width, config.prototypes)
        self.teacher_encoder = teacher_of(self.encoder)
        self.teacher_head = teacher_of(self.head)
        self.teacher_prototypes = teacher_of(self.prototypes)
        if not config.shared_head:
            self.patch_head = DINOHead(*widths)
            self.patch_prototypes = Prototypes(config.bottleneck_width, config.prototypes)
            self.teacher_patch_head = teacher_of(self.patch_head)
            self.teacher_patch_prototypes = teacher_of(self.patch_prototypes)
        self.register_buffer("centre", torch.empty(config.prototypes))
        self.register_buffer("patch_centre", torch.empty(config.prototypes))
        self.teacher_temperature = config.teacher_temperature
        self.patch_temperature = config.patch_temperature
        self.teacher_momentum = config.momentum

    def initialise(self, seed: int) -> None:
        """Fill every tensor: linear maps from a truncated N(0, 0.02^2), centres with 0."""
        initialise(self, seed, "truncated_normal")

    def fill(self, filler: Filler) -> None:
        """Set the centres and the mask token to 0."""
        for name in filler.names:
            filler.constant(name, 0.0)

    def after_initial_weights(self) -> None:
        """Start the teacher as a copy of the student."""
        for teacher, student in self._followed():
            start(teacher, student)

    def before_step(self, progress: Progress) -> None:
        """Set temperatures and momentum, and whether the prototypes are trained."""
        config = self.config
        first, epochs = config.first_teacher_temperature, config.temperature_warmup_epochs
        self.teacher_temperature = warmed_up(first, config.teacher_temperature, epochs, progress)
        self.patch_temperature = warmed_up(first, config.patch_temperature, epochs, progress)
        self.teacher_momentum = rising(config.momentum, progress)
        is_frozen = progress.epoch < config.frozen_epochs
        self.frozen_parts = ("prototypes.", "patch_prototypes.") if is_frozen else ()

    def sum_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the sums from which the centres are updated."""
        count = self.config.prototypes
        return {
            "teacher_scores": (count,),
            "teacher_rows": (1,),
            "teacher_sum": (self.config.bottleneck_width,),
            "patch_scores": (count,),
            "patch_rows": (1,),
        }

    def counts(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the number of images for both terms."""
        key = batch["key"]
        return dict.fromkeys(self.term_names, torch.tensor(len(key), device=key.device))

    def forward(self, batch: Batch) -> LossOutput:
        """Sum both terms over the images: algorithm 1 of the paper, with multi-crop.

        ``class``: DINO's loss, the mean over the pairs of different views, where the student sees
        masked global crops. ``patches``: the mean over the two global crops of the mean over the
        masked patches of ``H(teacher's patch, student's patch)``; 0 for a crop without a mask.
        """
        crops, key = two_crops(batch, "ibot"), batch["key"]
        config, grid = self.config, self.encoder.grid_of(crops[0])
        masks = [
            crop_masks(key, number, grid, config.mask_probability, config.mask_ratio)
            for number in range(len(crops))
        ]
        tokens = [
            self.encoder.encode(
                self.encoder.embed(crop, masks[number], self.mask_token),
                randomness.pass_keys(key, f"crop {number}"),
            )
            for number, crop in enumerate(crops)
        ]
        with torch.no_grad():
            targets = [self.teacher_encoder(crop) for crop in crops]
        of_class, metrics, sums = self._class_term(batch, tokens, targets)
        of_patches, patch_metrics, patch_sums = self._patch_term(tokens, targets, masks)
        count = of_class.new_full((), len(key))
        for name in ("teacher_temperature", "patch_temperature", "teacher_momentum"):
            metrics[name] = (getattr(self, name) * count, count)
        terms = {
            "class": Term(of_class, count),
            "patches": Term(of_patches, count, config.patch_weight),
        }
        return LossOutput(terms, metrics | patch_metrics, sums=sums | patch_sums)

    def _class_term(
        self,
        batch: Batch,
        tokens: list[Float[Tensor, "batch tokens width"]],
        targets: list[Float[Tensor, "batch tokens width"]],
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        views = [own[:, 0] for own in tokens] + encode_local_crops(self.encoder, batch)
        students = self.head(torch.cat(views)).chunk(len(views))
        with torch.no_grad():
            teachers = self.teacher_head(torch.cat([own[:, 0] for own in targets]))
            directions = self.teacher_prototypes()
        loss, entropy = prototype_cross_entropy(
            torch.stack(students, dim=1),
            self.prototypes(),
            self.config.student_temperature,
            torch.stack(teachers.chunk(len(targets)), dim=1),
            directions,
            self.teacher_temperature,
            -self.centre / self.teacher_temperature,
            crossed(len(views)),
        )
        rows = loss.new_full((1,), len(teachers))
        return (
            loss,
            {"teacher_entropy": (entropy, rows[0])},
            {
                "teacher_scores": summed_scores(teachers, directions),
                "teacher_rows": rows,
                "teacher_sum": teachers.sum(dim=0),
            },
        )

    def _patch_term(
        self,
        tokens: list[Float[Tensor, "batch tokens width"]],
        targets: list[Float[Tensor, "batch tokens width"]],
        masks: list[Bool[Tensor, "batch patches"]],
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """Return the loss of the masked patches; the centre is that of all patches.

        Each image has room for the largest number of masked patches, so that shapes are fixed; the
        rows that it does not need have weight 0.
        """
        prefix = self.encoder.prefix
        masked = torch.cat(masks)
        order, shares = masked_first(masked, self.most)
        weights = shares.flatten()
        hidden = take_rows(torch.cat(tokens)[:, prefix:], order).flatten(0, 1)
        shared = self.config.shared_head
        head, prototypes = (
            (self.head, self.prototypes) if shared else (self.patch_head, self.patch_prototypes)
        )
        with torch.no_grad():
            teacher_head, teacher_prototypes = (
                (self.teacher_head, self.teacher_prototypes)
                if shared
                else (self.teacher_patch_head, self.teacher_patch_prototypes)
            )
            patches = torch.cat(targets)[:, prefix:]
            rows = teacher_head(patches.flatten(0, 1))
            wanted = take_rows(rows.unflatten(0, patches.shape[:2]), order).flatten(0, 1)
            directions = teacher_prototypes()
        loss, entropy = prototype_cross_entropy(
            head(hidden)[:, None],
            prototypes(),
            self.config.student_temperature,
            wanted[:, None],
            directions,
            self.patch_temperature,
            -self.patch_centre / self.patch_temperature,
            weights=weights,
        )
        metrics = {
            "patch_entropy": (entropy, weights.sum()),
            "masked": (masked.sum().to(loss.dtype), loss.new_full((), masked.numel())),
        }
        sums = {
            "patch_scores": summed_scores(rows, directions),
            "patch_rows": loss.new_full((1,), len(rows)),
        }
        return loss / len(masks), metrics, sums

    def after_step(
        self, progress: Progress, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Update both centres with the mean of the teacher's scores, and the teacher.

        The teacher follows the student with the momentum of this step, after the update.
        """
        for centre, name in ((self.centre, "teacher"), (self.patch_centre, "patch")):
            mean = sums[f"{name}_scores"] / sums[f"{name}_rows"]
            centre.lerp_(mean, 1.0 - self.config.centre_momentum)
        for teacher, student in self._followed():
            follow(teacher, student, self.teacher_momentum)
        return {"embedding_deviation": deviation(sums["teacher_sum"], sums["teacher_rows"])}

    @property
    def features_of(self) -> ViT:
        """The teacher's encoder, which the paper evaluates."""
        return self.teacher_encoder

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image from the teacher's encoder."""
        return self.teacher_encoder.features(images)

    def _followed(self) -> list[tuple[nn.Module, nn.Module]]:
        names = ["encoder", "head", "prototypes"]
        if not self.config.shared_head:
            names += ["patch_head", "patch_prototypes"]
        return [(getattr(self, f"teacher_{name}"), getattr(self, name)) for name in names]
