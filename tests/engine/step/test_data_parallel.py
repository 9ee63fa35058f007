"""N ranks = 1 rank, M micro-batches = 1, and the step of a hand-written loop."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from parallel_worker import tiny_config, train
from quadriga.data.reading.sampling import step_samples
from quadriga.engine.build import build_objective
from ranks import run_ranks

TESTS = Path(__file__).resolve().parents[2]


# The gradient of the keys' bias is zero but for rounding (softmax does not see it), and Adam would
# blow that rounding up to a full step: an epsilon above the rounding keeps the comparison fair.
CALM = "optim.eps=1e-4"


def result_of(path: Path, words: list[str], world_size: int = 1) -> dict[str, torch.Tensor]:
    if world_size == 1:
        train(path, words)
    else:
        command = [sys.executable, str(TESTS / "parallel_worker.py"), str(path), *words]
        for rank in run_ranks(command, world_size):
            assert rank.returncode == 0, rank.stderr
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return loaded


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    # The same sums in another order: float32 rounding over five steps.
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=2e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(("clip", "drop_path"), [("none", 0.0), ("0.05", 0.5)])
def test_micro_batches_and_ranks_make_the_step_of_the_whole_batch(
    tmp_path: Path, clip: str, drop_path: float
) -> None:
    # 10 samples do not divide by 4 micro-batches: sums and counts make uneven parts exact.
    words = [CALM, "train.batch_size=10", f"optim.clip_norm={clip}"]
    words.append(f"model.drop_path={drop_path}")
    whole = result_of(tmp_path / "whole.pt", words)
    accumulated = result_of(tmp_path / "four.pt", [*words, "train.accumulate=4"])
    assert_close(whole, accumulated)
    two = result_of(tmp_path / "two.pt", [*words, "train.accumulate=2"], world_size=2)
    assert_close(whole, two)


def test_a_step_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    """Mean loss, one backward, torch's own clipping and AdamW, written out by hand."""
    words = [CALM, "optim.clip_norm=0.05", "optim.lr=1e-2", "optim.lr_batch=8"]
    ours = result_of(tmp_path / "ours.pt", words)
    config = tiny_config(words)
    objective = build_objective(config, torch.device("cpu"), config.seed)
    named = list(objective.named_parameters())
    optimizer = config.optim.build(named)
    dataset, transform = config.data.build("train"), config.views.build("train")
    losses = []
    for step in range(5):
        index, key = step_samples(config.seed, len(dataset), 8, step)
        samples = [
            transform.sample(dataset.read(int(i)), int(k) % 2**64)
            for i, k in zip(index, key, strict=True)
        ]
        batch = {
            "image": torch.stack([torch.from_numpy(s["image"]) for s in samples]),
            "key": torch.from_numpy(key),
            "index": torch.from_numpy(index),
        }
        output = objective(transform.batch(batch))
        loss = output.only.total / output.only.targets
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 0.05)
        progress = tiny_progress(config, len(dataset), step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * config.schedule.factor(progress)
        optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(ours["losses"].float(), torch.stack(losses), rtol=1e-5, atol=0)
    for name, parameter in named:
        torch.testing.assert_close(
            ours[f"objective.{name}"], parameter.detach(), rtol=2e-4, atol=2e-6, msg=name
        )


def tiny_progress(config: object, size: int, step: int) -> object:
    from quadriga.contracts import Progress

    return Progress(step, 5, 8, size)
