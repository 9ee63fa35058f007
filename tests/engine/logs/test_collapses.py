"""The warning that a method's outputs have collapsed."""

from errors import assert_says
from quadriga.engine.logs.journal import CollapseDetector

HEALTHY = {"embedding_deviation": (0.1, 1.0)}


def steps_warned(values: list[float], steps: int | None = 4) -> list[int]:
    detector = CollapseDetector(HEALTHY, steps)
    return [
        step
        for step, value in enumerate(values, start=1)
        if detector.see(step, {"embedding_deviation": value, "loss": 0.0})
    ]


def test_a_metric_that_stays_outside_is_reported_once_until_it_is_back() -> None:
    assert steps_warned([0.05] * 12) == [5]
    assert steps_warned([0.5, *[0.05] * 4, 0.5, *[0.05] * 5]) == [11]
    assert steps_warned([*[0.05] * 6, 0.5, *[0.05] * 5]) == [5, 12]
    assert steps_warned([1.5] * 5) == [5]


def test_healthy_runs_records_without_the_metric_and_no_limit_are_silent() -> None:
    assert steps_warned([0.1, 1.0, 0.5] * 5) == []
    assert steps_warned([0.05] * 12, None) == []
    detector = CollapseDetector(HEALTHY, 1)
    assert [detector.see(step, {"loss": 0.0}) for step in (1, 5)] == [[], []]


def test_the_sentence() -> None:
    detector = CollapseDetector(HEALTHY, 4)
    detector.see(7, {"embedding_deviation": 0.05})
    (said,) = detector.see(11, {"embedding_deviation": 0.02})
    assert_says(said, "embedding_deviation", "0.02", "step 11", "0.1", "step 7", "learning rate")
