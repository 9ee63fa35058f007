"""The metrics of GLUE against scikit-learn and scipy; ranks; predictions; errors."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from errors import refuses
from glue_files import put, write_official, write_vocabulary
from quadriga.contracts import EvaluationContext, LossOutput, Objective
from quadriga.data.parts.subsets import Subset
from quadriga.data.text.glue.dataset import GlueConfig
from quadriga.data.text.text_pairs import TextPairsConfig
from quadriga.distributed.environment import SINGLE
from quadriga.distributed.process_group import process_group
from quadriga.evaluation.glue import GlueConfig as Protocol
from quadriga.evaluation.glue import metrics_of
from quadriga.evaluation.parts.features import evaluation_mode


class Classifier(Objective):
    """Scores by a fixed function of the tokens, so that an answer depends on a sample alone."""

    def __init__(self, outputs: int, regression: bool = False) -> None:
        super().__init__()
        self.outputs, self.regression = outputs, regression

    def forward(self, batch):
        return LossOutput.of(torch.zeros(()), None, {})

    def initialise(self, seed):
        return None

    def scores(self, batch):
        assert not torch.is_grad_enabled()
        assert not self.training
        total = (batch["ids"] * (1 + batch["segments"])).sum(1, keepdim=True)
        return torch.sin(total * torch.arange(1, self.outputs + 1)).float()


def expected(classifier, dataset, views):
    """Return the answers, one sample at a time."""
    answers = []
    for index in range(len(dataset)):
        arrays = views.sample(dataset.read(index), 0)
        sample = {name: torch.from_numpy(array)[None] for name, array in arrays.items()}
        with torch.inference_mode(), evaluation_mode(classifier):
            scores = classifier.scores(sample)
        answers.append(scores[0, 0].item() if classifier.regression else scores.argmax().item())
    return np.array(answers)


def context_of(root: Path, output: Path, task: str, classifier, env=SINGLE, **changes):
    config = GlueConfig(root=root, task=task)
    data = {split: config.build(split) for split in ("train", "test")} | changes
    return EvaluationContext(
        objective=classifier,
        fresh=lambda: classifier,
        data=data.__getitem__,
        transform=TextPairsConfig(max_length=16).build("test"),
        env=env,
        seed=3,
        output=output,
    )


def many(root: Path, count: int = 101) -> Path:
    """Write tasks with more rows than a batch."""
    write_official(root)
    words = ("good", "bad", "film", "the", "a", "is", "was", "plot", "actor")
    rows = [f"{words[i % 9]} {words[i * i % 7]} {words[i // 11 % 9]}" for i in range(count)]
    put(root / "CoLA", "dev.tsv", *(f"x\t{i // 3 % 2}\t\t{text}" for i, text in enumerate(rows)))
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    pairs = [f"{i}\tg\tf\ty\to\ts\ts\t{a}\tthe {a}\t{i % 11 / 2}" for i, a in enumerate(rows)]
    put(root / "STS-B", "dev.tsv", head, *pairs)
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    put(
        root / "MRPC", "dev.tsv", head, *(f"{i % 3 // 2}\t1\t2\t{a}\ta" for i, a in enumerate(rows))
    )
    return root


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_the_libraries(seed: int) -> None:
    source = np.random.default_rng(seed)
    answers, labels = source.integers(0, 2, (2, 200)).astype(float)
    found = metrics_of(("mcc", "accuracy", "f1"), answers, labels)
    both = labels.astype(int), answers.astype(int)
    true = ((answers == 1) & (labels == 1)).sum()
    assert found == pytest.approx(
        {
            "mcc": 100 * metrics.matthews_corrcoef(*both),
            "accuracy": 100 * (answers == labels).mean(),
            "f1": 100 * 2 * true / ((answers == 1).sum() + (labels == 1).sum()),
        }
    )
    numbers, right = source.normal(size=(2, 200))
    assert metrics_of(("pearson", "spearman"), numbers, right) == pytest.approx(
        {
            "pearson": 100 * np.corrcoef(numbers, right)[0, 1],
            "spearman": 100 * stats.spearmanr(numbers, right).statistic,
        }
    )


def test_what_is_not_defined_is_zero() -> None:
    constant, labels = np.zeros(6), np.array([0.0, 1, 0, 1, 1, 0])
    assert metrics_of(("mcc", "f1", "pearson", "spearman"), constant, labels) == {
        "mcc": 0,
        "f1": 0,
        "pearson": 0,
        "spearman": 0,
    }
    assert metrics_of(("mcc", "accuracy"), constant, constant) == {"mcc": 0, "accuracy": 100}


@pytest.mark.parametrize("task", ["cola", "mrpc", "stsb"])
def test_a_task_gets_its_metrics_and_their_mean(tmp_path: Path, task: str) -> None:
    root = many(tmp_path)
    classifier = Classifier(1 if task == "stsb" else 2, task == "stsb")
    context = context_of(root, tmp_path, task, classifier)
    result = Protocol(batch_size=8).build().run(context)
    tests = context.data("test")
    answers = expected(classifier, tests, context.transform)
    names = {"cola": ("mcc",), "mrpc": ("accuracy", "f1"), "stsb": ("pearson", "spearman")}[task]
    right = tests.labels_of(tests)
    own = metrics_of(names, answers, right)
    score = sum(own.values()) / len(own)
    assert result.metrics == pytest.approx({**own, "score": score})
    assert result.details["samples"] == 101
    assert classifier.training
    if task == "mrpc":
        assert result.details["most_frequent_class"] == pytest.approx(100 * (right == 0).mean())


def test_mnli_is_evaluated_on_both_sets_and_predicted_for_both(tmp_path: Path) -> None:
    write_official(tmp_path)
    classifier = Classifier(3)
    context = context_of(tmp_path, tmp_path, "mnli", classifier)
    result = Protocol().build().run(context)
    assert set(result.metrics) == {"accuracy", "accuracy_mismatched", "score"}
    both = result.metrics["accuracy"] + result.metrics["accuracy_mismatched"]
    assert result.metrics["score"] == pytest.approx(both / 2)
    assert result.details["predictions"] == ["MNLI-m.tsv", "MNLI-mm.tsv"]
    tests = context.data("test").sibling("test", "mismatched")
    answers = expected(classifier, tests, context.transform)
    names = ("contradiction", "entailment", "neutral")
    lines = [f"{i}\t{names[answer]}\n" for i, answer in enumerate(answers)]
    assert (tmp_path / "MNLI-mm.tsv").read_text() == "index\tprediction\n" + "".join(lines)
    lone = Protocol().build().run(context_of(tmp_path, tmp_path, "mnli-mm", classifier))
    assert lone.metrics["accuracy"] == result.metrics["accuracy_mismatched"]


def test_predictions_of_numbers_and_none_without_a_test_set(tmp_path: Path) -> None:
    write_official(tmp_path)
    classifier = Classifier(1, regression=True)
    Protocol().build().run(context_of(tmp_path, tmp_path, "stsb", classifier))
    lines = (tmp_path / "STS-B.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert all(-1 <= float(line.split("\t")[1]) <= 1 for line in lines[1:])
    (tmp_path / "RTE" / "test.tsv").unlink()
    result = Protocol().build().run(context_of(tmp_path, tmp_path, "rte", Classifier(2)))
    assert "predictions" not in result.details
    assert not (tmp_path / "RTE.tsv").exists()


def test_a_part_of_the_development_set(tmp_path: Path) -> None:
    root = many(tmp_path)
    context = context_of(root, tmp_path, "cola", Classifier(2))
    whole = context.data("test")
    part = Subset(whole, 40, seed=3)
    context.data = {"test": part}.__getitem__
    result = Protocol(predictions=False).build().run(context)
    answers = expected(Classifier(2), whole, context.transform)[part.indices]
    right = whole.labels_of(whole)[part.indices]
    assert result.metrics["mcc"] == pytest.approx(metrics_of(("mcc",), answers, right)["mcc"])


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    write_official(tmp_path)
    with refuses("objective.outputs", "3", "objective.regression", "data.task=mnli", "2"):
        Protocol().build().check(context_of(tmp_path, tmp_path, "mnli", Classifier(2)))
    with refuses("objective.outputs", "1", "objective.regression", "data.task=stsb", "2"):
        Protocol().build().check(context_of(tmp_path, tmp_path, "stsb", Classifier(2)))
    with refuses("glue", "objective.kind=sequence_classification", "Linear"):
        Protocol().build().check(context_of(tmp_path, tmp_path, "rte", torch.nn.Linear(1, 1)))
    other = context_of(
        tmp_path, tmp_path, "rte", Classifier(2), test=torch.utils.data.TensorDataset()
    )
    with refuses("glue", "data.kind=glue"):
        Protocol().build().check(other)


def found_by(env, root: Path, output: Path) -> str:
    results = [
        Protocol(batch_size=8).build().run(context_of(root, output, "cola", Classifier(2), env)),
        Protocol(batch_size=8)
        .build()
        .run(context_of(root, output, "stsb", Classifier(1, True), env)),
    ]
    return repr(results)


def test_two_ranks_find_what_one_process_finds(tmp_path: Path) -> None:
    from ranks import run_ranks

    root = many(tmp_path / "data")
    write_vocabulary(root)
    expected_results = found_by(SINGLE, root, tmp_path)
    written = (tmp_path / "CoLA.tsv").read_bytes()
    (tmp_path / "CoLA.tsv").unlink()
    for done in run_ranks([sys.executable, __file__, str(root), str(tmp_path)], 2):
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == expected_results
    assert (tmp_path / "CoLA.tsv").read_bytes() == written


if __name__ == "__main__":
    with process_group("cpu", os.environ) as rank_env:
        print(found_by(rank_env, Path(sys.argv[1]), Path(sys.argv[2])))
