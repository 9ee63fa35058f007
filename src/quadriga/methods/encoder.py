"""An encoder without a method: weights from elsewhere, to be evaluated and not trained."""

from __future__ import annotations

from typing import NoReturn, final

from torch import Tensor

from quadriga.contracts import Batch, Dataset, ModelConfig, Objective, ObjectiveConfig, ViewsConfig
from quadriga.errors import UserError
from quadriga.models.parts.initialise import initialise
from quadriga.models.resnet import ResNet, ResNetConfig
from quadriga.models.vit import ViT, ViTConfig


@final
class EncoderOnlyConfig(ObjectiveConfig):
    """An image encoder alone, for ``quadriga eval`` of a file of weights."""

    def build(self, model: ModelConfig) -> EncoderOnly:
        """Make the encoder.

        Raises:
            UserError: `model` is no image encoder.
        """
        if not isinstance(model, ViTConfig | ResNetConfig):
            raise UserError(
                f"objective.kind=encoder needs model.kind=vit or resnet, but is {model.kind()}"
            )
        return EncoderOnly(model.build())

    def check(self, model: ModelConfig, dataset: Dataset | None, views: ViewsConfig) -> None:
        """Refuse to be trained.

        Raises:
            UserError: Always.
        """
        _refuse()


@final
class EncoderOnly(Objective):
    """A vision transformer or a ResNet that has no loss."""

    entry_points = ("features",)

    def __init__(self, encoder: ViT | ResNet) -> None:
        """Hold the encoder."""
        super().__init__()
        self.encoder = encoder

    def initialise(self, seed: int) -> None:
        """Fill every tensor, keyed by (seed, its name)."""
        initialise(self, seed, "truncated_normal")

    def forward(self, batch: Batch) -> NoReturn:
        """Refuse: there is no loss.

        Raises:
            UserError: Always.
        """
        _refuse()

    def features(self, images: Tensor) -> Tensor:
        """Return the encoder's vectors; see `quadriga.contracts.Encoder`."""
        return self.encoder.features(images)


def _refuse() -> NoReturn:
    raise UserError(
        "objective.kind must be a method with a loss, such as mae, but is encoder: weights without "
        "a classifier, which knn and linear_probe can evaluate"
    )
