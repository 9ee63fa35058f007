"""Each schedule against torch's schedulers, or its formula written out."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from torch.optim import lr_scheduler

from errors import refuses
from quadriga.contracts import Progress, ScheduleConfig
from quadriga.schedules.curves import (
    LinearConfig,
    PolynomialConfig,
    StepDecayConfig,
    TanhConfig,
    WarmupCosineConfig,
    WarmupStableDecayConfig,
)

TOTAL, WARMUP = 25, 5
LEFT = TOTAL - WARMUP


def curve(config: ScheduleConfig) -> list[float]:
    """Return the factors of 25 steps of 8 samples, 5 steps an epoch."""
    return [
        config.factor(Progress(step=step, total_steps=TOTAL, batch_size=8, dataset_size=40))
        for step in range(TOTAL)
    ]


def after_warmup(make: type[lr_scheduler.LRScheduler], **values: object) -> list[float]:
    """Return the factors of a torch scheduler that starts where the warm-up ends."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **values)
    factors = []
    for _ in range(LEFT):
        factors.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("config", [LinearConfig, StepDecayConfig, WarmupCosineConfig])
def test_the_warmup_is_torch_linear_lr(config: type[ScheduleConfig]) -> None:
    found = curve(config(warmup_steps=WARMUP, start_factor=0.1))[:WARMUP]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=WARMUP)
    expected = []
    for _ in range(WARMUP):
        expected.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_peak_is_at_the_first_step_after_the_warmup() -> None:
    """Compared with the schedule of BERT's fine-tuning in Transformers, from rate 0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, WARMUP, TOTAL)
    expected = [scheduler.lr_lambdas[0](step) for step in range(TOTAL)]
    found = curve(LinearConfig(warmup_steps=WARMUP, start_factor=0.0))
    assert found == pytest.approx(expected, rel=1e-12)
    assert found.index(max(found)) == WARMUP


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_linear_is_torch(final: float) -> None:
    found = curve(LinearConfig(warmup_steps=WARMUP, final_factor=final))[WARMUP:]
    expected = after_warmup(
        lr_scheduler.LinearLR, start_factor=1.0, end_factor=final, total_iters=LEFT
    )
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_polynomial_is_torch(power: float) -> None:
    found = curve(PolynomialConfig(warmup_steps=WARMUP, power=power))[WARMUP:]
    expected = after_warmup(lr_scheduler.PolynomialLR, total_iters=LEFT, power=power)
    assert found == pytest.approx(expected, rel=1e-12)


def test_polynomial_falls_to_its_final_factor() -> None:
    to_zero = curve(PolynomialConfig(power=3.0))
    to_tenth = curve(PolynomialConfig(power=3.0, final_factor=0.1))
    assert to_tenth == pytest.approx([0.1 + 0.9 * factor for factor in to_zero], rel=1e-12)


@pytest.mark.parametrize("final", [0.0, 0.3])
def test_cosine_is_torch(final: float) -> None:
    found = curve(WarmupCosineConfig(warmup_steps=WARMUP, final_factor=final))[WARMUP:]
    expected = after_warmup(lr_scheduler.CosineAnnealingLR, T_max=LEFT, eta_min=final)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_step_decay_is_torch() -> None:
    config = StepDecayConfig(warmup_steps=WARMUP, milestone_steps=(9, 20), gamma=0.3)
    milestones = [9 - WARMUP, 20 - WARMUP]
    expected = after_warmup(lr_scheduler.MultiStepLR, milestones=milestones, gamma=0.3)
    assert curve(config)[WARMUP:] == pytest.approx(expected, rel=1e-12)


def test_milestones_in_epochs_are_milestones_in_steps() -> None:
    in_epochs = StepDecayConfig(milestone_epochs=(1.8, 4.0))
    assert curve(in_epochs) == curve(StepDecayConfig(milestone_steps=(9, 20)))
    assert curve(in_epochs)[8:10] == [1.0, 0.1]


def test_a_milestone_inside_the_warmup_acts_after_it() -> None:
    config = StepDecayConfig(warmup_steps=WARMUP, milestone_steps=(2,), gamma=0.5)
    assert curve(config)[WARMUP - 1 : WARMUP + 1] == pytest.approx([0.80002, 0.5])


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"milestone_steps": [5, 5]}, ("milestone_steps", "rise", "5, 5")),
        ({"milestone_epochs": [3, 2]}, ("milestone_epochs", "rise", "3.0, 2.0")),
        (
            {"milestone_steps": [5], "milestone_epochs": [3]},
            ("milestone_steps", "empty", "milestone_epochs"),
        ),
    ],
)
def test_bad_milestones_are_refused(
    values: dict[str, list[float]], fragments: tuple[object, ...]
) -> None:
    with refuses(*fragments):
        StepDecayConfig.from_dict(values)


@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize("decay", ["linear", "one_minus_sqrt"])
def test_warmup_stable_decay_is_its_formula(decay: str, final: float) -> None:
    values = {"decay": decay, "decay_share": 0.4, "final_factor": final, "warmup_steps": WARMUP}
    found = curve(WarmupStableDecayConfig.from_dict(values))
    assert found[WARMUP:16] == [1.0] * (16 - WARMUP)
    for step in range(15, TOTAL):
        over = (step - 15) / 10
        left = 1 - over if decay == "linear" else 1 - math.sqrt(over)
        assert found[step] == pytest.approx(final + (1 - final) * left, rel=1e-12)


def test_a_decay_as_long_as_the_run_starts_after_the_warmup() -> None:
    whole = WarmupStableDecayConfig(warmup_steps=WARMUP, decay_share=1.0, decay="linear")
    assert curve(whole) == pytest.approx(curve(LinearConfig(warmup_steps=WARMUP)), rel=1e-12)
    assert curve(WarmupStableDecayConfig(decay_share=0.0)) == [1.0] * TOTAL


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_tanh_is_the_papers_curve_stretched_to_both_ends(final: float) -> None:
    config = TanhConfig(lower=-3.0, upper=2.0, final_factor=final, warmup_steps=WARMUP)
    papers = [(1 - math.tanh(-3.0 + 5.0 * step / LEFT)) / 2 for step in range(LEFT + 1)]
    stretched = [(value - papers[-1]) / (papers[0] - papers[-1]) for value in papers]
    expected = [final + (1 - final) * value for value in stretched[:-1]]
    assert curve(config)[WARMUP:] == pytest.approx(expected, rel=1e-12)


def test_the_usual_tanh_is_the_papers_to_a_thousandth() -> None:
    papers = [(1 - math.tanh(-6.0 + 10.0 * step / TOTAL)) / 2 for step in range(TOTAL)]
    assert curve(TanhConfig()) == pytest.approx(papers, abs=1e-3)


def test_tanh_with_its_ends_turned_round_is_refused() -> None:
    with refuses("upper", "lower", "2.0", "1.0"):
        TanhConfig.from_dict({"lower": 2, "upper": 1})


def test_a_cosine_under_the_warmup_is_torchs_of_the_whole_run() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL, eta_min=0.2)
    expected = []
    for _ in range(TOTAL):
        expected.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    config = WarmupCosineConfig(warmup_steps=WARMUP, final_factor=0.2, under_warmup=True)
    assert curve(config)[WARMUP:] == pytest.approx(expected[WARMUP:], rel=1e-9)
    plain = WarmupCosineConfig(warmup_steps=WARMUP, start_factor=0.1)
    under = WarmupCosineConfig(warmup_steps=WARMUP, start_factor=0.1, under_warmup=True)
    assert curve(under)[:WARMUP] == curve(plain)[:WARMUP]


@pytest.mark.parametrize("config", [TanhConfig, WarmupCosineConfig])
def test_without_a_warmup_there_is_nothing_to_be_under(config: type[ScheduleConfig]) -> None:
    assert curve(config.from_dict({"under_warmup": True})) == curve(config())


def test_a_tanh_under_the_warmup_is_that_of_the_whole_run() -> None:
    whole = curve(TanhConfig())
    assert curve(TanhConfig(warmup_steps=WARMUP, under_warmup=True))[WARMUP:] == whole[WARMUP:]


@pytest.mark.parametrize("config", [TanhConfig, WarmupCosineConfig])
def test_absolute_rates_at_both_ends_are_factors_of_the_peak(config: type[ScheduleConfig]) -> None:
    peak, first, least = 2e-3, 1e-6, 1e-5
    values = {"start_factor": first / peak, "final_factor": least / peak, "warmup_steps": WARMUP}
    schedule = config.from_dict(values)
    assert peak * curve(schedule)[0] == pytest.approx(first, rel=1e-12)
    end = Progress(step=TOTAL, total_steps=TOTAL, batch_size=8, dataset_size=40)
    assert peak * schedule.factor(end) == pytest.approx(least, rel=1e-9)
