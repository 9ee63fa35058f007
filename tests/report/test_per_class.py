"""Intervals of accuracies, and the tables of classes."""

from __future__ import annotations

import pytest
import torch

from errors import assert_says
from quadriga.engine.logs.results import EvaluationRecord
from quadriga.evaluation.parts.per_class import per_class, predictions_of
from quadriga.report.per_class import class_tables, interval, wilson


@pytest.mark.parametrize(
    ("right", "samples", "expected"),
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I.
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_the_interval_is_wilsons(right: int, samples: int, expected: tuple[float, float]) -> None:
    assert wilson(right / samples, samples) == pytest.approx(expected, abs=5e-5)


def test_only_shares_of_the_samples_have_one() -> None:
    assert interval("top1", 50.0, 100) == "40.4 to 59.6 %"
    assert interval("masked_lm_accuracy", 50.0, 100) == ""
    assert interval("top1", 50.0, None) == ""


def test_counts_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    found = per_class(labels, torch.tensor([0, 1, -1, 1, 1, 0]), ("a", "b", "c", "d"))
    assert found == {
        "per_class": {
            "names": ["a", "b", "c", "d"],
            "samples": [3, 2, 1, 0],
            "correct": [1, 2, 0, 0],
            "confusion": [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]],
        }
    }
    assert per_class(labels, labels, tuple(map(str, range(1001)))) == {}
    assert "confusion" not in per_class(labels, labels, tuple(map(str, range(101))))["per_class"]


def test_no_finite_score_is_no_prediction() -> None:
    scores = torch.tensor([[0.0, 2.0], [-torch.inf, -torch.inf], [torch.nan, 1.0]])
    assert predictions_of(scores).tolist() == [1, -1, -1]


def record(per_class: object) -> EvaluationRecord:
    details = {"samples": 6, "per_class": per_class}
    return EvaluationRecord(
        step=1, protocol={"kind": "held_out"}, metrics={"accuracy": 0.5}, details=details
    )


def test_the_tables_name_the_classes() -> None:
    known = {
        "names": ["ant", "<b>", "cat"],
        "samples": [3, 2, 0],
        "correct": [1, 2, 0],
        "confusion": [[1, 2, 0], [0, 2, 0], [0, 0, 0]],
    }
    page = class_tables(record(known))
    assert_says(page, "1 of 3", "33.3 %", "2 of 2", "100.0 %", "No samples of: cat")
    assert "&lt;b&gt;" in page
    assert "<b>1</b>" in page
    assert page.index("33.3 %") < page.index("100.0 %")


@pytest.mark.parametrize("known", [3, [], {"names": ["a"]}, {"names": [1], "samples": ["x"]}])
def test_what_is_damaged_has_no_table(known: object) -> None:
    assert class_tables(record(known)) == ""
