"""The matrix: every layout makes the step of one rank with the whole batch.

{single, DDP 2, FSDP 2, HSDP 2 x 2, FSDP 4} x {accumulate 1, 4}, clipping on, with a moving
average, uneven micro-batches (20 samples over up to 16 parts): after five steps parameters,
optimizer state, average, losses and gradient norms agree to relative 2e-4, absolute 2e-6: the
same sums in another order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from ranks import run_ranks

HERE = Path(__file__).resolve().parent
WORKER = HERE.parents[1] / "parallel_worker.py"

# The gradient of the keys' bias is zero but for rounding (softmax does not see it), and Adam would
# blow that rounding up to a full step: an epsilon above the rounding keeps the comparison fair.
COMMON = ("optim.eps=1e-4", "train.batch_size=20", "optim.clip_norm=0.05", "ema.decay=0.9")

LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "single": (1, ()),
    "ddp2": (2, ("train.parallel=ddp",)),
    "fsdp2": (2, ("train.parallel=fsdp",)),
    "fsdp2-keep": (2, ("train.parallel=fsdp", "train.reshard_after_forward=false")),
    "fsdp2-recompute": (2, ("train.parallel=fsdp", "train.recompute=full")),
    "ddp2-selective": (2, ("train.recompute=selective",)),
    "hsdp2x2": (4, ("train.parallel=hsdp", "train.shard_ranks=2")),
    "fsdp4": (4, ("train.parallel=fsdp",)),
}
EXACT = [(layout, accumulate) for layout in LAYOUTS for accumulate in (1, 4)]
REDUCED = {
    f"{layout}-{precision}": (2, (f"train.parallel={layout}", f"train.precision={precision}"))
    for layout in ("ddp", "fsdp")
    for precision in ("bfloat16", "float16")
}
CASES = [*EXACT, *((layout, 4) for layout in REDUCED)]

Result = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Result]:
    """What came out of every case; one start of processes per world size."""
    folder = tmp_path_factory.mktemp("matrix")
    for world_size in (1, 2, 4):
        words: list[str] = []
        for layout, accumulate in CASES:
            ranks, own = (LAYOUTS | REDUCED)[layout]
            if ranks == world_size:
                path = folder / f"{layout}-{accumulate}.pt"
                words += ["--", str(path), *COMMON, *own, f"train.accumulate={accumulate}"]
        for rank in run_ranks([sys.executable, str(WORKER), *words], world_size):
            assert rank.returncode == 0, rank.stderr
    return {
        (layout, accumulate): torch.load(folder / f"{layout}-{accumulate}.pt", weights_only=True)
        for layout, accumulate in CASES
    }


@pytest.mark.parametrize(("layout", "accumulate"), EXACT)
def test_a_layout_makes_the_step_of_one_rank(
    results: dict[tuple[str, int], Result], layout: str, accumulate: int
) -> None:
    reference, other = results["single", 1], results[layout, accumulate]
    assert reference.keys() == other.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(other[name], tensor, rtol=2e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("layout", REDUCED)
def test_shards_in_a_reduced_type_are_float32_and_train_alike(
    results: dict[tuple[str, int], Result], layout: str
) -> None:
    exact, reduced = results["single", 1], results[layout, 4]
    # The type's own rounding, over five steps.
    torch.testing.assert_close(reduced["losses"], exact["losses"], rtol=0.01, atol=0)
    torch.testing.assert_close(reduced["grad_norms"], exact["grad_norms"], rtol=0.05, atol=0)
    for name, tensor in reduced.items():
        if name.startswith(("objective.", "optimizer.", "ema.")):
            assert tensor.dtype == torch.float32, name
    assert ("executor.loss_scale" in reduced) == layout.endswith("-float16")


def test_the_comparison_is_not_empty(results: dict[tuple[str, int], Result]) -> None:
    single = results["single", 1]
    kinds = {name.partition(".")[0] for name in single}
    assert kinds == {"objective", "optimizer", "ema", "executor", "losses", "grad_norms"}
    assert (single["grad_norms"] > 0.05).all(), "clipping did nothing"
    moved = single["objective.encoder.norm.weight"] - 1
    ema = single["ema.encoder.norm.weight"] - 1
    assert 0 < ema.norm() < moved.norm()


def test_replicas_exchange_gradients_once_and_shards_with_every_micro_batch(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    command = [sys.executable, str(HERE / "collectives_counter.py"), str(path)]
    for rank in run_ranks(command, 2):
        assert rank.returncode == 0, rank.stderr
    counts = json.loads(path.read_text())
    assert counts["ddp/4"] == counts["ddp/1"]
    assert counts["ddp/1"]["allreduce_"] == 2, "one bucket of gradients and the step's sums"
    # Three blocks and what lies outside them; a block that is let go is gathered twice.
    gathered = {"fsdp/1": 3 * 2 + 1, "fsdp/4": 4 * (3 * 2 + 1), "fsdp-keep/1": 4, "fsdp-keep/4": 4}
    for name, gathers in gathered.items():
        # Kept whole until the last micro-batch, gradients would need a whole model's memory.
        scatters = 4 * int(name[-1])
        expected = {"_allgather_base_": gathers, "_reduce_scatter_base_": scatters, "allreduce_": 2}
        assert counts[name] == expected, name
