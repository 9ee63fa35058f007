"""One rank of the tests of the sum of gradients over replicas."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quadriga.distributed.mesh import make_ranks
from quadriga.distributed.process_group import process_group
from quadriga.engine.step import gradients
from quadriga.engine.step.gradients import GradientSum

LATE_SECONDS = 0.3


class Parts(nn.Module):
    """Six layers, of which a rank uses some; the last one nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(5)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(7))
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.normal_(std=0.1, generator=source)

    def forward(self, rows: Tensor, used: Sequence[int]) -> Tensor:
        for number in used:
            rows = self.layers[number](rows).tanh()
        return rows.sum()


def passes(rank: int, accumulate: int) -> list[tuple[Tensor, list[int]]]:
    """Return the inputs of each micro-batch of a rank, and the layers that it uses."""
    made = []
    for micro in range(accumulate):
        seed = torch.Generator().manual_seed(10 * micro + rank)
        rows = torch.empty(3 + rank, 64).normal_(generator=seed)
        made.append((rows, [0, 1 + (rank + micro) % 3, 4, 5] if rank else [0, 4, 5]))
    return made


def summed(accumulate: int) -> bool:
    """Return whether the sum equals that of all ranks' gradients, made one after the other."""
    ranks = make_ranks(ENV)
    model, plain = Parts(), Parts()
    total = GradientSum(list(model.named_parameters()), ranks.samples)
    for _ in range(2):  # what is left of a step must not be in the next one
        total.begin()
        own = passes(ENV.rank, accumulate)
        for micro, (rows, used) in enumerate(own):
            if micro < len(own) - 1:
                model(rows, used).backward()
                continue
            with total.last_backward():
                model(rows, used).backward()
    plain.zero_grad(set_to_none=True)
    for rows, used in passes(ENV.rank, accumulate):
        plain(rows, used).backward()
    same = True
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        dist.all_reduce(expected)
        assert ours.grad is not None
        same &= torch.allclose(ours.grad, expected, rtol=1e-6, atol=1e-6)
    unused = model.layers[6].weight.grad
    return same and unused is not None and not unused.any()


def waited() -> list[float]:
    """Return what two steps measure when the other ranks come late to the second one's sum."""
    model = nn.Linear(8, 8)
    total = GradientSum(list(model.named_parameters()), make_ranks(ENV).samples)
    found = []
    for late in (0.0, LATE_SECONDS):
        total.begin()
        loss = model(torch.ones(2, 8)).sum()
        dist.barrier()
        time.sleep(late * ENV.rank)
        with total.last_backward():
            loss.backward()
        found.append(total.timer.take_seconds())
    return found


if __name__ == "__main__":
    gradients.FIRST_BUCKET_BYTES, gradients.BUCKET_BYTES = 5000, 20000  # several buckets
    with process_group("cpu") as ENV:
        result = {"summed": [summed(1), summed(3)], "waited": waited()}
        (Path(sys.argv[1]) / f"rank_{ENV.rank}.json").write_text(json.dumps(result))
