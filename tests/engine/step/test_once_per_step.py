"""Running statistics and centres move once a step, by what the step's whole batch says.

The oracle is one process that sees the whole batch: it takes what reaches each normalisation and
the teacher's scores, and moves the statistics by the papers' formulas. The learning rate is zero,
so that every step has the same weights.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parallel_worker import tiny_config
from quadriga import randomness
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import EXACT, build_loader, build_objective
from quadriga.engine.run_plan import make_plan
from quadriga.methods.dino import DINO
from quadriga.methods.parts.encoders import encode
from quadriga.models.parts.batch_norm import BatchNorm
from ranks import run_ranks

HERE = Path(__file__).resolve().parents[2]
STEPS = 2
SHARED = ["train.epochs=none", f"train.steps={STEPS}", "train.batch_size=32", "optim.kind=sgd"]
SHARED += ["schedule.warmup_epochs=0", "optim.lr=0", "optim.clip_norm=none", "train.device=cpu"]
SHARED += ["model.image_px=16", "views.image_px=16", "data.image_px=16"]
RESNET = ["model.kind=resnet", "model.depth=18", "model.stem_width=4", "model.stem=small"]
METHODS = {
    "dino": ["recipe=dino_digits", *RESNET],
    "swav": ["recipe=swav_digits", *RESNET, "objective.queue=0"],
    "moco_v3": ["recipe=moco_v3_digits", *RESNET],
    "moco_v3_vit": ["recipe=moco_v3_digits", "model.width=32", "model.depth=2", "model.heads=2"],
}
GROUPS = {"within": 2, "over": 8, "none": None}
"""Samples that share statistics: parts of the micro-batches of 4, or those of both ranks."""

CASES = [
    (method, group, how)
    for method in METHODS
    for group in GROUPS
    for how in ("ddp", "fsdp")
    if (group == "none") == method.endswith("vit")
]
QUICK = {("dino", "within", "ddp")}


def words_of(method: str, group: str) -> list[str]:
    own = [] if GROUPS[group] is None else [f"objective.statistics_group={GROUPS[group]}"]
    return [*SHARED, *METHODS[method], *own]


def moved(running: Tensor, values: Tensor) -> Tensor:
    """Move a running statistic by the mean of `values` over dimension 0."""
    return 0.9 * running + 0.1 * values.mean(dim=0)


def oracle(words: list[str]) -> dict[str, Tensor]:
    """Return the statistics, the number of steps they saw and the centre after the run."""
    config = tiny_config(words)
    dataset = config.data.build("train")
    plan = make_plan(config, len(dataset), 1)
    objective = build_objective(config, SINGLE.device, config.seed).train()
    seen: dict[str, list[Tensor]] = {}
    for name, module in objective.named_modules():
        if not isinstance(module, BatchNorm):
            continue
        module.set_groups(objective.statistics_group, None)
        if name.startswith("teacher_"):
            continue
        calls = seen[name] = []
        module.register_forward_pre_hook(lambda _, given, calls=calls: calls.append(given[0]))
    state = {n: b.clone() for n, b in objective.named_buffers() if not n.endswith("tally")}
    with build_loader(config, dataset, plan, SINGLE, EXACT) as loader:
        for step, batch in enumerate(loader.batches(range(STEPS))):
            for calls in seen.values():
                calls.clear()
            objective.before_step(plan.progress(step))
            with randomness.micro_batch(config.seed, step, 0, 0), torch.no_grad():
                objective(batch)
                if isinstance(objective, DINO):
                    scores = [
                        objective.teacher_head(encode(objective.teacher_encoder, crop))
                        @ objective.teacher_prototypes().t()
                        for crop in batch["crops"].unbind(1)
                    ]
                    state["centre"] = moved(state["centre"], torch.cat(scores))
            for name, calls in seen.items():
                size = objective.statistics_group if name.startswith("encoder.") else None
                parts = [part for call in calls for part in call.split(size or len(call))]
                rows = torch.stack([part.transpose(0, 1).flatten(1) for part in parts])
                for key, values in (
                    ("running_mean", rows.mean(dim=2)),
                    ("running_var", rows.var(dim=2)),
                ):
                    state[f"{name}.{key}"] = moved(state[f"{name}.{key}"], values)
                state[f"{name}.num_batches_tracked"] += 1
            rest = 0.0
            if hasattr(objective.config, "momentum"):
                cosine = (1 + math.cos(math.pi * step / STEPS)) / 2
                rest = (1 - objective.config.momentum) * cosine
            for name in state:
                student = name.removeprefix("teacher_")
                if student == name:
                    continue
                if state[name].is_floating_point():
                    state[name] = state[name] + rest * (state[student] - state[name])
                else:
                    state[name] = state[student].clone()
    return state


@pytest.mark.parametrize(
    ("method", "group", "how"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.long, id="-".join(case))
        for case in CASES
    ],
)
def test_statistics_and_centres_move_once_a_step(
    tmp_path: Path, method: str, group: str, how: str
) -> None:
    words = words_of(method, group)
    path = tmp_path / "state.pt"
    layout = ["train.accumulate=4", f"train.parallel={how}"]
    command = [sys.executable, str(HERE / "parallel_worker.py"), str(path), *words, *layout]
    for rank in run_ranks(command, 2, timeout=200):
        assert rank.returncode == 0, rank.stderr
    found, expected = torch.load(path, weights_only=True), oracle(words)
    assert len(expected) > 5
    for name, value in expected.items():
        own = found[f"objective.{name}"]
        if name.endswith("num_batches_tracked"):
            assert own == value == STEPS, name
        else:
            torch.testing.assert_close(
                own, value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: n + m
            )
