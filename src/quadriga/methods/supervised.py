"""Supervised classification of images, with the soft targets of the DeiT recipe (Touvron et al.,
"Training data-efficient image transformers", 2021, section 6).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from quadriga import randomness
from quadriga.contracts import (
    PREDICTED,
    Batch,
    LossOutput,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    Stage,
    with_initial_values,
)
from quadriga.contracts.stage import check_depths
from quadriga.errors import UserError
from quadriga.losses.soft_targets import Criterion, soft_target_loss
from quadriga.methods.parts.encoders import image_model, one_view
from quadriga.models.parts.initialise import initialise
from quadriga.models.parts.transformer import zero_branches
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig, ViTSlice

_TOP = 5
_PASS = "encoder"
"""Name of the pass; the same in the whole model and its stages, so that drop path is equal."""


@final
class SupervisedConfig(ObjectiveConfig):
    """An encoder and a linear classifier on its feature vector, trained together."""

    classes: int | None = Field(None, ge=2, le=2**24)
    """Number of classes; none: that of the training data, determined before the run starts."""
    loss: Criterion = "cross_entropy"
    """Cross-entropy of a softmax over all classes, or binary cross-entropy per class (DeiT III)."""
    smoothing: float = Field(0.1, ge=0, lt=1)
    """Label smoothing in training: mass of the target that is spread over all classes."""
    initialise: Literal["truncated_normal", "xavier_uniform", "normal"] = "truncated_normal"
    """How weights of linear maps are drawn."""
    zero_residual: bool = False
    """Whether every residual branch starts at zero, which helps to train deep models."""

    def build(self, model: ModelConfig) -> Supervised | SupervisedResNet:
        """Make the objective.

        Raises:
            UserError: `model` does not encode images, the number of classes is unknown, or
                `zero_residual` is set for a ResNet.
        """
        checked = image_model("supervised", model, None)
        if self.classes is None:
            raise UserError(
                "objective.classes must be the number of classes, but is none and the training "
                "data is not at hand to count them; set it"
            )
        classes = self.classes
        if isinstance(checked, ViTConfig):
            return with_initial_values(
                lambda: Supervised(self, checked, classes), Supervised.initialise_all
            )
        if self.zero_residual:
            raise UserError(
                "objective.zero_residual must be false for model.kind=resnet, but is true; set "
                "model.zero_init_residual=true instead"
            )
        return with_initial_values(
            lambda: SupervisedResNet(self, checked, classes), SupervisedResNet.initialise_all
        )


@final
class Supervised(Objective):
    """A vision transformer and a linear classifier on its class token or mean."""

    entry_points = ("features", "scores")

    def __init__(self, config: SupervisedConfig, model: ViTConfig, classes: int) -> None:
        """Make encoder and classifier with undefined values."""
        super().__init__()
        self.config, self.depth = config, model.depth
        self.tokens_per_sample = model.patches
        self.metric_names = _metric_names(classes)
        self.encoder = model.build()
        self.head = nn.Linear(model.width, classes)

    def initialise(self, seed: int) -> None:
        """Fill every tensor, keyed by (seed, its name)."""
        _initialise(self, self.encoder.blocks, self.config, seed)

    def forward(self, batch: Batch) -> LossOutput:
        """Sum the loss over the samples; labels are smoothed only in training mode."""
        images = one_view(batch, "supervised")
        self.encoder.check_size(images)
        scores = self.scores(images, randomness.pass_keys(batch["key"], _PASS))
        return _output(scores, batch, self.config, self.training)

    def scores(
        self,
        images: Float[Tensor, "batch channels side side"],
        keys: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of normalised images; `keys` as for `ViT.encode`."""
        scores: Tensor = self.head(self.encoder.features(images, keys))
        return scores

    def features(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch width"]:
        """Return one vector per image; see `quadriga.contracts.Encoder`."""
        return self.encoder.features(images)

    def stages(self, depths: Sequence[int]) -> list[Stage]:
        """Cut into stages of `depths` blocks; see `quadriga.contracts.Splittable`.

        Raises:
            UserError: The depths do not add up to the model's.
        """
        check_depths(depths, self.depth)
        return [SupervisedStage(self, index, depths) for index in range(len(depths))]


@final
class SupervisedResNet(Objective):
    """A ResNet and a linear classifier on the mean of its last maps; it is not cut into stages."""

    entry_points = ("features", "scores")

    def __init__(self, config: SupervisedConfig, model: ResNetConfig, classes: int) -> None:
        """Make encoder and classifier with undefined values."""
        super().__init__()
        self.config, self.metric_names = config, _metric_names(classes)
        self.encoder = model.build()
        self.head = nn.Linear(model.width, classes)

    def initialise(self, seed: int) -> None:
        """Fill every tensor, keyed by (seed, its name)."""
        initialise(self, seed, self.config.initialise)

    def forward(self, batch: Batch) -> LossOutput:
        """Sum the loss over the samples; labels are smoothed only in training mode."""
        scores = self.scores(one_view(batch, "supervised"))
        return _output(scores, batch, self.config, self.training)

    def scores(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of normalised images."""
        scores: Tensor = self.head(self.features(images))
        return scores

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image; see `quadriga.contracts.Encoder`."""
        return self.encoder.features(images)


@final
class SupervisedStage(Stage):
    """Consecutive blocks; the first stage has the embedding, the last the norm and classifier."""

    def __init__(self, whole: Supervised, index: int, depths: Sequence[int]) -> None:
        """Take the modules of stage `index` from the objective."""
        super().__init__()
        self.index, self.config = index, whole.config
        start = sum(depths[:index])
        self.is_last = index == len(depths) - 1
        blocks = range(start, start + depths[index])
        self.encoder = ViTSlice(whole.encoder, blocks, index == 0, self.is_last)
        if self.is_last:
            self.head = whole.head

    def initialise(self, seed: int) -> None:
        """Fill every tensor with its values in the whole objective."""
        _initialise(self, self.encoder.blocks.values(), self.config, seed)

    def hidden_shape(self, batch: Batch) -> tuple[int, ...]:
        """Return (batch, tokens, width)."""
        model = self.encoder.config
        return (batch["image"].shape[0], self.encoder.prefix + model.patches, model.width)

    def forward(
        self, hidden: Float[Tensor, "batch tokens width"] | None, batch: Batch
    ) -> Tensor | LossOutput:
        """Map the previous stage's output to the next one's input, or to the loss."""
        keys = randomness.pass_keys(batch["key"], _PASS)
        images = one_view(batch, "supervised")
        self.encoder.check_size(images)
        hidden = self.encoder(hidden, images, keys)
        if not self.is_last:
            return hidden
        scores = self.head(self.encoder.pooled(hidden))
        return _output(scores, batch, self.config, self.training)


def _metric_names(classes: int) -> tuple[str, ...]:
    return ("accuracy", f"accuracy_{_TOP}")[: 2 if classes > _TOP else 1]


def _initialise(
    part: nn.Module, blocks: Iterable[nn.Module], config: SupervisedConfig, seed: int
) -> None:
    initialise(part, seed, config.initialise)
    if config.zero_residual:
        zero_branches(blocks)


def _output(
    scores: Tensor, batch: Batch, config: SupervisedConfig, is_training: bool
) -> LossOutput:
    """Return the summed loss, the number of samples, and the hits among the top 1 and top 5."""
    if "label" not in batch:
        raise UserError(
            "supervised needs labels, but these samples have none; use data whose both splits have "
            "labels"
        )
    label, mixed, share = batch["label"], batch.get("mixed_label"), batch.get("share")
    smoothing = config.smoothing if is_training else 0.0
    loss = soft_target_loss(scores, label, mixed, share, smoothing, config.loss)
    count = loss.new_full((), scores.shape[0])
    with torch.no_grad():
        if mixed is not None and share is not None:
            label = torch.where(share >= 0.5, label, mixed)
        classes = scores.shape[1]
        first = scores.topk(min(_TOP, classes), dim=1).indices == label[:, None]
        metrics = {"accuracy": (first[:, 0].sum().to(loss.dtype), count)}
        if classes > _TOP:
            metrics[f"accuracy_{_TOP}"] = (first.sum().to(loss.dtype), count)
        rows = {} if is_training else {PREDICTED: scores.argmax(dim=1)}
    return LossOutput.of(loss, count, metrics)._replace(rows=rows)
