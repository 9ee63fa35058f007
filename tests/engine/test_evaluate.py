"""What the protocols are given, what is left as it was, and which results stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from errors import assert_says, refuses
from parallel_worker import tiny_config
from quadriga.contracts import EvaluationContext, EvaluationResult, Evaluator, EvaluatorConfig
from quadriga.data.parts.subsets import Subset
from quadriga.distributed.environment import SINGLE, DistEnv
from quadriga.engine.build import build_objective
from quadriga.engine.evaluate import describe, evaluate, evaluation_data, make_context
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.results import merge_results, missing_protocols, read_results
from quadriga.errors import UserError
from ranks import run_quadriga
from tiny import tiny_run


class Recording(Evaluator):
    """Keeps what it was given."""

    seen: ClassVar[list[EvaluationContext]] = []

    def run(self, context: EvaluationContext) -> EvaluationResult:
        assert not context.objective.training
        self.seen.append(context)
        return EvaluationResult("recording", {"top1": 50.0, "top1_random": 10.0})


class Failing(Evaluator):
    """Cannot evaluate anything."""

    def run(self, context: EvaluationContext) -> EvaluationResult:
        raise UserError("cannot evaluate this")


class RecordingConfig(EvaluatorConfig):
    """Builds either."""

    fail: bool = False

    def build(self) -> Evaluator:
        return Failing() if self.fail else Recording()


CONFIG = tiny_config(["evaluation.train_samples=40", "evaluation.test_samples=12"])


def run(folder: Path, step: int = 3, fail: bool = False, env: DistEnv = SINGLE) -> None:
    objective = build_objective(CONFIG, torch.device("cpu"), CONFIG.seed).train()
    before = {name: t.clone() for name, t in objective.state_dict().items()}
    console = Console(active=False)
    context = make_context(CONFIG, objective, evaluation_data(CONFIG), folder, env, console)
    try:
        evaluate([RecordingConfig(fail=fail)], context, step, console)
    finally:
        assert objective.training
        assert all(torch.equal(t, before[name]) for name, t in objective.state_dict().items())


def test_a_protocol_gets_the_parts_and_a_fresh_encoder(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path)
    first, second = Recording.seen[-2:]
    assert len(first.data("train")) == 40
    assert len(first.data("test")) == 12
    names = [[c.data("test").name(i) for i in range(12)] for c in (first, second)]
    assert names[0] == names[1]
    fresh = [first.fresh(), first.fresh(), second.fresh()]
    assert not any(objective.training for objective in fresh)
    states = [objective.state_dict() for objective in fresh]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert torch.equal(tensor, states[2][name]), name
    trained = first.objective.state_dict()
    assert any(not torch.equal(tensor, trained[name]) for name, tensor in states[0].items())
    (result,) = read_results(tmp_path / "evaluation.json")["results"]
    assert result["numbers"]["top1"] == 50.0


def test_a_split_is_opened_when_asked_for_and_kept() -> None:
    train = CONFIG.data.build("train")
    data = evaluation_data(CONFIG, train)
    assert data("test") is data("test")
    assert data("train") is data("train")
    part = data("train")
    assert isinstance(part, Subset)
    assert part.whole is train
    whole = CONFIG.override({"evaluation.train_samples": "none"})
    assert evaluation_data(whole, train)("train") is train
    gone = CONFIG.override({"data.kind": "image_folder", "data.root": "gone"})
    with pytest.raises(UserError, match=r"data\.root"):
        evaluation_data(gone, train)("test")
    assert evaluation_data(gone, train)("train").whole is train  # type: ignore[attr-defined]


def test_a_failing_protocol_leaves_the_training_mode(tmp_path: Path) -> None:
    with refuses("cannot evaluate this"):
        run(tmp_path, fail=True)
    assert not (tmp_path / "evaluation.json").exists()


def test_results_that_cannot_be_written_are_one_error(tmp_path: Path) -> None:
    with refuses(tmp_path / "gone" / "evaluation.json"):
        run(tmp_path / "gone")


def test_other_ranks_write_no_results(tmp_path: Path) -> None:
    run(tmp_path, env=DistEnv(1, 2, 1, 2, torch.device("cpu")))
    assert not (tmp_path / "evaluation.json").exists()


def result(protocol: str, value: float) -> EvaluationResult:
    return EvaluationResult(protocol, {"top1": value}, {"a.png": "A"}, {"samples": 3})


def test_results_of_one_step_stand_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    assert read_results(path) == {"step": 0, "results": []}
    merge_results(path, 5, [result("knn", 1.0), result("probe", 2.0)])
    merge_results(path, 5, [result("knn", 3.0)])
    stored = read_results(path)
    assert stored["step"] == 5
    assert {r["protocol"]: r["numbers"]["top1"] for r in stored["results"]} == {
        "knn": 3.0,
        "probe": 2.0,
    }
    whole = {
        "protocol": "knn",
        "numbers": {"top1": 3.0},
        "pictures": {"a.png": "A"},
        "details": {"samples": 3},
    }
    assert whole in stored["results"]
    assert json.loads(path.read_text()) == stored


def test_results_of_another_step_go(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    merge_results(path, 5, [result("knn", 1.0), result("probe", 2.0)])
    merge_results(path, 6, [result("knn", 4.0)])
    stored = read_results(path)
    assert stored["step"] == 6
    assert [r["protocol"] for r in stored["results"]] == ["knn"]


def test_results_with_other_overrides_go(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    merge_results(path, 5, [result("knn", 1.0)])
    for protocol in ("probe", "knn"):
        merge_results(path, 5, [result(protocol, 2.0)], {"data.root": "elsewhere"})
    stored = read_results(path)
    assert stored["overrides"] == {"data.root": "elsewhere"}
    assert [r["protocol"] for r in stored["results"]] == ["probe", "knn"]
    assert all(r["numbers"]["top1"] == 2.0 for r in stored["results"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 1}', "{"])
def test_damaged_results_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    assert read_results(path)["results"] == []


def test_only_protocols_without_a_result_at_the_step_are_missing(tmp_path: Path) -> None:
    protocols = [{"kind": "knn"}, {"kind": "linear_probe"}]
    config = CONFIG.override({"evaluation.protocols": protocols})
    assert missing_protocols(config, tmp_path, 5) == list(config.evaluation.protocols)
    merge_results(tmp_path / "evaluation.json", 5, [result("knn", 1.0)])
    assert missing_protocols(config, tmp_path, 5) == [config.evaluation.protocols[1]]
    assert missing_protocols(config, tmp_path, 6) == list(config.evaluation.protocols)
    assert missing_protocols(CONFIG, tmp_path, 5) == []
    merge_results(tmp_path / "evaluation.json", 5, [result("knn", 1.0)], {"knn.k": "3"})
    assert missing_protocols(config, tmp_path, 5) == list(config.evaluation.protocols)


def test_a_number_is_told_beside_the_random_encoders() -> None:
    told = describe(EvaluationResult("held_out", {"loss": 0.51234, "accuracy": 0.975}))
    assert_says(told, "held_out", "loss 0.5123", "accuracy 97.50 %")
    told = describe(EvaluationResult("knn", {"top1": 61.234, "top1_random": 20.0, "k": 5}))
    assert_says(told, "knn", "top1 61.23 %", "20.00 %", "k 5")


SMALL = ("model.width=16", "model.depth=2", "model.heads=2", "train.device=cpu")


@pytest.mark.parametrize("is_cut", [False, True])
def test_eval_reads_a_parted_run_in_shards_on_any_number_of_ranks(
    tmp_path: Path, is_cut: bool
) -> None:
    run, protocol = tmp_path / "run", "held_out" if is_cut else "reconstruction"
    words = tiny_run(run, 2, "train.parallel=fsdp")
    if is_cut:
        cut = ("executor.kind=pipeline", "executor.stages=2", "train.accumulate=2")
        length = ("train.steps=2", "schedule.warmup_epochs=0", "evaluation.protocols=[]")
        words = ["train", "deit_digits", *SMALL, *cut, *length, "--work-dir", str(run)]
    done = run_quadriga(*words, world_size=2)
    assert done.returncode == 0, done.stderr
    found = []
    for world_size in (1, 2):
        done = run_quadriga("eval", str(run), protocol, world_size=world_size)
        assert done.returncode == 0, done.stderr
        (result,) = json.loads((run / "report" / "evaluation.json").read_text())["results"]
        found.append(result["numbers"])
    alone, sharded = found
    assert sharded == pytest.approx(alone, rel=1e-5)
