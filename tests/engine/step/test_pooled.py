"""Teachers, queues and losses over the step are the same on any ranks and micro-batches.

Plain gradient descent: an adaptive optimizer makes a step of full size out of the rounding of a
gradient that is zero in theory. ``smooth``: a GELU for every ReLU, whose kink does the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ranks import run_ranks

HERE = Path(__file__).resolve().parents[2]

SHARED = ["train.steps=5", "train.epochs=none", "train.batch_size=16", "optim.kind=sgd"]
SHARED += ["schedule.warmup_epochs=0", "optim.lr=0.01", "optim.clip_norm=none"]
VIT = ["model.width=32", "model.depth=3", "model.heads=2"]
METHODS = {
    "moco_v3": ["recipe=moco_v3_digits", *VIT, "model.drop_path=0.2"],
    "dino": ["recipe=dino_digits", *VIT, "model.drop_path=0.2", "objective.frozen_epochs=0"],
    "moco": [
        "recipe=swav_digits",
        "smooth",
        "train.batch_size=64",
        *(f"{part}.image_px=16" for part in ("data", "views", "model")),
        "objective.kind=moco",
        "objective.hidden_width=none",
        "objective.queue=200",
        "objective.statistics_group=2",
        "objective.shuffled_groups=2",
    ],
    "swav": [
        "recipe=swav_digits",
        "smooth",
        "optim.lr=0.0001",
        "objective.statistics_group=4",
        "objective.queue=32",
        "objective.queue_start_epoch=0",
        "objective.frozen_epochs=0",
    ],
}
QUICK_OR_LONG = [
    pytest.param(name, marks=pytest.mark.long if name == "moco" else ()) for name in METHODS
]
"""MoCo without its shuffle has a shorter test beside those of the other methods."""
LAYOUTS = [
    (ranks, accumulate, how)
    for ranks in (1, 2, 4)
    for accumulate in (1, 4)
    for how in ("ddp", "fsdp")
]
LAYOUTS = [case for case in LAYOUTS if case[0] > 1 or case[2] == "ddp"]
QUICK = {(2, 4, "ddp")}

Result = dict[str, Tensor]


def trained(folder: Path, method: str, ranks: int, accumulate: int, how: str) -> Result:
    """Return the state after five steps, their losses and their gradient norms."""
    path = folder / f"{method}-{ranks}-{accumulate}-{how}.pt"
    if not path.exists():
        words = [
            *SHARED,
            *METHODS[method],
            f"train.accumulate={accumulate}",
            f"train.parallel={how}",
        ]
        command = [sys.executable, str(HERE / "parallel_worker.py"), str(path), *words]
        for rank in run_ranks(command, ranks, timeout=200):
            assert rank.returncode == 0, rank.stderr
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pooled")


@pytest.mark.parametrize("method", QUICK_OR_LONG)
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(
            case, marks=() if case in QUICK else pytest.mark.long, id="-".join(map(str, case))
        )
        for case in LAYOUTS[1:]
    ],
)
def test_the_step_is_that_of_one_rank_and_one_micro_batch(
    folder: Path, method: str, layout: tuple[int, int, str]
) -> None:
    reference, other = trained(folder, method, *LAYOUTS[0]), trained(folder, method, *layout)
    assert reference.keys() == other.keys()
    for name, tensor in reference.items():
        # Moments are gradients of these methods' size; all else is held to MAE's tolerance.
        scale = tensor.abs().max().item() if name.startswith("optimizer.") else 0.0
        torch.testing.assert_close(
            other[name], tensor, rtol=2e-4, atol=2e-6 + 2e-5 * scale, msg=f"{name}"
        )


@pytest.mark.parametrize("method", QUICK_OR_LONG)
def test_the_comparison_is_not_empty(folder: Path, method: str) -> None:
    found = trained(folder, method, *LAYOUTS[0])
    assert (found["grad_norms"] > 1e-4).all()
    assert found["losses"].unique().numel() == 5
    names = " ".join(found)
    state = {"moco_v3": "teacher", "dino": "centre", "swav": "queue", "moco": "queue"}
    assert state[method] in names
