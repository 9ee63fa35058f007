"""The objective's loss on the test split: the same by hand, and on any number of ranks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from quadriga import randomness
from quadriga.contracts import EvaluationContext
from quadriga.data.parts.subsets import Subset
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import build_objective
from quadriga.evaluation import held_out
from quadriga.evaluation.held_out import HeldOutConfig
from quadriga.recipes.mae import mae_digits

SMALL = {
    "model.image_px": 16,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "objective.decoder_width": 16,
    "objective.decoder_depth": 1,
    "data.image_px": 16,
    "views.image_px": 16,
}


@pytest.fixture
def context(tmp_path: Path) -> EvaluationContext:
    config = mae_digits().override(SMALL)
    objective = build_objective(config, torch.device("cpu"), 0)
    data = Subset(config.data.build("test"), 21, "held out")
    return EvaluationContext(
        objective=objective,
        fresh=lambda: objective,
        data=lambda split: data,
        transform=config.views.build("test"),
        env=SINGLE,
        seed=0,
        output=tmp_path,
    )


def test_equals_one_large_batch(context: EvaluationContext) -> None:
    found = HeldOutConfig(batch_size=4).build().run(context)
    with randomness.micro_batch(0, 0, 0, 0), torch.no_grad():
        batches = list(
            held_out.sequential(
                context.data("test"),
                context.transform,
                range(21),
                batch_size=21,
                env=SINGLE,
                workers=0,
            )
        )
        whole = context.objective.eval()(batches[0])
    assert found.metrics["loss"] == pytest.approx(
        float(whole.only.total / whole.only.targets), rel=1e-6
    )
    assert found.details == {"samples": 21}
    assert HeldOutConfig(batch_size=4).build().run(context) == found, "the same questions"


def test_two_ranks_find_the_same_numbers(
    context: EvaluationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = HeldOutConfig(batch_size=4).build().run(context).metrics
    tables = []
    monkeypatch.setattr(
        held_out, "all_reduce_sum", lambda table, env: tables.append(table) or table
    )
    for rank in (0, 1):
        env = dataclasses.replace(SINGLE, rank=rank, world_size=2)
        HeldOutConfig(batch_size=4).build().run(dataclasses.replace(context, env=env))
    monkeypatch.setattr(
        held_out,
        "all_reduce_sum",
        lambda table, env: sum(t for t in tables if t.shape == table.shape),
    )
    assert HeldOutConfig(batch_size=4).build().run(context).metrics == whole
