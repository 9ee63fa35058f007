"""A small objective that can be cut: embedding, blocks with dropout, a loss that may be tied."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from quadriga import randomness
from quadriga.contracts import Batch, LossOutput, Objective, Stage
from quadriga.models.parts.initialise import initialise
from quadriga.models.parts.transformer import Dropout

VOCABULARY, WIDTH, LENGTH, SAMPLES = 11, 6, 4, 3


class ToyBlock(nn.Module):
    def __init__(self, number: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.dropout = Dropout(dropout, randomness.fold("toy", number))

    def forward(self, hidden):
        return hidden + self.dropout(functional.gelu(self.linear(self.norm(hidden))))


class Toy(Objective):
    metric_names = ("hits",)

    def __init__(self, depth: int, tied: bool, dropout: float) -> None:
        super().__init__()
        self.depth, self.tied = depth, tied
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(ToyBlock(i, dropout) for i in range(depth))
        if not tied:
            self.decoder = nn.Embedding(VOCABULARY, WIDTH)

    def initialise(self, seed: int) -> None:
        initialise(self, seed, "normal")

    def stages(self, depths):
        assert sum(depths) == self.depth
        ends = [sum(depths[: i + 1]) for i in range(len(depths))]
        return [
            ToyStage(self, index, range(end - depth, end), index == len(depths) - 1)
            for index, (depth, end) in enumerate(zip(depths, ends, strict=True))
        ]

    def forward(self, batch: Batch) -> LossOutput:
        (stage,) = self.stages([self.depth])
        return stage(None, batch)


class ToyStage(Stage):
    def __init__(self, toy: Toy, index: int, blocks: range, is_last: bool) -> None:
        super().__init__()
        self.index, self.is_last, self.tied = index, is_last, toy.tied
        if index == 0 or (is_last and toy.tied):
            self.embed = toy.embed
        self.blocks = nn.ModuleDict({str(i): toy.blocks[i] for i in blocks})
        if is_last and not toy.tied:
            self.decoder = toy.decoder

    def initialise(self, seed: int) -> None:
        initialise(self, seed, "normal")

    def hidden_shape(self, batch: Batch) -> tuple[int, ...]:
        return (*batch["ids"].shape, WIDTH)

    def forward(self, hidden: Any, batch: Batch) -> Any:
        if self.index == 0:
            hidden = 10 * self.embed(batch["ids"])
        for block in self.blocks.values():
            hidden = block(hidden)
        if not self.is_last:
            return hidden
        weight = (self.embed if self.tied else self.decoder).weight
        logits = 10 * hidden @ weight.T
        loss = functional.cross_entropy(logits.flatten(0, 1), batch["target"].flatten())
        hits = (logits.argmax(-1) == batch["target"]).sum()
        return LossOutput.of(loss, None, {"hits": (hits, torch.tensor(batch["target"].numel()))})


def toy_batch(step: int, replica: int, micro: int, bad: bool = False) -> Batch:
    """Return the micro-batch of a step and replica."""
    source = torch.Generator().manual_seed(1000 * step + 100 * replica + micro)
    ids, target = torch.randint(VOCABULARY, (2, SAMPLES, LENGTH), generator=source)
    return {"ids": ids, "target": target, "index": ids[:, 0], "key": ids[:, 0]}


def make_toy(case: dict[str, Any], device: str = "meta") -> Toy:
    """Return a toy, on the meta device or initialised."""
    with torch.device(device):
        toy = Toy(case.get("blocks", 4), case.get("tied", False), case.get("dropout", 0.0))
    if device != "meta":
        toy.initialise(0)
    return toy
