"""The protocol that watches a run."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from quadriga.cli.entry import run
from quadriga.distributed.slots import alone
from quadriga.evaluation.watch import effective_rank
from quadriga.methods.parts.collapse import embedding_deviation
from tiny import tiny_run


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_effective_rank_of_equal_singular_values_is_their_number(rank: int) -> None:
    left, _ = torch.linalg.qr(torch.randn(32, rank, generator=torch.Generator().manual_seed(0)))
    right, _ = torch.linalg.qr(torch.randn(8, rank, generator=torch.Generator().manual_seed(1)))
    assert float(effective_rank(5.0 * left @ right.T)) == pytest.approx(rank, rel=1e-4)


def test_the_deviation_is_the_root_of_the_features_variances() -> None:
    rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    unit = functional.normalize(rows, dim=1)
    expected = math.sqrt(float(unit.var(dim=0, unbiased=False).sum()))
    assert float(embedding_deviation(rows, alone(64))) == pytest.approx(expected, rel=1e-5)
    assert float(embedding_deviation(rows[:1].expand(9, -1), alone(9))) < 1e-3


def test_it_looks_at_its_own_interval_and_at_the_end(tmp_path: Path) -> None:
    epochs = 2 * 8 / 1437
    protocols = [
        {"kind": "watch", "every_epochs": epochs, "bank": 40, "queries": 20},
        {"kind": "knn", "neighbours": 3},
    ]
    words = tiny_run(tmp_path / "run", 5, "evaluation.train_samples=60")
    words = [word for word in words if not word.startswith("evaluation.protocols")]
    assert run([*words, f"evaluation.protocols={json.dumps(protocols)}"]) == 0
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    found = [(r["step"], sorted(n for n in r if "." in n)) for r in records if "loss" not in r]
    watched = [f"watch.{name}" for name in ("deviation", "rank", "seconds", "top1")]
    assert [step for step, _ in found] == [2, 4, 5]
    assert found[0][1] == found[1][1] == watched
    assert set(found[2][1]) > {"knn.top1", *watched}
