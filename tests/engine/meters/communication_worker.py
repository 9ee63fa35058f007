"""One rank of the tests of the communication timer."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from quadriga.distributed.process_group import process_group
from quadriga.engine.meters.throughput import CommunicationTimer

LATE_SECONDS = 0.3


def gradients(timed: bool, accumulate: int) -> list[torch.Tensor]:
    """Return the gradients of the last of three steps, reduced over the ranks."""
    rank = torch.distributed.get_rank()
    source = torch.Generator().manual_seed(5)
    layers = [nn.Linear(64, 64) for _ in range(6)]
    for layer in layers:
        for parameter in layer.parameters():
            with torch.no_grad():
                parameter.normal_(std=0.1, generator=source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        model = DistributedDataParallel(
            nn.Sequential(*layers),
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=0.02,  # several buckets
        )
    timer = CommunicationTimer(model, torch.device("cpu")) if timed else None
    for step in range(3):
        model.zero_grad(set_to_none=True)
        for micro in range(accumulate):
            seed = torch.Generator().manual_seed(100 * step + 10 * micro + rank)
            batch = torch.empty(3 + rank, 64).normal_(generator=seed)
            last = micro == accumulate - 1
            model.require_backward_grad_sync = last
            model(batch).tanh().sum().backward()
            if timer is not None:
                timer.backward_ended()
                seconds = timer.take_seconds()
                assert seconds is not None
                assert (seconds > 0) == last, seconds  # only the last micro-batch reduces
                assert timer.take_seconds() == 0
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def waited() -> list[float]:
    """Return what two steps measure when rank 1 comes late to the second one's reduction."""
    rank = torch.distributed.get_rank()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        model = DistributedDataParallel(nn.Linear(8, 8), broadcast_buffers=False)
    timer = CommunicationTimer(model, torch.device("cpu"))
    found = []
    for late in (0.0, LATE_SECONDS):
        loss = model(torch.ones(2, 8)).sum()
        torch.distributed.barrier()
        time.sleep(late * rank)
        loss.backward()
        timer.backward_ended()
        seconds = timer.take_seconds()
        assert seconds is not None
        found.append(seconds)
    return found


def main(folder: Path) -> None:
    """Write what this rank found."""
    with process_group("cpu") as env:
        found: dict[str, object] = {}
        for accumulate in (1, 2):
            plain = gradients(timed=False, accumulate=accumulate)
            timed = gradients(timed=True, accumulate=accumulate)
            same = all(torch.equal(a, b) for a, b in zip(plain, timed, strict=True))
            found[f"equal_{accumulate}"] = same and all(g.abs().max() > 0 for g in plain)
        found["waited"] = waited()
        (folder / f"rank_{env.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
