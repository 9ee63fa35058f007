"""A small objective that can be cut, with tied weights and dropout, and a run of it.

`WordsConfig` predicts the next of some numbers. Its kinds are classes of this file, so a config
of it can be written to JSON and read again by whoever has imported it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from quadriga import randomness
from quadriga.contracts import (
    Batch,
    Dataset,
    DatasetConfig,
    LossOutput,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    OptimizerConfig,
    Sample,
    Split,
    Stage,
    Transform,
    ViewsConfig,
)
from quadriga.engine.run_config import LoaderConfig, LogConfig, RunConfig, TrainConfig
from quadriga.models.parts.initialise import Filler, initialise
from quadriga.models.parts.transformer import Dropout
from quadriga.optim.adam import AdamWConfig
from quadriga.schedules.curves import WarmupCosineConfig

LENGTH = 5
IGNORED = -100


class WordsModelConfig(ModelConfig):
    """An embedding that is also the output map, and residual MLPs between the two."""

    vocabulary_size: int = Field(13, ge=2)
    width: int = Field(8, ge=1)
    depth: int = Field(4, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    def build(self) -> nn.Module:
        return nn.ModuleList(WordsBlock(self, layer) for layer in range(self.depth))


class WordsBlock(nn.Module):
    def __init__(self, config: WordsModelConfig, layer: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.hidden = nn.Linear(config.width, 2 * config.width)
        self.output = nn.Linear(2 * config.width, config.width)
        self.dropout = Dropout(config.dropout, randomness.fold("dropout", layer, "words"))

    def forward(self, hidden: Tensor) -> Tensor:
        branch = self.output(functional.gelu(self.hidden(self.norm(hidden))))
        return hidden + self.dropout(branch)


class WordsHead(nn.Module):
    def __init__(self, config: WordsModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.bias = nn.Parameter(torch.empty(config.vocabulary_size))

    def fill(self, filler: Filler) -> None:
        filler.constant("bias", 0.0)

    def loss(self, hidden: Tensor, table: Tensor, targets: Tensor) -> LossOutput:
        # No `forward`: what counts operations by module takes no parameter as a module's input.
        logits = functional.linear(self.norm(hidden), table, self.bias).flatten(0, 1).float()
        loss = functional.cross_entropy(logits, targets.flatten(), reduction="sum")
        known = targets.flatten() != IGNORED
        right = (logits.argmax(1) == targets.flatten()) & known
        count = known.sum().to(loss.dtype)
        return LossOutput.of(loss, count, {"accuracy": (right.sum().detach(), count)})


class WordsConfig(ObjectiveConfig):
    def build(self, model: ModelConfig) -> Words:
        assert isinstance(model, WordsModelConfig)
        return Words(model)


class Words(Objective):
    """The whole objective; how many targets a micro-batch has depends on its samples."""

    metric_names = ("accuracy",)
    tokens_per_sample = LENGTH

    def __init__(self, config: WordsModelConfig) -> None:
        super().__init__()
        self.config = config
        self.depth = config.depth
        self.embeddings = nn.Embedding(config.vocabulary_size, config.width)
        self.blocks = config.build()
        self.head = WordsHead(config)

    def initialise(self, seed: int) -> None:
        initialise(self, seed)

    def forward(self, batch: Batch) -> LossOutput:
        hidden = self.embeddings(batch["ids"])
        for block in self.blocks:
            hidden = block(hidden)
        return self.head.loss(hidden, self.embeddings.weight, batch["targets"])

    def stages(self, depths: Sequence[int]) -> list[Stage]:
        assert sum(depths) == self.depth
        starts = np.cumsum([0, *depths])
        return [
            WordsStage(self, index, int(first), int(end), is_last=index == len(depths) - 1)
            for index, (first, end) in enumerate(itertools.pairwise(starts))
        ]


class WordsStage(Stage):
    def __init__(self, whole: Words, index: int, first: int, end: int, *, is_last: bool) -> None:
        super().__init__()
        self.index, self.is_last = index, is_last
        self.width = whole.config.width
        if index == 0 or is_last:
            self.embeddings = whole.embeddings
        # A dictionary, so that a block has its number in the whole objective.
        self.blocks = nn.ModuleDict({str(i): whole.blocks[i] for i in range(first, end)})
        if is_last:
            self.head = whole.head

    def initialise(self, seed: int) -> None:
        initialise(self, seed)

    def hidden_shape(self, batch: Batch) -> tuple[int, ...]:
        return (*batch["ids"].shape, self.width)

    def forward(self, hidden: Tensor | None, batch: Batch) -> Tensor | LossOutput:
        if hidden is None:
            hidden = self.embeddings(batch["ids"])
        for block in self.blocks.values():
            hidden = block(hidden)
        if self.is_last:
            return self.head.loss(hidden, self.embeddings.weight, batch["targets"])
        return hidden


class NumbersConfig(DatasetConfig):
    """So many records, each nothing but its index."""

    size: int = Field(64, ge=1)

    def build(self, split: Split) -> Numbers:
        return Numbers(self.size)


class Numbers(Dataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def read(self, index: int) -> int:
        return index

    def name(self, index: int) -> str:
        return f"number {index}"


class RowsConfig(ViewsConfig):
    """A row counts up from the record's index by a step that is drawn; some targets are ignored."""

    vocabulary_size: int = Field(13, ge=2)

    def build(self, split: Split) -> Rows:
        return Rows(self.vocabulary_size)


class Rows(Transform):
    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size

    def sample(self, record: Any, key: int) -> Sample:
        step = 1 + key % 3
        row = (int(record) + step * np.arange(LENGTH + 1, dtype=np.int64)) % self.vocabulary_size
        targets = row[1:].copy()
        targets[: key % 2] = IGNORED
        return {"ids": row[:-1], "targets": targets}

    def batch(self, batch: Batch) -> Batch:
        return batch

    def example(self, size: int, device: torch.device) -> Batch:
        row = torch.zeros((size, LENGTH), dtype=torch.int64, device=device)
        numbers = torch.zeros(size, dtype=torch.int64, device=device)
        return {"ids": row, "targets": row.clone(), "index": numbers, "key": numbers.clone()}


def words_run(optim: OptimizerConfig | None = None, **overrides: Any) -> RunConfig:
    """Return a tiny run; overrides have two underscores for a dot: ``train__steps=3``."""
    config = RunConfig(
        name="words",
        model=WordsModelConfig(),
        objective=WordsConfig(),
        data=NumbersConfig(),
        views=RowsConfig(),
        optim=optim or AdamWConfig(lr=1e-2, lr_batch=8),
        schedule=WarmupCosineConfig(),
        train=TrainConfig(steps=6, batch_size=8, device="cpu"),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=1, loggers=()),
    )
    return config.override({name.replace("__", "."): value for name, value in overrides.items()})
