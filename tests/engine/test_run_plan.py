"""Segments, batches and learning rates as pure functions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import assert_says, refuses
from quadriga.contracts import Progress
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import describe_batch, make_plan, scaled_lr, segments
from quadriga.optim.adam import AdamWConfig
from quadriga.recipes.mae import mae_digits, mae_vit_base
from quadriga.schedules.curves import WarmupCosineConfig


def run(**overrides: object) -> RunConfig:
    return mae_digits().override({k.replace("__", "."): v for k, v in overrides.items()})


@given(
    steps=st.integers(1, 60),
    save=st.integers(1, 70),
    evaluate=st.floats(0.01, 3),
    data=st.data(),
)
def test_segments_cover_every_step_once_and_cut_the_same_after_a_resume(
    steps: int, save: int, evaluate: float, data: st.DataObject
) -> None:
    config = run(
        train__steps=steps,
        train__epochs=None,
        checkpoint__every_epochs=None,
        checkpoint__every_steps=save,
        evaluation__every_epochs=evaluate,
    )
    plan = make_plan(config, 1000, 1)
    whole = list(segments(plan, 0))
    assert [step for segment in whole for step in segment.steps] == list(range(steps))
    ends = [segment.steps.stop for segment in whole]
    assert [s.steps.stop for s in whole if s.save] == sorted({*range(save, steps + 1, save), steps})
    assert whole[-1].evaluate
    cut = data.draw(st.sampled_from(ends))
    assert list(segments(plan, cut)) == [s for s in whole if s.steps.start >= cut]


def test_the_reference_recipe_gets_its_own_numbers() -> None:
    plan = make_plan(mae_vit_base(), 1_281_167, 8)
    assert plan.lr == pytest.approx(2.4e-3)
    assert plan.total_steps == round(400 * 1_281_167 / 4096)
    assert_says(describe_batch(plan, mae_vit_base().optim), "4096", "recipe", "8 ranks", "512")


@pytest.mark.parametrize(
    ("scaling", "expected"), [("linear", 2.4e-3 / 16), ("sqrt", 2.4e-3 / 4), ("none", 2.4e-3)]
)
def test_the_learning_rate_follows_the_batch(scaling: str, expected: float) -> None:
    optim = AdamWConfig(lr=2.4e-3, lr_batch=4096, lr_scaling=scaling)
    assert scaled_lr(optim, 256) == pytest.approx(expected)


def test_impossible_batches_and_lengths_are_refused() -> None:
    with refuses("train.batch_size", "4 x 2 = 8", "4"):
        make_plan(run(train__batch_size=4, train__accumulate=2), 100, 4)
    with refuses("train.epochs=0.01", "train.batch_size"):
        make_plan(run(train__epochs=0.01), 100, 1)
    with refuses("train.epochs", "steps", "50.0", "4", "none"):
        run(train__steps=4)


def factors(schedule: WarmupCosineConfig, total: int) -> list[float]:
    return [schedule.factor(Progress(t, total, 10, 100)) for t in range(total)]


def test_warmup_is_linear_and_the_cosine_falls_to_its_floor() -> None:
    schedule = WarmupCosineConfig(warmup_epochs=1, start_factor=0.1, final_factor=0.2)
    values = factors(schedule, 50)
    assert values[0] == 0.1
    assert values[10] == 1.0
    assert values[:10] == pytest.approx([0.1 + 0.09 * step for step in range(10)])
    for step in range(10, 50):
        expected = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 40))
        assert values[step] == pytest.approx(expected)
    assert values == factors(
        WarmupCosineConfig(warmup_steps=10, start_factor=0.1, final_factor=0.2), 50
    )


def test_a_schedule_has_one_unit() -> None:
    with refuses("warmup_steps", "0", "warmup_epochs", "3", error=ValueError):
        WarmupCosineConfig(warmup_steps=3, warmup_epochs=1)
