"""A trained image encoder for use in Python: its features, its patch tokens, its transform."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from quadriga.config.own_code import MissingCode
from quadriga.contracts import Encoder, ModelConfig, Transform, UnreadableSample, ViewsConfig
from quadriga.data.images.record import ImageRecord
from quadriga.engine.build import build_objective
from quadriga.engine.checkpoint.read import Weights, read_model, whole_checkpoint
from quadriga.engine.initial_weights import weights_of
from quadriga.errors import UserError
from quadriga.evaluation.parts.tokens import evaluated_network
from quadriga.export.export import read_run_config
from quadriga.export.safetensors import rebuild
from quadriga.models.resnet import ResNet
from quadriga.models.vit import ViT
from quadriga.weights import load_tensors
from quadriga.weights.architecture import read_architecture, read_views
from quadriga.weights.files import FileContent, read_weights

AnyImage = Path | str | bytes | Image.Image | npt.NDArray[np.uint8]
"""A file, the bytes of one, or an image in memory: Pillow's, or uint8 (height, width, 3) in RGB."""


@final
class ImageTransform:
    """Makes of an image what an encoder takes: resizes, crops the centre and normalises.

    It can be the ``transform`` of a torchvision data set.
    """

    def __init__(self, views: ViewsConfig) -> None:
        """Take the evaluation transform of `views`."""
        self.views = views
        self._transform: Transform = views.build("test")

    def __call__(self, image: AnyImage) -> Float[Tensor, "channels height width"]:
        """Return a normalised image, float32.

        Raises:
            UserError: It cannot be read.
        """
        try:
            sample = self._transform.sample(_record(image), 0)
        except (OSError, UnreadableSample) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{_name(image)} cannot be read: {reason}") from error
        batch = {name: torch.from_numpy(value)[None] for name, value in sample.items()}
        return self._transform.batch(batch)["image"][0]


def _name(image: AnyImage) -> str:
    return str(image) if isinstance(image, Path | str) else "the image"


def _record(image: AnyImage) -> ImageRecord:
    data: bytes | npt.NDArray[np.uint8]
    if isinstance(image, Path | str):
        data = Path(image).read_bytes()
    elif isinstance(image, Image.Image):
        data = np.asarray(image.convert("RGB"))
    else:
        data = image
    return ImageRecord(data, None, _name(image))


@final
class ImageEncoder(nn.Module):
    """A trained encoder in evaluation mode, whose parameters require no gradient.

    ``requires_grad_(True)`` and ``train()`` make it a part of another model that is fine-tuned.
    """

    def __init__(self, network: nn.Module, views: ViewsConfig | str) -> None:
        """Hold an encoder.

        Args:
            network: A ViT, a ResNet, or an objective with ``features``.
            views: How images become its input, or the reason why that is unknown.

        Raises:
            UserError: The network has no ``features``.
        """
        super().__init__()
        if not isinstance(network, Encoder):
            raise UserError(
                f"{type(network).__name__} must encode images, but has no features(images); "
                "its tensors can be read with quadriga.weights.files.read_tensors"
            )
        self.network = network
        self._views = views
        self.requires_grad_(False).eval()

    @property
    def transform(self) -> ImageTransform:
        """What makes the encoder's input of an image.

        Raises:
            UserError: The weights do not say how their images were normalised.
        """
        if isinstance(self._views, str):
            raise UserError(
                f"{self._views}; give load_encoder views=, such as ImageViewsConfig(image_px=224, "
                "mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))"
            )
        return ImageTransform(self._views)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return `features`."""
        return self.features(images)

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image, as the protocols of the method evaluate it.

        Args:
            images: What `transform` makes, on the encoder's device.
        """
        found: Tensor = self.network.features(images)
        return found

    def patch_tokens(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches features"]:
        """Return one vector per patch, row by row; of a ResNet one per position of its last maps.

        Raises:
            UserError: The network has no ViT or ResNet as its ``encoder``.
        """
        network = evaluated_network(self.network)
        if isinstance(network, ViT):
            return network(images)[:, network.prefix :]  # type: ignore[no-any-return]
        if isinstance(network, ResNet):
            return network(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]
        raise UserError(f"{type(self.network).__name__} has no ViT and no ResNet as its encoder")


def load_encoder(
    source: Path | str,
    weights: Weights = "raw",
    model: ModelConfig | None = None,
    views: ViewsConfig | None = None,
) -> ImageEncoder:
    """Read a trained image encoder, on the CPU in evaluation mode.

    Args:
        source: A run (its newest whole checkpoint), a checkpoint in its run, a file of weights
            under this project's names (an export), timm's or torchvision's or Hugging Face's, or
            the folder of a published model.
        weights: Of a checkpoint: the weights of its step, or their moving average (ema).
        model: The architecture, where a file of weights does not tell it.
        views: How images become the encoder's input, where `source` does not tell it.

    Raises:
        UserError: There is no such thing, it is damaged, or it holds no image encoder.
    """
    path = Path(source).expanduser()
    file = weights_of(path)
    if not file.exists():
        raise UserError(f"{path} does not exist; name a run, a checkpoint or a file of weights")
    if file.is_dir():
        return _of_run(path, weights, views)
    if weights != "raw":
        raise UserError(f"weights must be raw for the file {file}, but is {weights}")
    return _of_file(file, model, views)


def _of_run(path: Path, weights: Weights, views: ViewsConfig | None) -> ImageEncoder:
    folder = whole_checkpoint(path)
    config = read_run_config(path, None)
    objective = build_objective(config, torch.device("cpu"), config.seed)
    load_tensors(objective, read_model(folder, weights, "weights"), folder, "quadriga")
    return ImageEncoder(objective, views or config.views)


def _of_file(file: Path, model: ModelConfig | None, views: ViewsConfig | None) -> ImageEncoder:
    content = read_weights(file)
    known = read_architecture(file, content.tensors, content.notes) if model is None else None
    if known is not None and known.objective is not None:
        network = rebuild(file)
        model = known.model
    else:
        model = known.model if known is not None else model
        assert model is not None
        network = model.build()
        load_tensors(network, content.tensors, file)
    return ImageEncoder(network, views or _views_of(file, content, model))


def _views_of(file: Path, content: FileContent, model: ModelConfig) -> ViewsConfig | str:
    values = read_views(file, content.notes)
    if not values:
        return f"{file} does not say how its images were normalised"
    kind = {"kind": "image_views", "image_px": model.as_dict().get("image_px", 224)}
    try:
        return ViewsConfig.from_dict({**kind, **values})
    except MissingCode as error:
        return str(error)
