"""The pipelined executor against the recurrence written out in one process.

W(t+1) = W(t) - update of the gradient at W(max(t-1, 0)): bit for bit where the sums are formed in
the same order, which is so for one or two copies of the model and without clipping.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import OPTIMIZERS, config_of, reference

from quadriga.pipeline.config import pipeline_of
from ranks import run_ranks

HERE = Path(__file__).parent
STEPS = 5


def matrix() -> list[dict[str, Any]]:
    """Return the cases of 2bw: each option meets each depth, width and number of micro-batches."""
    found = []
    for d in (1, 2, 3, 4):
        for w in (1, 2):
            for number, m in enumerate(sorted({d, d + 2, 2 * d})):
                for turn, optimizer in enumerate(OPTIMIZERS):
                    mix = d + 2 * w + number + turn
                    found.append(
                        {
                            "d": d,
                            "w": w,
                            "m": m,
                            "optimizer": optimizer,
                            "dropout": 0.3 if mix % 2 else 0.0,
                            "recompute": mix % 3 == 0,
                            "deferred": mix % 5 != 0,
                            "tied": mix % 4 == 0,
                        }
                    )
    return found


def others() -> list[dict[str, Any]]:
    """Return the cases of the other schedules and of what only some have."""
    found: list[dict[str, Any]] = []
    for schedule in ("sequential", "gpipe", "1f1b"):
        for d, w, m in ((2, 1, 4), (2, 2, 2), (3, 1, 4), (4, 1, 4), (4, 2, 5)):
            common = {"schedule": schedule, "optimizer": "adamw", "d": d, "w": w, "m": m}
            found.append({**common, "dropout": 0.2, "tied": d == 4, "recompute": d == 3})
    for schedule, per_rank in (
        ("torch_gpipe", 1),
        ("torch_1f1b", 1),
        ("interleaved", 2),
        ("zero_bubble", 2),
        ("zbv", 2),
        ("dualpipev", 2),
    ):
        # V-shaped, both ends are on one rank: autograd adds a tied gradient up in another order.
        tied = {"tied": True, "close": schedule in ("zbv", "dualpipev")}
        common = {"schedule": schedule, "optimizer": "adamw", "per_rank": per_rank, "m": 4}
        found.append({**common, "d": 2, "w": 1, "dropout": 0.2, **tied})
        found.append({**common, "d": 2, "w": 2})
    two = {"d": 2, "w": 2, "m": 3, "optimizer": "adamw"}
    return [
        *found,
        {**two, "depths": [1, 3]},
        {**two, "depths": [0, 4], "tied": True},
        {**two, "recompute": "selective", "dropout": 0.3},
        {"d": 2, "w": 1, "m": 3, "schedule": "gpipe", "recompute": True, "dropout": 0.3},
        {**two, "d": 3, "w": 1, "depths": [2, 0, 2], "ema": 0.5},
        {**two, "cuts": [1, 2, 4]},
        {**two, "cuts": [3], "flushed": 2},
        {**two, "flushed": 3},
        {**two, "feedback": 0.5},
        {**two, "feedback": 1.0, "optimizer": "sgd", "flushed": 1},
        {**two, "clip": 0.05, "tied": True, "close": True},
        {
            "d": 4,
            "w": 1,
            "m": 6,
            "clip": 0.05,
            "tied": True,
            "close": True,
            "optimizer": "momentum",
        },
        {"d": 3, "w": 1, "m": 3, "optimizer": "adamw", "depths": [2, 1, 1]},
    ]


def resumed() -> list[dict[str, Any]]:
    """Return cases that stop half way, and go on at the same or at another depth."""
    found: list[dict[str, Any]] = []
    for optimizer, feedback in (("adamw", 0.0), ("momentum", 0.5), ("muon", 0.0)):
        whole = {
            "m": 4,
            "w": 1,
            "optimizer": optimizer,
            "feedback": feedback,
            "dropout": 0.2,
            "tied": optimizer == "muon",
        }
        first = {**whole, "d": 4, "range": [0, 3], "half": True}
        first["name"] = f"half_{optimizer}"
        found.append(first)
        for d in (4, 2, 1, 3):
            # With one stage autograd adds up both gradients of a tied tensor in another order.
            close = d == 1 and optimizer == "muon"
            later = {"range": [3, STEPS], "load_from": first["name"], "phase": 1, "close": close}
            found.append({**whole, "d": d, **later})
    return found


@cache
def cases() -> dict[str, dict[str, Any]]:
    """Return all cases by name."""
    named = {}
    for case in [*matrix(), *others(), *resumed()]:
        options = "_".join(f"{key}={case[key]}" for key in sorted(case) if key != "name")
        case = {"name": options.replace(" ", ""), **case, "steps": STEPS}
        named[case["name"]] = case
    return named


def batches() -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return the cases by phase and number of ranks; what is resumed comes after the rest."""
    found = defaultdict(list)
    for case in sorted(cases().values(), key=lambda case: case.get("phase", 0)):
        found[case.get("phase", 0), case["d"] * case["w"]].append(case)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all cases on ranks, once."""
    where = tmp_path_factory.mktemp("two_bw_oracle")
    for (phase, ranks), batch in batches().items():
        path = where / f"cases_{phase}_{ranks}.json"
        path.write_text(json.dumps(batch))
        command = [sys.executable, str(HERE / "pipeline_worker.py"), str(path), str(where)]
        for rank in run_ranks(command, ranks, timeout=120):
            assert rank.returncode == 0, rank.stderr[-4000:]
    return where


@pytest.mark.parametrize("name", list(cases()))
def test_equals_the_reference(folder: Path, name: str) -> None:
    case = cases()[name]
    first, last = case.get("range", [0, STEPS])
    versions, losses = reference({**case, "steps": last})
    ranks = sorted((folder / name).glob("rank_*.pt"))
    assert len(ranks) == case["d"] * case["w"]
    seen, held = set(), {}
    # A message is let go when it has arrived, not when the pipeline drains.
    most = {"gpipe": case["m"], "sequential": 1}.get(case.get("schedule", ""), case["d"])
    for path in ranks:
        left = torch.load(path, weights_only=True)
        for key, tensor in left["state"].items():
            assert torch.equal(held.setdefault(key, tensor), tensor), f"copies differ: {key}"
            part, _, parameter = key.partition(".")
            if part not in ("objective", "previous"):
                continue
            wanted = versions[-1 if part == "objective" else -2][parameter]
            seen.add((part, parameter))
            if case.get("close"):
                torch.testing.assert_close(tensor, wanted, rtol=2e-5, atol=2e-6)
            else:
                assert torch.equal(tensor, wanted), key
        assert max(left["sent"], default=0) <= most
        rtol = 1e-5 if case.get("close") else 1e-12
        assert left["losses"] == pytest.approx(losses[first:], rel=rtol)
    parts = (
        ("objective", "previous")
        if pipeline_of(config_of(case)).schedule == "2bw"
        else ("objective",)
    )
    assert seen == {(part, name) for part in parts for name in versions[0]}


def test_a_late_gradient_is_another_method() -> None:
    case = {"d": 2, "w": 1, "m": 2, "optimizer": "adamw", "steps": STEPS}
    late, prompt = reference(case)[0][-1], reference({**case, "delay": 0})[0][-1]
    gap = max(float((late[name] - prompt[name]).abs().max()) for name in late)
    assert 1e-3 < gap < 1e-1


def test_two_steps_at_the_same_weights_then_one_behind() -> None:
    """f = a x^2 / 2 with plain descent: x(t+1) = x(t) - lr a x(t-1), stable iff lr a < 1."""
    from quadriga.pipeline.schedules import TwoBW

    def descend(rate: float, steps: int) -> list[float]:
        values = [1.0]
        for step in range(steps):
            values.append(values[-1] - rate * values[TwoBW().version(step)])
        return values

    assert descend(0.5, 4) == [1.0, 0.5, 0.0, -0.25, -0.25]
    assert abs(descend(0.95, 400)[-1]) < 1e-3
    assert abs(descend(1.05, 400)[-1]) > 1e3
