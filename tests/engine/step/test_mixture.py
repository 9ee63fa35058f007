"""A mixture makes the same steps on any ranks: 1, 2 and 4, whole and sharded, workers 0 and 2.

Seed 1 has a step in which nobody draws the shapes, and a rank of four that draws digits alone.
After five steps parameters, moments, average, losses and gradient norms agree to relative 2e-4,
absolute 2e-6: the same sums in another order. A run that stops after three goes on bit for bit.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mixture_worker import mixture_config, train_in

from quadriga.config.provenance import Resolved
from quadriga.contracts import stack
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import build_objective, make_stream
from quadriga.engine.faults.replay import Replay, write_replay
from quadriga.engine.preflight import check_start
from quadriga.engine.step.bad_step import BadStep
from ranks import run_ranks

WORKER = Path(__file__).resolve().parent / "mixture_worker.py"
SEED = "seed=1"
CASES = [
    (ranks, parallel, workers)
    for ranks in (1, 2, 4)
    for parallel in ("ddp", "fsdp")
    for workers in (0, 2)
]
QUICK = [(2, "fsdp", 0), (2, "ddp", 2)]
MORE = {"keep": ("train.reshard_after_forward=false",), "hsdp": ("train.parallel=hsdp",)}


def run_cases(
    folder: Path, world_size: int, cases: dict[str, Sequence[str]], timeout: float
) -> dict[str, Any]:
    """Run cases on so many ranks, in one start of the processes."""
    words: list[str] = []
    for name, own in cases.items():
        words += ["--", str(folder / f"{name}.pt"), SEED, *own]
    for rank in run_ranks([sys.executable, str(WORKER), *words], world_size, timeout):
        assert rank.returncode == 0, rank.stderr
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in cases}


def overrides_of(parallel: str, workers: int) -> list[str]:
    return [f"train.parallel={parallel}", f"loader.workers={workers}"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One rank, in this process."""
    path = tmp_path_factory.mktemp("mixture") / "reference.pt"
    train_in(SINGLE, path, [SEED, "loader.workers=0"])
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def assert_alike(found: dict[str, Any], reference: dict[str, Any]) -> None:
    assert found["samples"] == reference["samples"]
    assert found["counted"] == reference["counted"]
    for part in ("state", "metrics"):
        assert found[part].keys() == reference[part].keys()
        for name, tensor in reference[part].items():
            torch.testing.assert_close(
                found[part][name], tensor, rtol=2e-4, atol=2e-6, msg=name, equal_nan=True
            )
    for name, tensor in found["resumed"].items():
        assert torch.equal(tensor, found["state"][name]), name


def test_the_mixture_has_the_steps_that_are_hard(reference: dict[str, Any]) -> None:
    by_step = [{task for step, _, task, *_ in reference["samples"] if step == s} for s in range(5)]
    assert by_step == [{"digits", "shapes"}] * 3 + [{"digits"}, {"digits", "shapes"}]
    losses = reference["metrics"]["shapes.loss"]
    assert losses.isnan().tolist() == [False, False, False, True, False]
    sizes = {"digits": 3, "shapes": 2}
    read = [(step, len(index), task) for step, _, task, index, _ in reference["samples"]]
    assert all(size == sizes[task] for _, size, task in read)
    assert reference["counted"] == [sum(n for s, n, _ in read if s == step) for step in range(5)]
    assert_alike(reference, reference)


def test_a_step_is_that_of_a_plain_loop(reference: dict[str, Any]) -> None:
    """Each task's mean over its samples, by its weight and its share of the step's blocks."""
    config = mixture_config([SEED])
    dataset, plan = check_start(config, world_size=1)
    transform = config.views.build("train")
    objective = build_objective(config, torch.device("cpu"), config.seed).train()
    totals: dict[str, list[torch.Tensor]] = {"digits": [], "shapes": []}
    targets, blocks = Counter[str](), Counter[str]()
    for part in make_stream(config, plan).parts(0):
        data, view = dataset.of_task(part.task), transform.of_task(part.task)
        samples = [
            view.sample(data.read(index), key % 2**64)
            for index, key in zip(part.index.tolist(), part.key.tolist(), strict=True)
        ]
        output = objective.tasks[part.task](view.batch(stack(samples, part.index, part.key)))
        totals[part.task].append(output.only.total)
        targets[part.task] += int(output.only.targets)
        blocks[part.task] += 1
    weights = {"digits": 1.0, "shapes": 0.5}
    loss = sum(
        weights[task] * blocks[task] / 4 * torch.stack(parts).sum() / targets[task]
        for task, parts in totals.items()
    )
    loss.backward()
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    norm = torch.stack(torch._foreach_norm(gradients)).square().sum().sqrt()
    torch.testing.assert_close(reference["metrics"]["loss"][0].float(), loss.detach())
    torch.testing.assert_close(reference["state"]["grad_norms"][0], norm)


def test_a_step_is_replayed_block_by_block(tmp_path: Path) -> None:
    resolved = Resolved.of(mixture_config([SEED]), "test")
    _, plan = check_start(resolved.config, world_size=2)
    objective = build_objective(resolved.config, torch.device("cpu"), resolved.config.seed)
    bad = BadStep(2, "loss", math.nan, 1.0, 2)
    path = write_replay(tmp_path, resolved, plan, SINGLE, objective, bad)
    stream = make_stream(resolved.config, plan)
    found = list(Replay(Path(path), torch.device("cpu")).parts())
    expected = [part.index.tolist() for rank in range(2) for part in stream.own(2, rank)]
    assert [part.index for part in found] == expected
    assert all(math.isfinite(part.loss) for part in found)


@pytest.mark.parametrize(("ranks", "parallel", "workers"), QUICK)
def test_two_ranks_make_the_steps_of_one(
    tmp_path: Path, reference: dict[str, Any], ranks: int, parallel: str, workers: int
) -> None:
    found = run_cases(tmp_path, ranks, {"case": overrides_of(parallel, workers)}, timeout=120)
    assert_alike(found["case"], reference)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Any]:
    """What came out of every case; one start of processes per world size."""
    folder, found = tmp_path_factory.mktemp("matrix"), {}
    for ranks in (1, 2, 4):
        cases = {f"{p}-{w}": overrides_of(p, w) for n, p, w in CASES if n == ranks}
        if ranks == 4:
            cases |= {
                "keep": [*overrides_of("fsdp", 0), *MORE["keep"]],
                "hsdp": [*overrides_of("hsdp", 0), "train.shard_ranks=2"],
            }
        outcome = run_cases(folder, ranks, cases, timeout=800)
        found |= {(ranks, name): result for name, result in outcome.items()}
    return found


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("ranks", "name"),
    [*((n, f"{p}-{w}") for n, p, w in CASES), (4, "keep"), (4, "hsdp")],
)
def test_every_layout_makes_the_steps_of_one_rank(
    matrix: dict[tuple[int, str], Any], reference: dict[str, Any], ranks: int, name: str
) -> None:
    assert_alike(matrix[ranks, name], reference)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_rank_of_four_draws_one_task_alone(matrix: dict[tuple[int, str], Any]) -> None:
    assert matrix[4, "fsdp-0"]["by_rank"][1] == ["digits"]
    both = {("digits", "shapes")}
    assert {tuple(t) for r, t in enumerate(matrix[4, "fsdp-0"]["by_rank"]) if r != 1} == both
