"""Compile blocks of BERT and call them with other shapes: a process of its own.

Prints one JSON object: the greatest difference from plain blocks, the programs at each call in
float32 and in bfloat16, and the breaks of graphs.
"""

from __future__ import annotations

import json
from functools import partialmethod

import torch
from torch import nn
from torch._dynamo.utils import counters

from quadriga.engine.step.blocks import compile_blocks
from quadriga.models.parts.bert_blocks import BertBlock, BertShape, Places


class Encoder(nn.Module):
    """Two blocks where the engine looks for them."""

    def __init__(self) -> None:
        super().__init__()
        shape = BertShape(
            width=8, heads=2, mlp_width=8, norm_eps=1e-12, dropout=0.0, attention_dropout=0.0
        )
        self.blocks = nn.ModuleList(BertBlock(shape, layer) for layer in range(2))

    def forward(self, tokens: torch.Tensor, places: Places) -> torch.Tensor:
        for block in self.blocks:
            tokens = block(tokens, places)
        return tokens


def main() -> None:
    """Run four micro-batches of other lengths through both."""
    # What is counted is how often the code is read anew, which is the same without a C++ compiler.
    nn.Module.compile = partialmethod(nn.Module.compile, backend="eager")
    plain, compiled = Encoder(), Encoder()
    compiled.load_state_dict(plain.state_dict())
    compile_blocks(compiled)
    gap = 0.0
    programs: dict[str, list[int]] = {"float32": [], "bfloat16": []}
    for precision, counted in programs.items():
        reduced = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
        before = counters["stats"]["unique_graphs"]
        for length in (5, 7, 8, 11):
            lengths = torch.tensor([length, 3, length - 1])
            keys = torch.arange(length) < lengths[:, None]
            places = Places(3, length, keys.view(-1).nonzero().view(-1), keys[:, None, None])
            tokens = torch.randn(int(lengths.sum()), 8)
            with torch.no_grad(), reduced:
                difference = compiled(tokens, places) - plain(tokens, places)
            gap = max(gap, float(difference.abs().max()))
            counted.append(counters["stats"]["unique_graphs"] - before)
    print(json.dumps({"gap": gap, "programs": programs, "breaks": counters["graph_break"]}))


if __name__ == "__main__":
    main()
