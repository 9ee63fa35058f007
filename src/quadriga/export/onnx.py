"""Exports to ONNX: images in, one vector per image out, for any batch size."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.export.subject import (
    BATCH,
    FOREIGN_TOLERANCE,
    Check,
    Format,
    Part,
    Subject,
    greatest_difference,
    keyed_images,
    require_vit,
)

OPSET = 18
"""Version of the operators: torch's exporter writes this one without a conversion."""

ONE_FILE_BYTES = 1_900_000_000
"""Weights above this size go to a second file: a protobuf message is at most 2 GiB."""

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


class Features(nn.Module):
    """The encoder's `features` as a forward pass."""

    def __init__(self, encoder: nn.Module) -> None:
        """Wrap an encoder that has `features`."""
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 images (batch, channels, side, side) to vectors (batch, width)."""
        features: Tensor = self.encoder.features(images)  # type: ignore[operator]
        return features


class OnnxFormat(Format):
    """``NAME.onnx``, and for models of more than 1.9 GB ``NAME.onnx.data`` with the weights."""

    suffix = ".onnx"

    def check(self, config: RunConfig, part: Part) -> None:
        """Refuse decoders; check that the packages that write and run the file are installed."""
        if part == "all":
            raise UserError(
                "--part must be encoder for --to onnx, but is all: the export is the encoder's "
                "features; use --to hf or safetensors"
            )
        require_vit(config, "onnx")
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"--to onnx needs the packages {', '.join(_NEEDED)}, but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not installed; "
                "pip install 'quadriga[onnx]'"
            )

    def sidecar_files(self, target: Path) -> list[Path]:
        """Return the file with the weights of a large model."""
        return [target.with_name(f"{target.name}.data")]

    def write(self, subject: Subject, target: Path) -> None:
        """Trace the encoder's features and write them."""
        encoder = subject.vit
        images = keyed_images(encoder.config)
        size = sum(tensor.numel() * tensor.element_size() for tensor in encoder.parameters())
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                Features(encoder).eval(),
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                verbose=False,
            )
            program.model.metadata_props["quadriga"] = json.dumps(subject.notes())
            program.save(str(target), external_data=size > ONE_FILE_BYTES)

    def verify(self, subject: Subject, target: Path) -> Check:
        """Run the file with ONNX Runtime, on the traced batch size and on two others."""
        import onnxruntime

        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        pairs = []
        for batch in (1, BATCH, BATCH + 1):
            images = keyed_images(subject.vit.config, batch)
            (actual,) = session.run(["features"], {"images": images.numpy()})
            with torch.no_grad():
                pairs.append((torch.from_numpy(actual), subject.vit.features(images)))
        return Check(
            against=f"with onnxruntime {onnxruntime.__version__} (opset {OPSET}, batch sizes "
            f"1, {BATCH} and {BATCH + 1})",
            difference=greatest_difference(pairs),
            tolerance=FOREIGN_TOLERANCE,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's remarks on packages that this model does not need."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
