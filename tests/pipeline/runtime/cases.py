"""One case of the oracle's matrix as a config, and the reference that it must equal."""

from __future__ import annotations

from typing import Any

import torch
from torch.func import functional_call
from toy import make_toy, toy_batch

from quadriga import randomness
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import RunPlan
from quadriga.recipes.mae import mae_digits

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optim.kind": "sgd", "optim.momentum": 0.0, "optim.weight_decay": 0.0},
    "momentum": {"optim.kind": "sgd", "optim.momentum": 0.9, "optim.weight_decay": 0.01},
    "adam": {"optim.kind": "adamw", "optim.weight_decay": 0.0},
    "adamw": {"optim.kind": "adamw", "optim.weight_decay": 0.1},
    "muon": {"optim.kind": "muon", "optim.hidden": '["blocks."]'},
}


RECOMPUTE = {False: "none", True: "full"}


def config_of(case: dict[str, Any]) -> RunConfig:
    """Return the config of a case; the model and the data in it are not used."""
    d, m = case["d"], case["m"]
    values = {
        **OPTIMIZERS[case.get("optimizer", "sgd")],
        "optim.clip_norm": case.get("clip"),
        "train.accumulate": m,
        "train.recompute": RECOMPUTE.get(case.get("recompute", False), "selective"),
        "train.precision": case.get("precision", "float32"),
        "executor.kind": "pipeline",
        "executor.schedule": case.get("schedule", "2bw"),
        "executor.stages": d,
        "executor.stages_per_rank": case.get("per_rank", 1),
        "executor.deferred_update": case.get("deferred", True),
        "executor.flushed_steps": case.get("flushed", 0),
        "executor.error_feedback": case.get("feedback", 0.0),
        "schedule.warmup_epochs": 0,
        "schedule.warmup_steps": 2,
        "ema.decay": case.get("ema"),
    }
    if "depths" in case:
        values["executor.depths"] = str(case["depths"])
    return mae_digits().override(values)


def plan_of(case: dict[str, Any]) -> RunPlan:
    """Return the numbers of a case."""
    w, m, steps = case["w"], case["m"], case["steps"]
    lr = {"sgd": 0.3, "momentum": 0.05, "muon": 0.02}.get(case.get("optimizer", "sgd"), 0.01)
    return RunPlan(steps, w * m * 3, m, w, 1000, lr, steps, steps)


def reference(case: dict[str, Any]) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
    """Return W(0), ..., W(T) and the losses, by the recurrence written out in one process.

    ``g(t) = mean over replicas and micro-batches of grad l(W(max(t - 1, 0)))``, summed over
    micro-batches first (each divided by m), then over replicas; what a tied parameter gets in
    several stages is added up last. With ``delay`` 0 the weights are those of step t.
    """
    config, plan = config_of(case), plan_of(case)
    toy = make_toy(case, "cpu")
    toy.train()
    d, w, m, steps = case["d"], case["w"], case["m"], case["steps"]
    delay = case.get("delay", 1 if case.get("schedule", "2bw") == "2bw" else 0)
    flushed = case.get("flushed", 0)
    stages = toy.stages(case.get("depths") or even(toy.depth, d * case.get("per_rank", 1)))
    leaves = {n: torch.nn.Parameter(p.detach().clone()) for n, p in toy.named_parameters()}
    optimizer = config.optim.build(list(leaves.items()))
    versions = [{n: p.detach().clone() for n, p in leaves.items()}]
    losses, last = [], None
    for t in range(steps):
        at = versions[t if t <= flushed else max(t - delay, 0)]
        total, loss_sum = {}, 0.0
        for r in range(w):
            own = [
                {n: at[n].clone().requires_grad_() for n, _ in stage.named_parameters()}
                for stage in stages
            ]
            for j in range(m):
                batch = toy_batch(t, r, j)
                hidden = None
                with randomness.micro_batch(config.seed, t, j, r):
                    for stage, weights in zip(stages, own, strict=True):
                        hidden = functional_call(stage, weights, (hidden, batch))
                (hidden.only.total / m).backward()
                loss_sum += float(hidden.only.total.detach().double())
            for n in leaves:
                parts = [weights[n].grad for weights in own if n in weights]
                total.setdefault(n, []).append(parts)
        for n, leaf in leaves.items():
            by_stage = [sum_of(column) for column in zip(*total[n], strict=True)]
            leaf.grad = sum_of(by_stage) / w
        if case.get("clip") is not None:
            torch.nn.utils.clip_grad_norm_(leaves.values(), case["clip"])
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * config.schedule.factor(plan.progress(t)) * group["lr_scale"]
        optimizer.step()
        update = {n: versions[-1][n] - leaf.detach() for n, leaf in leaves.items()}
        if case.get("feedback") and last is not None and t > flushed:
            with torch.no_grad():
                for n, leaf in leaves.items():
                    leaf.sub_(case["feedback"] * (update[n] - last[n]))
        last = update
        versions.append({n: leaf.detach().clone() for n, leaf in leaves.items()})
        losses.append(loss_sum / (w * m))
    return versions, losses


def sum_of(tensors):
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def even(blocks: int, parts: int) -> list[int]:
    return [blocks * (i + 1) // parts - blocks * i // parts for i in range(parts)]
