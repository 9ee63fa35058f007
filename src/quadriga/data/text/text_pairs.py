"""The views of labelled texts: ``[CLS] A [SEP]``, or ``[CLS] A [SEP] B [SEP]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from pydantic import Field

from quadriga.contracts import Batch, Dataset, Sample, Split, StepPlan, Transform, ViewsConfig
from quadriga.data.text.corpus import TextCorpus
from quadriga.data.text.sentence_pairs import longest_first
from quadriga.errors import UserError

LONGEST_FRAME = 3
"""Number of special tokens of a pair: one at its start, one after each text."""


@dataclass(frozen=True)
class LabelledText:
    """One or two texts as tokens, and their label."""

    first: Sequence[int]
    second: Sequence[int] | None
    label: int | float | None
    """An integer is a class, a float the target of a regression."""
    start: int
    """Id of ``[CLS]``."""
    end: int
    """Id of ``[SEP]``."""


@final
class TextPairsConfig(ViewsConfig):
    """One or two texts with their label, for fine-tuning BERT (arXiv:1810.04805, figure 4)."""

    max_length: int = Field(default=128, ge=LONGEST_FRAME + 2, le=2**20)
    """Largest number of tokens of a sample, with the special ones; in longer pairs the longer text
    loses tokens at its end."""
    padding: Literal["longest", "fixed"] = "longest"
    """Whether a micro-batch is as long as its longest sample, or always `max_length`."""

    def build(self, split: Split) -> TextPairs:
        """Return the transform; nothing is random, so it is the same for both splits."""
        return TextPairs(self)

    def check(self, dataset: Dataset, split: Split, plan: StepPlan | None) -> None:
        """Check that the records are labelled texts.

        Raises:
            UserError: The records are images, or sentences of a corpus.
        """
        if dataset.vocabulary_size is None or isinstance(dataset, TextCorpus):
            raise UserError(
                "views.kind=text_pairs needs labelled texts, but the data has none; set "
                "data.kind=glue, or take views of another kind, such as sentence_pairs for a corpus"
            )


@final
class TextPairs(Transform):
    """Adds special tokens, cuts and pads; per batch, adds the positions of the real tokens."""

    def __init__(self, config: TextPairsConfig) -> None:
        """Keep the config."""
        self.config = config

    def sample(self, record: LabelledText, key: int) -> Sample:
        """Add special tokens to the texts and pad them; `key` is not used.

        Returns:
            ``ids`` and ``segments`` int32 (max_length,), padded with 0; ``lengths`` int64 ();
            ``label`` int64 or float32 () if there is one.
        """
        limit = self.config.max_length
        first, second = record.first, record.second
        if second is None:
            tokens = [record.start, *first[: limit - 2], record.end]
            border = len(tokens)
        else:
            kept = longest_first(len(first), len(second), limit - LONGEST_FRAME)
            head = [record.start, *first[: kept[0]], record.end]
            tokens, border = [*head, *second[: kept[1]], record.end], len(head)
        ids = np.zeros(limit, np.int32)
        ids[: len(tokens)] = tokens
        segments = np.zeros(limit, np.int32)
        segments[border : len(tokens)] = 1
        sample: Sample = {"ids": ids, "segments": segments, "lengths": np.array(len(tokens))}
        if record.label is not None:
            kind = np.float32 if isinstance(record.label, float) else np.int64
            sample["label"] = np.array(record.label, kind)
        return sample

    def batch(self, batch: Batch) -> Batch:
        """Trim to the longest sample, unless the padding is fixed, and add ``tokens``.

        ``ids`` and ``segments`` become int64 (batch, length). ``tokens`` int64 (tokens,) are the
        positions of the real tokens in the flattened ids; with fixed padding all positions.
        """
        lengths = batch["lengths"]
        is_fixed = self.config.padding == "fixed"
        length = batch["ids"].shape[1] if is_fixed else int(lengths.max())
        rows = {name: batch[name][:, :length].long().contiguous() for name in ("ids", "segments")}
        if is_fixed:
            tokens = torch.arange(rows["ids"].numel(), device=lengths.device)
        else:
            real = torch.arange(length, device=lengths.device) < lengths[:, None]
            tokens = real.flatten().nonzero()[:, 0]
        return {**batch, **rows, "tokens": tokens}

    def example(self, size: int, device: torch.device) -> Batch:
        """Return full samples with arbitrary values and labels of class 0."""
        length = self.config.max_length
        zeros = torch.zeros(size, length, dtype=torch.int64, device=device)
        places = torch.arange(size, device=device)
        return {
            "ids": zeros,
            "segments": zeros.clone(),
            "lengths": torch.full((size,), length, device=device),
            "tokens": torch.arange(size * length, device=device),
            "label": torch.zeros(size, dtype=torch.int64, device=device),
            "index": places,
            "key": places.clone(),
        }
