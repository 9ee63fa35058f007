"""Frozen features of a whole data set: extracted once, over all ranks, for every protocol.

Also top-1 and top-5 accuracy, and the comparison of an encoder with its random initialisation.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from quadriga.contracts import Dataset, Encoder, EvaluationContext, Objective
from quadriga.data.parts.classes import match_classes
from quadriga.data.reading.loader import sequential
from quadriga.distributed.collectives import all_gather_values, all_reduce_sum, is_sharded, slice_of
from quadriga.errors import UserError
from quadriga.evaluation.parts.tokens import Selection

BATCH = 256
"""Images per batch of the encoders."""
CPU_BATCH = 32
"""The same on a CPU, whose caches hold the activations of no more: 1.15 times the speed."""
POOLED = Selection()
"""The features that the method names."""
KEPT_BYTES = 2**28
"""Largest features of a random encoder that are kept while the run goes on."""


@dataclass(frozen=True)
class Features:
    """One vector and one label per readable sample of a split, in the order of the data set."""

    values: Tensor
    """float32 (samples, width), in host memory."""
    labels: Tensor
    """int64 (samples,), in host memory."""
    rows: Tensor
    """int64 (samples,), the number of each sample in the data set."""


@dataclass(frozen=True)
class Encoded:
    """One encoder's features of both splits."""

    train: Features
    test: Features


@dataclass(frozen=True)
class FeatureBank:
    """The features of both splits by the trained and by the random encoder."""

    trained: Encoded
    random: Encoded
    """The same encoder before training: the baseline."""
    names: tuple[str, ...]
    """Class names in the order of the labels: those of the training split."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.names)


def feature_bank(
    context: EvaluationContext, protocol: str, selection: Selection = POOLED
) -> FeatureBank:
    """Extract the features of both splits by the trained and the random encoder.

    The images are decoded once for both encoders, and the bank is kept in `context.cache` for
    the next protocol. The random encoder's part, if not too large, is kept in `context.kept` for
    the run's next evaluation. Every rank must call this function; each gets the whole bank.

    Args:
        context: The evaluation's objective, data and ranks.
        protocol: Name of the protocol, for error messages.
        selection: Which of its tokens are features, of an encoder that has several.

    Raises:
        UserError: The objective has no image encoder or not such features, or the data have no
            labels.
    """
    found = context.cache.get(f"feature_bank {selection}")
    if isinstance(found, FeatureBank):
        return found
    check_features(context, protocol)
    random = context.kept.get(f"random features {selection}")
    objectives = [context.objective]
    if random is None:
        objectives.append(context.fresh().to(context.env.device))
    with contextlib.ExitStack() as stack:
        for objective in objectives:
            stack.enter_context(evaluation_mode(objective))
        encoders = [selection.of(objective, protocol) for objective in objectives]
        train = extract(encoders, context.data("train"), context, "features of the training images")
        matched = _matched_test(context, protocol, context.warn)
        test = extract(encoders, matched, context, "features of the test images")
    trained, *others = map(Encoded, train, test)
    random = random or others[0]
    if random.train.values.nbytes + random.test.values.nbytes <= KEPT_BYTES:
        context.kept[f"random features {selection}"] = random
    bank = FeatureBank(trained=trained, random=random, names=context.data("train").classes)
    context.cache[f"feature_bank {selection}"] = bank
    return bank


def extract(
    encoders: Sequence[Encoder], dataset: Dataset, context: EvaluationContext, what: str
) -> list[Features]:
    """Encode every sample of `dataset` once; each rank encodes a part and gets all features.

    Samples that cannot be read are left out, on every rank.

    Args:
        encoders: Modules in evaluation mode on the context's device.
        dataset: A labelled data set.
        context: Gives the transform, the ranks, the workers and the progress bar.
        what: Name of the work in the progress bar.

    Returns:
        The features of each encoder.
    """
    env, total = context.env, len(dataset)
    size = CPU_BATCH if env.device.type == "cpu" else BATCH
    mine = slice_of(total, env.rank, env.world_size)
    labels = torch.zeros(total, dtype=torch.int64)
    seen = torch.zeros(total, dtype=torch.int64)
    values: list[Tensor] = []
    done = 0
    for batch in sequential(
        dataset,
        context.transform,
        mine,
        batch_size=size,
        env=env,
        workers=context.workers,
        warn=context.warn,
        batches=equal_calls(context, total, size),
    ):
        with torch.no_grad(), context.reduced_precision():
            vectors = [encoder.features(batch["image"]).float() for encoder in encoders]
        if not values:
            values = [torch.zeros(total, vector.shape[1]) for vector in vectors]
        index = batch["index"].cpu()
        for whole, part in zip(values, vectors, strict=True):
            whole[index] = part.cpu()
        labels[index] = batch["label"].cpu()
        seen[index] = 1
        done += len(index)
        context.report_progress(what, done, len(mine))
    # A rank without samples gets the widths from the others.
    widths = max(all_gather_values([whole.shape[1] for whole in values], env), key=len)
    values = values or [torch.zeros(total, width) for width in widths]
    # Every row is zero on all ranks but one, so that the sum gathers exactly and in order.
    for tensor in (labels, seen, *values):
        all_reduce_sum(tensor, env)
    rows = seen.nonzero()[:, 0]
    if len(rows) < total:
        labels, values = labels[rows], [whole[rows] for whole in values]
    return [Features(whole, labels, rows) for whole in values]


def equal_calls(context: EvaluationContext, items: int, size: int) -> int:
    """Return how often every rank must call an objective with sharded parameters, else 0.

    Args:
        context: The evaluation's objective and ranks.
        items: Number of items that are divided among the ranks in contiguous parts.
        size: Items per call.
    """
    if not is_sharded(context.objective.parameters()):
        return 0
    return math.ceil(math.ceil(items / context.env.world_size) / size)


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put `module` in evaluation mode; on exit restore the mode of each of its parts."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def frozen_encoder(objective: Objective) -> Iterator[Encoder]:
    """Yield `objective` as an encoder in evaluation mode.

    Raises:
        TypeError: The objective has no `features`.
    """
    if not isinstance(objective, Encoder):
        raise TypeError(f"{type(objective).__name__} has no features(images)")
    with evaluation_mode(objective):
        yield objective


def check_features(context: EvaluationContext, protocol: str) -> None:
    """Check that features can be extracted and that both splits have the same labels.

    Raises:
        UserError: The objective has no image encoder, the data have no labels, the images of a
            split are of one class, or the test split has a class that the training split lacks.
    """
    if not isinstance(context.objective, Encoder):
        name = type(context.objective).__name__
        raise UserError(
            f"{protocol} needs an objective with an image encoder (features), but {name} has"
            f" none; leave {protocol} out"
        )
    train, test = context.data("train"), context.data("test")
    for split, dataset in (("training", train), ("test", test)):
        if not dataset.classes:
            raise UserError(
                f"{protocol} needs labelled {split} images, but the data set names no classes;"
                f" point data at class folders, or leave {protocol} out"
            )
        if len(dataset) == 0:
            raise UserError(
                f"{protocol} needs at least one of the {split} images, but the split is empty;"
                f" point data at a split with images, or leave {protocol} out"
            )
        counts = class_counts(dataset)
        if counts is not None and np.count_nonzero(counts) < 2:
            raise UserError(
                f"{protocol} needs {split} images of two classes or more, since its metric means"
                f" nothing for one, but all {len(dataset)} are of one class"
                f" ({dataset.classes[int(counts.argmax())]}); use other data, or leave {protocol}"
                " out of evaluation.protocols"
            )
    _matched_test(context, protocol)


def _matched_test(
    context: EvaluationContext, protocol: str, say: Callable[[str], None] = lambda text: None
) -> Dataset:
    """Return the test split under the training split's labels, matched by class name."""
    classes = context.data("train").classes
    what = f"{protocol}'s test images"
    return match_classes(context.data("test"), classes, "its training images", what, say)


def class_counts(dataset: Dataset) -> npt.NDArray[np.int64] | None:
    """Return int64 (classes,), the images of each class; None where labels are not at hand."""
    labels = dataset.labels()
    if labels is None:
        return None
    return np.bincount(labels[labels >= 0], minlength=len(dataset.classes))


def warn_of_few_images(context: EvaluationContext, protocol: str, needed: int) -> None:
    """Warn of classes whose images are too few for a metric to say something about them.

    Args:
        context: What is to be evaluated; its rank 0 warns.
        protocol: Who asks.
        needed: Training images of a class without which the protocol can hardly find it.
    """
    train = class_counts(context.data("train"))
    test = class_counts(_matched_test(context, protocol))
    if train is None or test is None or not context.env.is_main:
        return
    classes = context.data("train").classes
    few = f"with fewer training images than the {needed} that {protocol} needs"
    found = {
        "without a test image: the metric says nothing of them": (train > 0) & (test == 0),
        "without a training image: they cannot be found": (train == 0) & (test > 0),
        f"{few}: for them the metric means little": (0 < train) & (train < needed) & (test > 0),
    }
    for what, mask in found.items():
        names = [classes[i] for i in np.flatnonzero(mask)]
        if names:
            more = ", ..." if len(names) > 3 else ""
            context.warn(
                f"{protocol}: {len(names)} of {len(classes)} classes are {what} "
                f"({', '.join(names[:3])}{more})"
            )


def reported_ranks(classes: int) -> tuple[int, ...]:
    """Return the k of the reported top-k accuracies; with five classes top-5 is always 100 %."""
    return (1, 5) if classes > 5 else (1,)


def top_hits(
    scores: Float[Tensor, "samples classes"],
    labels: Int[Tensor, " samples"],
    ranks: tuple[int, ...],
) -> Int[Tensor, " ranks"]:
    """Count the samples whose label is among the k highest scores.

    A label whose score is -inf or NaN is never counted.

    Args:
        scores: One score per class, higher is better.
        labels: The true classes.
        ranks: The values of k, each at most the number of classes.

    Returns:
        int64 (ranks,), one count for each k.
    """
    order = scores.topk(max(ranks), dim=1).indices
    spoken = scores.gather(1, labels[:, None]).isfinite()
    right = (order == labels[:, None]) & spoken
    return torch.stack([right[:, :rank].sum() for rank in ranks])


def percentages(
    hits: Int[Tensor, " ranks"], total: int, ranks: tuple[int, ...]
) -> dict[str, float]:
    """Return ``{"top1": ..., "top5": ...}`` in percent.

    Args:
        hits: Counts from `top_hits`.
        total: Number of samples.
        ranks: The values of k.
    """
    return {
        f"top{rank}": 100.0 * count / total
        for rank, count in zip(ranks, hits.tolist(), strict=True)
    }


def beside_random(trained: dict[str, float], random: dict[str, float]) -> dict[str, float]:
    """Return the metrics of the trained encoder, and the random encoder's as ``<name>_random``."""
    return {**trained, **{f"{name}_random": value for name, value in random.items()}}
