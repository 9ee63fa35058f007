"""DINOv2 (Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024,
arXiv:2304.07193).

iBOT with a head of their own for patches, assignments that are balanced over the prototypes
(Sinkhorn-Knopp) instead of centred, and a regulariser that spreads the images' class tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from quadriga import randomness
from quadriga.config.base import Config, NamedFile, Number
from quadriga.contracts import (
    Batch,
    FrozenSource,
    LossOutput,
    ModelConfig,
    ObjectiveConfig,
    PooledObjective,
    Progress,
    Rows,
    Term,
    with_initial_values,
)
from quadriga.distributed.slots import Slots
from quadriga.losses.gram import gram_distance
from quadriga.losses.koleo import koleo
from quadriga.losses.prototypes import crossed, prototype_cross_entropy, sinkhorn_offset
from quadriga.methods.parts.collapse import embedding_deviation, entropy_range
from quadriga.methods.parts.encoders import encode_local_crops, patch_model, two_crops
from quadriga.methods.parts.masks import check_mask_ratio, crop_masks, masked_first
from quadriga.methods.parts.teacher import follow, rising, start, teacher_of, warmed_up
from quadriga.models.parts.heads import DINOHead, Prototypes
from quadriga.models.parts.initialise import Filler, initialise
from quadriga.models.parts.patches import take_rows
from quadriga.models.vit import ViT, ViTConfig

_GRAM = "gram_encoder"
_FOLLOWED = ("encoder", "head", "prototypes", "patch_head", "patch_prototypes")


@final
class GramConfig(Config):
    """Gram anchoring: patches keep the similarities that an earlier encoder gives them."""

    teacher: NamedFile[str | None] = None
    """The encoder: a run, such as the one that is continued, one of its checkpoints, or a file of
    weights; none: no anchoring."""
    weight: float = Field(2.0, ge=0, le=1e6)
    """Factor of the term in the loss."""
    scale: int = Field(2, ge=1, le=16)
    """How many times larger the images are that the teacher sees; its features are resampled to the
    student's patches."""


@final
class DINOv2Config(ObjectiveConfig):
    """Self-distillation of class tokens and masked patches with balanced assignments."""

    prototypes: int = Field(65_536, ge=2, le=2**24)
    """Number of prototypes of class tokens, and of patches."""
    hidden_width: int = Field(2048, ge=1, le=2**20)
    """Features of the heads' hidden layers."""
    bottleneck_width: int = Field(256, ge=1, le=2**20)
    """Features of the vectors that are compared with the prototypes."""
    mask_probability: float = Field(0.5, ge=0, le=1)
    """Probability that a global crop is masked."""
    mask_ratio: tuple[Number, Number] = (0.1, 0.5)
    """Between these shares the masked share of a masked crop is uniform."""
    student_temperature: float = Field(0.1, gt=0, le=1e3)
    """Temperature of the student's softmax."""
    teacher_temperature: float = Field(0.07, ge=0.002, le=1e3)
    """Regularisation of the teacher's assignments after its warm-up; the lower, the sharper."""
    first_teacher_temperature: float = Field(0.04, ge=0.002, le=1e3)
    """The same at step 0; it rises linearly."""
    temperature_warmup_epochs: float = Field(30.0, ge=0, le=1e6)
    """Length of the warm-up in epochs."""
    sinkhorn_iterations: int = Field(3, ge=1, le=10_000)
    """Iterations that balance the assignments."""
    momentum: float = Field(0.992, ge=0, le=1)
    """Weight of the old teacher in the new one at step 0; it rises to 1 along a half cosine."""
    frozen_epochs: float = Field(1.0, ge=0, le=1e6)
    """Epochs at the start in which the prototypes are not trained."""
    patch_weight: float = Field(1.0, ge=0, le=1e6)
    """Factor of the patches' term in the loss."""
    koleo_weight: float = Field(0.1, ge=0, le=1e6)
    """Factor of the term that spreads the class tokens."""
    koleo_group: int = Field(16, ge=2, le=2**30)
    """Consecutive samples of a step among which a class token's nearest neighbour is."""

    gram: GramConfig = GramConfig()
    """Gram anchoring of DINOv3, for late stages of long runs."""

    @model_validator(mode="after")
    def _check_ratio(self) -> DINOv2Config:
        check_mask_ratio(self.mask_ratio)
        return self

    def build(self, model: ModelConfig) -> DINOv2:
        """Make the objective for a vision transformer.

        Raises:
            UserError: `model` is of another kind, or has no class token.
        """
        checked = patch_model("dinov2", model)
        return with_initial_values(lambda: DINOv2(self, checked), DINOv2.initialise_all)

    def frozen_sources(self) -> Sequence[FrozenSource]:
        """Return the teacher of Gram anchoring, if there is one."""
        path = self.gram.teacher
        if path is None:
            return ()
        return (FrozenSource(part=_GRAM, option="objective.gram.teacher", path=path),)


@final
class DINOv2(PooledObjective):
    """A student and its teacher, each an encoder with two heads, and a mask token."""

    term_names: tuple[str, ...] = ("class", "patches", "koleo")
    metric_names = (
        "teacher_entropy",
        "embedding_deviation",
        "patch_entropy",
        "masked",
        "teacher_temperature",
        "teacher_momentum",
    )
    entry_points = ("features",)
    combined_parts = ("prototypes.", "patch_prototypes.")
    new_parts: ClassVar[tuple[str, ...]] = ()
    optional_parts: ClassVar[tuple[str, ...]] = (f"{_GRAM}.",)

    def __init__(self, config: DINOv2Config, model: ViTConfig) -> None:
        """Make student and teacher with undefined values."""
        super().__init__()
        self.config = config
        self.tokens_per_sample = 2 * model.patches
        self.healthy = entropy_range(config.prototypes)
        self.encoder = model.build()
        self.mask_token = nn.Parameter(torch.empty(model.width))
        widths = (model.width, config.hidden_width, config.bottleneck_width)
        self.head, self.patch_head = DINOHead(*widths), DINOHead(*widths)
        self.prototypes = Prototypes(config.bottleneck_width, config.prototypes)
        self.patch_prototypes = Prototypes(config.bottleneck_width, config.prototypes)
        self.teacher_encoder = teacher_of(self.encoder)
        self.teacher_head = teacher_of(self.head)
        self.teacher_prototypes = teacher_of(self.prototypes)
        self.teacher_patch_head = teacher_of(self.patch_head)
        self.teacher_patch_prototypes = teacher_of(self.patch_prototypes)
        self.gram_encoder: ViT | None = None
        if config.gram.teacher is not None:
            self.gram_encoder = teacher_of(self.encoder)
            self.term_names = (*self.term_names, "gram")
        self.teacher_temperature = config.teacher_temperature
        self.teacher_momentum = config.momentum

    def initialise(self, seed: int) -> None:
        """Fill every tensor: linear maps from a truncated N(0, 0.02^2)."""
        initialise(self, seed, "truncated_normal")

    def fill(self, filler: Filler) -> None:
        """Set the mask token to 0."""
        filler.constant("mask_token", 0.0)

    def after_initial_weights(self) -> None:
        """Start the teacher as a copy of the student."""
        for teacher, student in self._followed():
            start(teacher, student)

    def before_step(self, progress: Progress) -> None:
        """Set temperature and momentum, and whether the prototypes are trained."""
        config = self.config
        self.teacher_temperature = warmed_up(
            config.first_teacher_temperature,
            config.teacher_temperature,
            config.temperature_warmup_epochs,
            progress,
        )
        self.teacher_momentum = rising(config.momentum, progress)
        is_frozen = progress.epoch < config.frozen_epochs
        self.frozen_parts = ("prototypes.", "patch_prototypes.") if is_frozen else ()

    def counts(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the number of images; the regulariser is a mean over the step."""
        key = batch["key"]
        count = torch.tensor(len(key), device=key.device)
        return {**dict.fromkeys(self.term_names, count), "koleo": torch.ones_like(count)}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Encode the crops, of which the global ones are masked.

        Returns:
            ``tokens`` (batch, 2, width): class tokens of the global crops. ``views`` (batch, views,
            bottleneck): rows of all class tokens. ``patches`` (batch, 2 x most, bottleneck): rows
            of the masked patches, see `masked_first`. ``gram`` (batch, 2): `gram_distance` of
            each global crop, with Gram anchoring.
        """
        crops, key = two_crops(batch, "dinov2"), batch["key"]
        tokens, hidden, distances = [], [], []
        for number, crop in enumerate(crops):
            masks, order, _ = self._masks(batch, number)
            embedded = self.encoder.embed(crop, masks, self.mask_token)
            keys = randomness.pass_keys(key, f"crop {number}")
            encoded = self.encoder.encode(embedded, keys)
            tokens.append(encoded[:, 0])
            patches = encoded[:, self.encoder.prefix :]
            hidden.append(take_rows(patches, order))
            if self.gram_encoder is not None:
                anchors = _resampled(self.gram_encoder, crop, self.config.gram.scale)
                distances.append(gram_distance(patches, anchors))
        views = tokens + encode_local_crops(self.encoder, batch)
        patches = torch.cat(hidden, dim=1)
        anchored = {"gram": torch.stack(distances, dim=1)} if distances else {}
        return anchored | {
            "tokens": torch.stack(tokens, dim=1).float(),
            "views": torch.stack(self.head(torch.cat(views)).chunk(len(views)), dim=1),
            "patches": self.patch_head(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]),
        }

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Encode the whole global crops with the teacher.

        Returns:
            ``views`` (batch, 2, bottleneck) and ``patches`` (batch, 2 x most, bottleneck) as those
            of `embed`; ``weights`` (batch, 2 x most): 1 / (masked patches of the crop), or 0.
        """
        crops = two_crops(batch, "dinov2")
        tokens, hidden, weights = [], [], []
        for number, crop in enumerate(crops):
            _, order, share = self._masks(batch, number)
            encoded = self.teacher_encoder(crop)
            tokens.append(self.teacher_head(encoded[:, 0]))
            hidden.append(take_rows(encoded[:, self.encoder.prefix :], order))
            weights.append(share)
        patches = torch.cat(hidden, dim=1)
        rows = self.teacher_patch_head(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        return {
            "views": torch.stack(tokens, dim=1),
            "patches": rows,
            "weights": torch.cat(weights, dim=1),
        }

    def combine(self, rows: Rows, targets: Rows, slots: Slots) -> LossOutput:
        """Sum the loss over this rank's images.

        ``class``: the mean over the pairs of different views of the cross-entropy to the teacher's
        assignment of a global crop. ``patches``: the mean over the two global crops of the mean
        over the masked patches; 0 for a crop without a mask. Assignments are balanced over the
        step, those of patches over all masked patches. ``koleo``: the sum over the global crops of
        `koleo` of their class tokens, the same on every rank. ``gram``: the mean over the global
        crops of `gram_distance`.
        """
        config = self.config
        directions = self.teacher_prototypes()
        of_class, entropy = prototype_cross_entropy(
            rows["views"],
            self.prototypes(),
            config.student_temperature,
            targets["views"],
            directions,
            self.teacher_temperature,
            self._offset(targets["views"].flatten(0, 1), directions, slots),
            crossed(rows["views"].shape[1]),
        )
        weights, wanted = targets["weights"].flatten(), targets["patches"].flatten(0, 1)
        directions = self.teacher_patch_prototypes()
        of_patches, patch_entropy = prototype_cross_entropy(
            rows["patches"].flatten(0, 1)[:, None],
            self.patch_prototypes(),
            config.student_temperature,
            wanted[:, None],
            directions,
            self.teacher_temperature,
            self._offset(wanted, directions, slots, (weights > 0).float()),
            weights=weights,
        )
        tokens = slots.gather(rows["tokens"])
        spread = sum(
            (koleo(crop, config.koleo_group) for crop in tokens.unbind(1)), tokens.new_zeros(())
        )
        count, one = of_class.new_full((), len(rows["views"])), of_class.new_ones(())
        patches = 2 * count * self.encoder.config.patches
        terms = {
            "class": Term(of_class, count),
            "patches": Term(of_patches / 2, count, config.patch_weight),
            "koleo": Term(spread, one, config.koleo_weight),
        }
        if "gram" in rows:
            terms["gram"] = Term(rows["gram"].mean(dim=1).sum(), count, config.gram.weight)
        metrics = {
            "teacher_entropy": (entropy / 2, count),
            "patch_entropy": (patch_entropy, weights.sum()),
            "masked": ((weights > 0).sum().to(weights.dtype), patches),
        }
        of_step: dict[str, Tensor | float] = {
            "embedding_deviation": embedding_deviation(targets["views"][:, 0], slots),
            "teacher_temperature": self.teacher_temperature,
            "teacher_momentum": self.teacher_momentum,
        }
        return LossOutput(terms, metrics | {n: (v * count, count) for n, v in of_step.items()})

    def _offset(
        self,
        rows: Float[Tensor, "rows width"],
        prototypes: Float[Tensor, "prototypes width"],
        slots: Slots,
        weights: Float[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, " prototypes"]:
        temperature, iterations = self.teacher_temperature, self.config.sinkhorn_iterations
        return sinkhorn_offset(rows, prototypes, temperature, iterations, slots.sum, weights)

    def _masks(self, batch: Batch, crop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the masks of a global crop, and which patches are predicted with what weight."""
        config, grid = self.config, self.encoder.grid_of(batch["crops"][:, crop])
        most = int(config.mask_ratio[1] * grid[0] * grid[1])
        masks = crop_masks(batch["key"], crop, grid, config.mask_probability, config.mask_ratio)
        return masks, *masked_first(masks, most)

    def after_step(
        self, progress: Progress, sums: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> None:
        """Let the teacher follow the student with the momentum of this step."""
        for teacher, student in self._followed():
            follow(teacher, student, self.teacher_momentum)

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
        return [(getattr(self, f"teacher_{name}"), getattr(self, name)) for name in _FOLLOWED]


@torch.no_grad()
def _resampled(
    encoder: ViT, images: Float[Tensor, "batch channels rows columns"], scale: int
) -> Float[Tensor, "batch patches features"]:
    """Return features of the images' patches that were computed at `scale` times their size."""
    grid = encoder.grid_of(images)
    if scale > 1:
        images = functional.interpolate(images.float(), scale_factor=scale, mode="bicubic")
    tokens: Tensor = encoder(images)[:, encoder.prefix :].float()
    if scale == 1:
        return tokens
    shape = (len(tokens), grid[0] * scale, grid[1] * scale, tokens.shape[2])
    maps = tokens.reshape(shape).permute(0, 3, 1, 2)
    return functional.interpolate(maps, size=grid, mode="bicubic").flatten(2).transpose(1, 2)
