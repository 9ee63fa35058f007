"""The model to export, the interface of a format, and the comparison of two models' outputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from quadriga import __version__, randomness
from quadriga.contracts import Batch, Objective
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.models.bert import Bert, BertConfig
from quadriga.models.vit import ViT, ViTConfig
from quadriga.weights import load_weights

Part = Literal["encoder", "student", "teacher", "all"]
"""The encoder alone: the one that the method evaluates, or of a method with a teacher that of
either; or the whole objective with its heads and decoder."""

Pairs = list[tuple[Tensor, Tensor]]
"""(actual, expected)."""

BATCH = 2
"""Number of images that both models are run on."""

OWN_TOLERANCE = 1e-6
"""Largest relative difference where the same code computes both outputs."""

FOREIGN_TOLERANCE = 1e-4
"""Largest relative difference to another implementation, which sums float32 in another order."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to export."""

    config: RunConfig
    objective: Objective
    """In evaluation mode, on the CPU."""
    part: Part
    step: int
    weights: str
    """raw or ema."""
    class_names: tuple[str, ...] = ()
    """Classes of the training data in the order of the outputs; empty where they are not known."""

    @property
    def module(self) -> nn.Module:
        """The part that is exported."""
        return self.objective if self.part == "all" else self.encoder

    @property
    def encoder(self) -> nn.Module:
        """The encoder that is exported, alone or with the rest.

        Raises:
            UserError: The objective has none, or no teacher.
        """
        return encoder_of(self.objective, self.part)[0]

    @property
    def network(self) -> str | None:
        """Which of two encoders is exported alone: student or teacher; None where it is no choice.

        Raises:
            UserError: The objective has no encoder, or no teacher.
        """
        return None if self.part == "all" else encoder_of(self.objective, self.part)[1]

    @property
    def vit(self) -> ViT:
        """The encoder, for formats that support vision transformers only.

        Raises:
            UserError: It is not a ViT.
        """
        encoder = self.encoder
        if not isinstance(encoder, ViT):
            raise UserError(f"the encoder must be a vision transformer, but is {type(encoder)}")
        return encoder

    @property
    def bert(self) -> Bert:
        """The encoder of a text model.

        Raises:
            UserError: It is not a BERT.
        """
        encoder = self.encoder
        if not isinstance(encoder, Bert):
            raise UserError(f"the encoder must be a BERT, but is {type(encoder)}")
        return encoder

    def notes(self) -> dict[str, Any]:
        """Return the origin of the weights, the model's config, and which images it expects."""
        views = self.config.views.as_dict()
        origin: dict[str, Any] = {
            "version": __version__,
            "run": self.config.name,
            "step": self.step,
            "weights": self.weights,
            "part": self.part,
            "model": self.config.model.as_dict(),
            "views": views,
        }
        if self.network is not None:
            origin["network"] = self.network
        if self.class_names and classes_of(self.config, self.part):
            origin["class_names"] = list(self.class_names)
        return {**origin, **{f"image_{k}": views[k] for k in ("mean", "std") if k in views}}


@dataclass(frozen=True, kw_only=True)
class Check:
    """The outcome of running the model and its export on the same input."""

    against: str
    """How the export was run, for example "with timm 1.0"."""
    difference: float
    """Greatest difference of an output, relative to its greatest value."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the outputs agree; outputs that are not finite never do."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        """Return the check as one line of text."""
        return (
            f"checked {self.against}: greatest difference {self.difference:.1e} of the greatest "
            f"value (tolerance {self.tolerance:.0e})"
        )


class Format(ABC):
    """A format of exports."""

    suffix: ClassVar[str]
    """Suffix of the output's name; empty for a folder."""

    @abstractmethod
    def check(self, config: RunConfig, part: Part) -> None:
        """Check, before anything is read, that the format can hold the model.

        Raises:
            UserError: The format cannot hold the model, or a library is missing.
        """

    @abstractmethod
    def write(self, subject: Subject, target: Path) -> None:
        """Write the model; `target` and its sidecar files do not exist yet.

        Raises:
            UserError: A file cannot be written.
        """

    @abstractmethod
    def verify(self, subject: Subject, target: Path) -> Check:
        """Read the export, and compare its outputs with the model's."""

    def remark(self, subject: Subject) -> str | None:
        """Return a hint for users of the export, or None."""
        return None

    def sidecar_files(self, target: Path) -> list[Path]:
        """Return the files that `write` may create beside `target`."""
        return []


def encoder_of(objective: nn.Module, part: Part) -> tuple[nn.Module, str | None]:
    """Return an objective's encoder, and where there are two which of them it is.

    Args:
        objective: A method; one with a teacher has a ``teacher_encoder``.
        part: Chooses of student and teacher; any other takes the one whose features the method's
            protocols evaluate.

    Raises:
        UserError: The objective has no encoder, or no teacher.
    """
    student: Any = getattr(objective, "encoder", None)
    teacher: Any = getattr(objective, "teacher_encoder", None)
    name = type(objective).__name__
    if not isinstance(student, nn.Module):
        raise UserError(f"--part must be all for a {name}, which has no encoder of its own")
    if teacher is None:
        if part in ("student", "teacher"):
            raise UserError(
                f"--part must be encoder or all for a {name}, which has no teacher, but is {part}"
            )
        return student, None
    evaluated = "teacher" if getattr(objective, "features_of", student) is teacher else "student"
    chosen = part if part in ("student", "teacher") else evaluated
    return (teacher if chosen == "teacher" else student), chosen


def require_vit(config: RunConfig, layout: str) -> ViTConfig:
    """Return the model's config, for layouts that support vision transformers only.

    Raises:
        UserError: The model is of another kind.
    """
    if not isinstance(config.model, ViTConfig):
        raise UserError(
            f"--to {layout} needs model.kind=vit, but the run's is {config.model.kind()}; "
            "use --to safetensors"
        )
    return config.model


def classes_of(config: RunConfig, part: Part) -> int:
    """Return the number of classes of an exported classifier; 0 without one."""
    is_classifier = part == "all" and config.objective.kind() == "supervised"
    return int(config.objective.as_dict()["classes"] or 0) if is_classifier else 0


def logits(objective: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (batch, classes) of a supervised objective's classifier."""
    scores: Tensor = objective.scores(images)  # type: ignore[operator]
    return scores


def read_classifier_back(subject: Subject, path: Path, layout: Literal["timm", "hf"]) -> Tensor:
    """Return the logits that this project's classifier computes from the weights in a file."""
    again = subject.config.objective.build(subject.config.model).eval()
    load_weights(again, path, layout)
    return logits(again, keyed_images(subject.vit.config))


def read_back(config: ViTConfig, path: Path) -> ViT:
    """Return a new encoder with the weights of a file, on the CPU in evaluation mode."""
    with torch.device("meta"):
        made = config.build()
    made = made.to_empty(device="cpu")
    load_weights(made, path)
    return made.eval()


def keyed_images(config: ViTConfig, batch: int = BATCH) -> Tensor:
    """Return float32 test images (batch, channels, side, side), drawn from N(0, 1)."""
    shape = (batch, config.channels, config.image_px, config.image_px)
    return torch.empty(shape).normal_(generator=randomness.generator("export", "images"))


def keyed_text(config: BertConfig) -> Batch:
    """Return a test batch of two sequences of different lengths with some masked tokens."""
    longest = min(32, config.max_positions)
    lengths = torch.tensor([longest, max(1, 3 * longest // 4)])
    columns = torch.arange(longest)
    real = columns < lengths[:, None]
    source = randomness.generator("export", "text")
    ids = torch.empty(real.shape, dtype=torch.int64)
    ids = ids.random_(0, config.vocabulary_size, generator=source) * real
    tokens = real.flatten().nonzero().squeeze(1)
    masked = torch.arange(0, tokens.shape[0], 5)
    segments = (real & (columns >= longest // 2)).long() % config.segment_types
    index = torch.arange(lengths.shape[0])
    return {
        "ids": ids,
        "segments": segments,
        "lengths": lengths,
        "tokens": tokens,
        "masked": masked,
        "targets": ids.flatten()[tokens[masked]].flip(0),
        "is_random": index,
        "index": index,
        "key": index,
    }


def keyed_batch(config: RunConfig) -> Batch:
    """Return a test batch of the run's views; its floating tensors are drawn from N(0, 1)."""
    if isinstance(config.model, BertConfig):
        return keyed_text(config.model)
    batch = config.views.build("train").example(BATCH, torch.device("cpu"))
    for name, tensor in batch.items():
        if tensor.is_floating_point():
            tensor.normal_(generator=randomness.generator("export", name))
    return batch


def greatest_difference(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the greatest difference of (actual, expected) pairs, relative to the greatest value.

    Returns:
        The difference; infinity where a value is not finite or the shapes differ.
    """
    worst = 0.0
    for actual, expected in pairs:
        if actual.shape != expected.shape:
            return math.inf
        scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        found = ((actual.float() - expected.float()).abs().max() / scale).item()
        worst = max(worst, found if math.isfinite(found) else math.inf)
    return worst
