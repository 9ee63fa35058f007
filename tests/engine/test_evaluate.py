"""What the protocols are given, what is left as it was, and which results stay."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch

from errors import assert_says, refuses
from parallel_worker import tiny_config
from quadriga.config.provenance import read_overrides
from quadriga.contracts import (
    Dataset,
    EvaluationContext,
    EvaluationResult,
    Evaluator,
    EvaluatorConfig,
)
from quadriga.data.parts.subsets import Subset
from quadriga.distributed.environment import SINGLE, DistEnv
from quadriga.engine.build import build_objective
from quadriga.engine.evaluate import (
    choose_protocols,
    describe,
    evaluate,
    evaluation_data,
    make_context,
)
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.results import (
    RECORDS,
    SAVED_BEFORE,
    append_record,
    differences,
    find_record,
    forget_results_after,
    last_metrics,
    metrics_at,
    missing_protocols,
    read_records,
    record_of,
)
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


CONFIG = tiny_config(
    [
        "evaluation.precision=float32",
        "evaluation.train_samples=40",
        "evaluation.test_samples=12",
    ]
)


def run(folder: Path, step: int = 3, fail: bool = False, env: DistEnv = SINGLE) -> None:
    objective = build_objective(CONFIG, torch.device("cpu"), CONFIG.seed).train()
    before = {name: t.clone() for name, t in objective.state_dict().items()}
    console = Console(active=False)
    context = make_context(CONFIG, objective, evaluation_data(CONFIG), folder, env, console)
    try:
        evaluate(CONFIG, [RecordingConfig(fail=fail)], context, step, console)
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
    assert [record.metrics["top1"] for record in read_records(tmp_path)] == [50.0, 50.0]


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
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_written_are_one_error(tmp_path: Path) -> None:
    with refuses(tmp_path / "gone"):
        run(tmp_path / "gone")


def test_other_ranks_write_no_results(tmp_path: Path) -> None:
    run(tmp_path, env=DistEnv(1, 2, 1, 2, torch.device("cpu")))
    assert not list(tmp_path.iterdir())


def note(folder: Path, step: int, kind: str, value: float, *words: str) -> None:
    """Write down what a protocol has found, of the run itself or with other values."""
    changed = choose_protocols(PROTOCOLS, [kind], read_overrides(words))
    (protocol,) = changed.evaluation.protocols
    result = EvaluationResult(kind, {"top1": value}, {"a.png": "A"}, {"samples": 3})
    own = differences(changed, PROTOCOLS, protocol)
    given = {"overrides": own, "opened": {"test": Twelve()}, "folder": None}
    append_record(folder, record_of(result, step, changed, protocol, **given))


class Twelve(Dataset):
    """What a record says of data."""

    classes = ("0", "1")

    def __len__(self) -> int:
        return 12

    def read(self, index: int) -> None:
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError


PROTOCOLS = CONFIG.override({"evaluation.protocols": [{"kind": "knn"}, {"kind": "linear_probe"}]})


def test_a_record_has_all_that_a_result_depends_on(tmp_path: Path) -> None:
    note(tmp_path, 5, "knn", 1.0, "knn.neighbours=7", "weights=ema", "seed=9")
    (record,) = read_records(tmp_path)
    assert (record.step, record.kind, record.metrics) == (5, "knn", {"top1": 1.0})
    assert record.protocol == {"kind": "knn", "neighbours": 7, "temperature": 0.07}
    assert record.settings == {
        "weights": "ema",
        "precision": "float32",
        "train_samples": 40,
        "test_samples": 12,
    }
    assert record.data["config"]["kind"] == "digits"
    assert record.data["samples"] == {"test": 12}
    assert record.data["classes"] == ["0", "1"]
    assert record.overrides == {"knn.neighbours": 7, "evaluation.weights": "ema", "seed": 9}
    assert not record.own
    assert (record.pictures, record.details) == ({"a.png": "A"}, {"samples": 3})
    assert record.time is not None


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    note(tmp_path, 5, "knn", 1.0)
    note(tmp_path, 5, "knn", 2.0)
    note(tmp_path, 5, "knn", 3.0, "knn.neighbours=7")
    note(tmp_path, 6, "linear_probe", 4.0)
    assert [record.metrics["top1"] for record in read_records(tmp_path)] == [1.0, 2.0, 3.0, 4.0]
    assert metrics_at(tmp_path, 5) == {"knn.top1": 2.0}
    assert last_metrics(tmp_path) == {"linear_probe.top1": 4.0}


def test_a_value_that_is_the_runs_own_makes_no_difference(tmp_path: Path) -> None:
    note(tmp_path, 5, "knn", 1.0, "knn.neighbours=20", "weights=raw", "loader.workers=3")
    assert read_records(tmp_path)[0].own
    note(tmp_path, 5, "reconstruction", 1.0)
    assert read_records(tmp_path)[1].overrides == {"evaluation.protocols": "reconstruction"}


def test_what_was_evaluated_with_these_values_is_found(tmp_path: Path) -> None:
    note(tmp_path, 5, "knn", 1.0, "knn.neighbours=7")
    for step, words, is_found in (
        (5, ["knn.neighbours=7"], True),
        (6, ["knn.neighbours=7"], False),
        (5, ["knn.neighbours=8"], False),
        (5, ["knn.neighbours=7", "weights=ema"], False),
        (5, [], False),
    ):
        changed = choose_protocols(PROTOCOLS, ["knn"], read_overrides(words))
        (protocol,) = changed.evaluation.protocols
        own = differences(changed, PROTOCOLS, protocol)
        found = find_record(read_records(tmp_path), step, changed, protocol, own)
        assert (found is not None) == is_found


def test_a_precision_that_is_auto_is_what_the_run_decided(tmp_path: Path) -> None:
    knn, probe = PROTOCOLS.evaluation.protocols
    of = {p: PROTOCOLS.override({"evaluation.precision": p}) for p in ("auto", "float32")}
    reduced = PROTOCOLS.override({"evaluation.precision": "bfloat16"})
    result = EvaluationResult("knn", {"top1": 1.0}, {}, {})
    given = {"overrides": {}, "opened": {"test": Twelve()}, "folder": None}
    append_record(tmp_path, record_of(result, 5, reduced, knn, **given))
    assert missing_protocols(of["auto"], tmp_path, 5) == [probe]
    assert missing_protocols(of["float32"], tmp_path, 5) == [knn, probe]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 1}', "{", '"text"', "3", "null"])
def test_damaged_results_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / SAVED_BEFORE).write_text(text)
    (tmp_path / RECORDS).write_text(text)
    assert read_records(tmp_path) == []


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    note(tmp_path, 5, "knn", 1.0)
    with (tmp_path / RECORDS).open("a") as stream:
        stream.write('{"step": 6, "prot')
    note(tmp_path, 7, "knn", 2.0)
    told: list[str] = []
    assert [record.step for record in read_records(tmp_path, told)] == [5, 7]
    assert_says(told[0], RECORDS, "1 damaged line")


def test_what_was_given_up_stays_in_the_file_and_counts_no_more(tmp_path: Path) -> None:
    for step, value in ((2, 1.0), (4, 2.0), (6, 3.0)):
        note(tmp_path, step, "knn", value)
    lines = (tmp_path / RECORDS).read_text()
    forget_results_after(tmp_path, 6)
    assert (tmp_path / RECORDS).read_text() == lines
    forget_results_after(tmp_path, 2)
    assert (tmp_path / RECORDS).read_text().startswith(lines)
    assert [record.step for record in read_records(tmp_path)] == [2]
    note(tmp_path, 4, "knn", 5.0)
    assert metrics_at(tmp_path, 4) == {"knn.top1": 5.0}


def test_only_protocols_without_a_result_of_their_own_are_missing(tmp_path: Path) -> None:
    knn, probe = PROTOCOLS.evaluation.protocols
    assert missing_protocols(PROTOCOLS, tmp_path, 5) == [knn, probe]
    note(tmp_path, 5, "linear_probe", 1.0, "linear_probe.epochs=3")
    assert missing_protocols(PROTOCOLS, tmp_path, 5) == [knn, probe]
    note(tmp_path, 5, "knn", 1.0)
    assert missing_protocols(PROTOCOLS, tmp_path, 5) == [probe]
    note(tmp_path, 5, "knn", 1.0, "seed=9")
    assert missing_protocols(PROTOCOLS, tmp_path, 5) == [probe]
    assert missing_protocols(PROTOCOLS, tmp_path, 6) == [knn, probe]
    assert missing_protocols(CONFIG, tmp_path, 5) == []


def test_a_number_is_told_beside_the_random_encoders() -> None:
    told = describe(EvaluationResult("held_out", {"loss": 0.51234, "accuracy": 0.975}))
    assert_says(told, "held_out", "loss 0.5123", "accuracy 97.50 %")
    told = describe(EvaluationResult("knn", {"top1": 61.234, "top1_random": 20.0, "k": 5}))
    assert_says(told, "knn", "top1 61.23 %", "20.00 %", "k 5")


SMALL = ("model.width=16", "model.depth=2", "model.heads=2", "train.device=cpu")


@pytest.mark.parametrize("is_cut", [False, pytest.param(True, marks=pytest.mark.long)])
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
        words = ("eval", str(run), protocol, "--again")
        done = run_quadriga(*words, world_size=world_size)
        assert done.returncode == 0, done.stderr
        found.append(read_records(run / "report")[-1].metrics)
    alone, sharded = found
    assert sharded == pytest.approx(alone, rel=1e-5)
