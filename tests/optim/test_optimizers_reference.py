"""Each optimizer against the equations of its paper, parameter by parameter, and against torch."""

from __future__ import annotations

import math

import pytest
import torch
from optim_modules import (
    assert_same,
    exempt,
    gradient,
    lr_at,
    make_steps,
    named_parameters,
    trained,
)

from errors import refuses
from quadriga.optim.adam import BertAdamConfig
from quadriga.optim.lamb import LAMBConfig, LARSConfig
from quadriga.optim.muon import COEFFICIENTS, Muon, MuonConfig, orthogonalise
from quadriga.optim.parts.groups import decay_groups, groups_of
from quadriga.optim.sgd import SGDConfig

STEPS = 4
EXACT = 1e-12
"""Float64, the same equations in another order of operations."""


def start() -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in named_parameters(torch.float64)}


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torch_and_the_paper(momentum: float, nesterov: bool) -> None:
    if nesterov and not momentum:
        with refuses("nesterov", "false", "momentum"):
            SGDConfig.from_dict({"momentum": 0.0, "nesterov": True})
        return
    config = SGDConfig(momentum=momentum, nesterov=nesterov, weight_decay=0.1)
    other = named_parameters(torch.float64)
    theirs = torch.optim.SGD(
        decay_groups(other, 0.1, config.no_decay),
        momentum=momentum,
        nesterov=nesterov,
        foreach=False,
    )
    make_steps(other, theirs, range(STEPS))
    expected = start()
    for name, weight in expected.items():
        buffer = torch.zeros_like(weight)
        for step in range(STEPS):
            slope = gradient(name, weight, step) + (0.0 if exempt(name, weight) else 0.1) * weight
            buffer = momentum * buffer + slope
            weight -= lr_at(step) * (slope + momentum * buffer if nesterov else buffer)
    found = trained(config, STEPS)
    assert_same(found, {name: p.detach() for name, p in other}, EXACT)
    assert_same(found, expected, EXACT)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lars_is_the_paper(decay: float) -> None:
    expected = start()
    for name, weight in expected.items():
        velocity = torch.zeros_like(weight)
        for step in range(STEPS):
            slope, trust = gradient(name, weight, step), 1.0
            if not exempt(name, weight):
                trust = 1e-3 * float(weight.norm())
                trust /= float(slope.norm()) + decay * float(weight.norm()) + 1e-8
                slope = slope + decay * weight
            velocity = 0.7 * velocity + lr_at(step) * trust * slope
            weight -= velocity
    assert_same(trained(LARSConfig(momentum=0.7, weight_decay=decay), STEPS), expected, EXACT)


@pytest.mark.parametrize("adapt_all", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lamb_is_the_paper(adapt_all: bool, decay: float) -> None:
    config = LAMBConfig(betas=(0.8, 0.9), eps=1e-5, weight_decay=decay, adapt_all=adapt_all)
    expected = start()
    for name, weight in expected.items():
        first, second = torch.zeros_like(weight), torch.zeros_like(weight)
        for step in range(STEPS):
            slope, ratio = gradient(name, weight, step), 1.0
            first = 0.8 * first + 0.2 * slope
            second = 0.9 * second + 0.1 * slope**2
            update = first / (1 - 0.8 ** (step + 1))
            update = update / ((second / (1 - 0.9 ** (step + 1))).sqrt() + 1e-5)
            if not exempt(name, weight):
                update = update + decay * weight
            if adapt_all or not exempt(name, weight):
                ratio = float(weight.norm() / update.norm())
            weight -= lr_at(step) * ratio * update
    assert_same(trained(config, STEPS), expected, EXACT)


@pytest.mark.parametrize("config", [LARSConfig(), LAMBConfig(weight_decay=0.0)])
@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_where_a_norm_is_zero_the_trust_ratio_is_one(
    config: LARSConfig | LAMBConfig, zero: str
) -> None:
    named = [("blocks.0.weight", torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64)))]
    weight = named[0][1]
    slope = torch.full_like(weight, 2.0)
    with torch.no_grad():
        (weight if zero == "weight" else slope).zero_()
    before = weight.detach().clone()
    optimizer = config.build(named)
    optimizer.param_groups[0]["lr"] = 0.5
    weight.grad = slope
    optimizer.step()
    if isinstance(config, LARSConfig):
        expected = before - 0.5 * (slope + config.weight_decay * before)
    else:
        # The first step of Adam is the sign of the gradient.
        expected = before - 0.5 * slope / (slope + config.eps)
    torch.testing.assert_close(weight.detach(), expected, rtol=EXACT, atol=EXACT)


def newton_schulz(update: torch.Tensor, steps: int) -> torch.Tensor:
    """Apply the quintic to the singular values, one by one, and put the matrix together again."""
    a, b, c = COEFFICIENTS
    left, values, right = torch.linalg.svd(update / update.norm(), full_matrices=False)
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("step_length", ["original", "match_rms_adamw"])
def test_muon_is_the_paper(nesterov: bool, step_length: str) -> None:
    values = {"nesterov": nesterov, "step_length": step_length, "adamw_lr_scale": 0.5}
    config = MuonConfig(weight_decay=0.3).override(values)
    named = named_parameters(torch.float64)
    built = config.build(named)
    optimizer = Muon(
        built.param_groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=nesterov,
        newton_schulz_steps=config.newton_schulz_steps,
        step_length=config.step_length,
        betas=config.betas,
        eps=config.eps,
        dtype=torch.float64,
    )
    make_steps(named, optimizer, range(STEPS))
    expected = start()
    for name, weight in expected.items():
        hidden = name.startswith("blocks.") and weight.ndim == 2
        decay = 0.0 if exempt(name, weight) else 0.3
        first, second = torch.zeros_like(weight), torch.zeros_like(weight)
        for step in range(STEPS):
            slope, lr = gradient(name, weight, step), lr_at(step)
            if hidden:
                first = 0.95 * first + 0.05 * slope
                update = 0.05 * slope + 0.95 * first if nesterov else first
                rows, columns = weight.shape
                length = 0.2 * math.sqrt(max(rows, columns))
                if step_length == "original":
                    length = math.sqrt(max(1.0, rows / columns))
                weight *= 1 - lr * decay
                weight -= lr * length * newton_schulz(update, 5)
            else:
                first = 0.9 * first + 0.1 * slope
                second = 0.95 * second + 0.05 * slope**2
                update = first / (1 - 0.9 ** (step + 1))
                update = update / ((second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
                weight *= 1 - 0.5 * lr * decay
                weight -= 0.5 * lr * update
    # The iteration through matrix products loses a few digits more than through the values.
    assert_same(named, expected, 1e-10)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("step_length", ["original", "match_rms_adamw"])
def test_muon_is_torch_muon_and_torch_adamw(step_length: str) -> None:
    config = MuonConfig().override({"step_length": step_length})
    found = trained(config, STEPS, torch.float32)
    other = named_parameters()
    hidden = [(name, p) for name, p in other if name.startswith("blocks.") and p.ndim == 2]
    rest = [(name, p) for name, p in other if not (name.startswith("blocks.") and p.ndim == 2)]
    muon = torch.optim.Muon(
        decay_groups(hidden, config.weight_decay, config.no_decay),
        momentum=config.momentum,
        adjust_lr_fn=step_length,
    )
    adamw = torch.optim.AdamW(
        decay_groups(rest, config.weight_decay, config.no_decay),
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    make_steps(hidden, muon, range(STEPS))
    make_steps(rest, adamw, range(STEPS))
    expected = {name: p.detach() for name, p in other}
    # Both compute in bfloat16 (8 bits), one in a batch: over 4 steps of length 0.1 together.
    assert_same(found, expected, 0.1 * 2**-6)
    for name, parameter in found:
        if name in dict(rest):
            assert torch.equal(parameter, expected[name]), name


def test_orthogonalise_moves_singular_values_near_one() -> None:
    matrices = torch.stack([dict(named_parameters())["blocks.0.attention.weight"].detach()] * 2)
    found = orthogonalise(matrices * 100, steps=5, dtype=torch.float32)
    singular = torch.linalg.svdvals(found)
    assert ((singular > 0.6) & (singular < 1.3)).all()
    assert torch.equal(found[0], found[1])
    tall = orthogonalise(matrices.mT * 100, steps=5, dtype=torch.float32)
    torch.testing.assert_close(tall.mT, found, rtol=1e-5, atol=1e-5)


def test_muon_without_a_hidden_matrix_is_refused() -> None:
    named = [(name, p) for name, p in named_parameters() if "blocks" not in name]
    with refuses("optim.hidden", "kind=adamw"):
        MuonConfig().build(named)


def test_muon_takes_the_matrices_of_the_blocks_alone() -> None:
    named = named_parameters()
    optimizer = MuonConfig(adamw_lr_scale=0.25, lr_scales={"head": 2.0}).build(named)
    name_of = {id(p): name for name, p in named}
    rules = {
        name_of[id(p)]: (group["muon"], group["lr_scale"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for name, parameter in named:
        muon = name.startswith("blocks.") and parameter.ndim == 2
        scale = 1.0 if muon else 0.25 * (2.0 if "head" in name else 1.0)
        assert rules[name] == (muon, scale), name


def test_groups_of_reads_every_rule_of_the_config() -> None:
    config = SGDConfig(weight_decay=0.2, layer_decay=0.5, lr_scales={"bias": 3.0})
    named = named_parameters()
    expected = decay_groups(named, 0.2, config.no_decay, 0.5, {"bias": 3.0})
    found = groups_of(config, named)
    assert [[id(p) for p in g["params"]] for g in found] == [
        [id(p) for p in g["params"]] for g in expected
    ]
    assert [(g["weight_decay"], g["lr_scale"]) for g in found] == [
        (g["weight_decay"], g["lr_scale"]) for g in expected
    ]


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_bert_adam_is_the_published_update(decay: float) -> None:
    expected = start()
    for name, weight in expected.items():
        first, second = torch.zeros_like(weight), torch.zeros_like(weight)
        for step in range(STEPS):
            slope = gradient(name, weight, step)
            first = 0.9 * first + 0.1 * slope
            second = 0.999 * second + 0.001 * slope * slope
            update = first / (second.sqrt() + 1e-6)
            decays = weight.ndim > 1 and not any(part in name for part in ("norm", "bias"))
            update = update + (decay if decays else 0.0) * weight
            weight -= lr_at(step) * update
    assert_same(trained(BertAdamConfig(weight_decay=decay), STEPS), expected, EXACT)
