"""What a pipelined run says of itself is what one process says that holds the whole model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_worker import config_of, metrics_of

from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import build_objective
from ranks import run_ranks

CASES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "two_bw": {"executor.stages": 2, "executor.schedule": "2bw"},
        "interleaved": {
            "executor.stages": 2,
            "executor.schedule": "interleaved",
            "executor.stages_per_rank": 2,
        },
    },
    4: {"two_copies": {"executor.stages": 2, "executor.schedule": "1f1b"}},
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all cases once; return the folder of what they left."""
    folder = tmp_path_factory.mktemp("evaluation")
    worker = str(Path(__file__).with_name("evaluation_worker.py"))
    for ranks, cases in CASES.items():
        files = []
        for name, case in cases.items():
            files.append(folder / f"{name}.json")
            files[-1].write_text(json.dumps(case))
        command = [sys.executable, worker, str(folder), *map(str, files)]
        for done in run_ranks(command, ranks, timeout=120):
            assert done.returncode == 0, done.stderr
    return folder


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return what each rank of a case left."""
    found = [
        torch.load(path, weights_only=True) for path in sorted(folder.glob(f"{name}_rank_*.pt"))
    ]
    assert found
    return found


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize(
    ("ranks", "name"), [(ranks, name) for ranks, cases in CASES.items() for name in cases]
)
def test_the_stages_find_what_the_whole_model_finds(
    ran: Path, tmp_path: Path, ranks: int, name: str, weights: str
) -> None:
    config = config_of(CASES[ranks][name])
    whole = build_objective(config, torch.device("cpu"), config.seed)
    found = results(ran, name)
    state = {key: tensor for rank in found for key, tensor in rank["state"].items()}
    trained = dict(whole.named_parameters())
    prefix = {key: "ema" for key in trained if weights == "ema"}
    whole.load_state_dict(
        {key: state[f"{prefix.get(key, 'objective')}.{key}"] for key in whole.state_dict()}
    )
    expected = metrics_of(config, whole, tmp_path, SINGLE, None)
    assert len(found) == ranks
    for rank in found:
        assert rank[weights] == found[0][weights]
        assert rank[weights].keys() == expected.keys()
        for protocol, metrics in expected.items():
            assert rank[weights][protocol] == pytest.approx(metrics, rel=1e-5)
    assert found[0]["raw"]["held_out"]["loss"] != found[0]["ema"]["held_out"]["loss"]


def test_no_rank_holds_the_whole_model_to_evaluate_it(ran: Path) -> None:
    config = config_of(CASES[4]["two_copies"])
    whole = build_objective(config, torch.device("cpu"), config.seed)
    size = sum(4 * p.numel() for p in whole.parameters())
    for rank in results(ran, "two_copies"):
        assert len(rank["bytes"]) == 2
        # A quarter of the trained model and of the random one, a gathered block of each and what
        # lies outside blocks.
        assert all(0 < most < 0.75 * size for most in rank["bytes"]), (rank["bytes"], size)
