"""Types, scales and compiled programs change the speed and the rounding, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from parallel_worker import tiny_config
from quadriga.contracts import Batch, LossOutput
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import EXACT, build_loader, build_objective
from quadriga.engine.run_plan import make_plan
from quadriga.engine.step import precision as loss_scale
from quadriga.engine.step.data_parallel import DataParallelExecutor
from quadriga.engine.step.precision import LossScale
from quadriga.methods.mae import MAE
from ranks import run_worker

HERE = Path(__file__).resolve().parent


class Trial:
    """A tiny run in this process, step by step."""

    def __init__(self, *words: str) -> None:
        self.config = tiny_config(["train.steps=8", *words])
        self._dataset = self.config.data.build("train")
        self.plan = make_plan(self.config, len(self._dataset), 1)
        objective = build_objective(self.config, SINGLE.device, self.config.seed)
        self.executor = DataParallelExecutor(objective, self.config, self.plan, SINGLE)

    def batches(self, steps: range) -> Iterator[Batch]:
        return build_loader(self.config, self._dataset, self.plan, SINGLE, EXACT).batches(steps)

    def steps(self, steps: range) -> list[float]:
        return [float(o.metrics["loss"]) for o in self.executor.run(self.batches(steps), steps)]

    def state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.executor.state_dict().items()}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_weights_and_moments_stay_float32(precision: str) -> None:
    exact, reduced = Trial(), Trial(f"train.precision={precision}")
    # Eight bits of mantissa, over eight steps of a falling loss.
    assert reduced.steps(range(8)) == pytest.approx(exact.steps(range(8)), rel=0.02)
    for name, tensor in reduced.state().items():
        if not name.startswith("executor."):
            assert tensor.dtype == torch.float32, name


def test_a_skipped_step_does_not_advance_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    # So large a scale that the first gradients overflow in float16.
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**40)
    trial = Trial("train.precision=float16", "schedule.warmup_steps=4")
    outputs, before = [], trial.state()
    for step in range(40):
        (output,) = trial.executor.run(trial.batches(range(step, step + 1)), range(step, step + 1))
        outputs.append(output)
        if not output.skipped:
            break
        for name, tensor in trial.state().items():
            if not name.startswith("executor."):
                assert torch.equal(tensor, before[name]), name
    skipped = len(outputs) - 1
    assert 0 < skipped < 39
    state = trial.state()
    assert int(state["executor.skipped"]) == skipped
    assert float(state["executor.loss_scale"]) == 2.0 ** (40 - skipped)
    factor = trial.config.schedule.factor
    assert outputs[-1].lr == trial.plan.lr * factor(trial.plan.progress(0))
    assert all(output.metrics["loss"].isfinite() for output in outputs), "the loss itself is fine"


def test_the_scale_travels_with_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**26)
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 3)
    words = ("train.precision=float16", "ema.decay=0.5", "ema.warmup=true")
    straight, first, second = Trial(*words), Trial(*words), Trial(*words)
    whole = straight.steps(range(8))
    start = first.steps(range(4))
    second.executor.load_state_dict(first.state())
    assert start + second.steps(range(4, 8)) == whole
    one, other = straight.state(), second.state()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_scale_grows_after_good_steps_and_gives_up_at_last() -> None:
    scale = LossScale(enabled=True)
    for _ in range(loss_scale.GROWTH_STEPS):
        scale.update(overflowed=False)
    assert scale.value == 2 * loss_scale.INITIAL
    while scale.forgives(loss_is_finite=True):
        scale.update(overflowed=True)
    assert scale.value <= loss_scale.SMALLEST
    assert not LossScale(enabled=False).forgives(loss_is_finite=True)


def test_the_average_is_that_of_the_formula() -> None:
    trial = Trial("ema.decay=0.9", "ema.warmup=true")
    name = "decoder.head.weight"
    expected = trial.state()[f"objective.{name}"]
    for step in range(8):
        trial.steps(range(step, step + 1))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * trial.state()[f"objective.{name}"]
    torch.testing.assert_close(trial.state()[f"ema.{name}"], expected)
    raw = trial.state()[f"objective.{name}"]
    with trial.executor.frozen("ema") as objective:
        torch.testing.assert_close(objective.state_dict()[name], expected)
    assert torch.equal(trial.state()[f"objective.{name}"], raw)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_what_is_computed_again_is_what_was_computed(mode: str) -> None:
    words = ("model.drop_path=0.4", "train.accumulate=2")
    kept, again = Trial(*words), Trial(*words, f"train.recompute={mode}")
    assert kept.steps(range(4)) == again.steps(range(4))
    one, other = kept.state(), again.state()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.long
def test_compiled_blocks_compute_the_same_and_share_their_programs() -> None:
    # Micro-batches of 100: no multiple of a vector, whose last part must not be written past.
    words = ["model.depth=4", "model.drop_path=0.4", "train.batch_size=200", "train.accumulate=2"]
    told, _ = run_worker(HERE / "compile_worker.py", *words, timeout=240)
    for side in ("compiled", "recomputed"):
        assert told[side] == pytest.approx(told["eager"], rel=1e-5)
        # A block without drop path, those with it, and the decoder's: not one for each layer.
        assert told[f"{side} graphs"] == [3]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_without_targets_makes_no_update(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    trial = Trial(f"train.precision={precision}", "ema.decay=0.5")
    trial.steps(range(2))
    forward, before = MAE.forward, trial.state()

    def without_targets(objective: MAE, batch: Batch) -> LossOutput:
        output = forward(objective, batch)
        return LossOutput.of(output.only.total * 0, output.only.targets * 0, {})

    with monkeypatch.context() as patch:
        patch.setattr(MAE, "forward", without_targets)
        (output,) = trial.executor.run(trial.batches(range(2, 3)), range(2, 3))
    assert output.skipped
    after = trial.state()
    assert int(after.pop("executor.skipped")) == int(before.pop("executor.skipped")) + 1
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert all(torch.isfinite(torch.tensor(trial.steps(range(3, 5)))))


def test_a_bad_loss_says_nothing_of_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial("train.precision=float16")
    trial.executor._on_bad_step = lambda bad: None
    trial.steps(range(2))
    before = trial.state()
    forward = MAE.forward

    def bad(objective: MAE, batch: Batch) -> LossOutput:
        output = forward(objective, batch)
        return LossOutput.of(output.only.total * torch.nan, output.only.targets, output.metrics)

    monkeypatch.setattr(MAE, "forward", bad)
    trial.steps(range(2, 3))
    for name in ("executor.loss_scale", "executor.loss_scale_good_steps"):
        assert torch.equal(trial.state()[name], before[name]), name


def test_texts_of_other_lengths_share_one_program() -> None:
    told, _ = run_worker(HERE / "compile_shapes_worker.py")
    for precision in ("float32", "bfloat16"):
        first, second, *later = told["programs"][precision]
        assert first > 0
        assert set(later) == {second}, "compiled once for each length"
    assert not told["breaks"]
    assert told["gap"] < 1e-6


def test_a_fixed_loss_scale_stays() -> None:
    scale = LossScale(enabled=True, fixed=512.0)
    scale.update(overflowed=True)
    assert scale.value == 512.0
    assert scale.forgives(loss_is_finite=True)
    assert LossScale(enabled=False, fixed=512.0).value == 1.0
