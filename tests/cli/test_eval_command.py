"""`quadriga eval`: results are records that stay, and the run's own stay its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from errors import assert_command_refused, assert_says
from quadriga.cli.entry import run
from quadriga.engine import evaluate as evaluate_module
from quadriga.engine.logs.results import read_records
from quadriga.engine.status import state_of
from tiny import tiny_run

PROTOCOLS = 'evaluation.protocols=[{"kind":"knn","neighbours":3},{"kind":"reconstruction"}]'
WORDS = (
    PROTOCOLS,
    "loader.workers=0",
    "evaluation.train_samples=40",
    "evaluation.test_samples=40",
    "evaluation.workers=0",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run(tiny_run(folder, 2, *WORDS)) == 0
    return folder


@pytest.fixture
def work_dir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def page_of(folder: Path) -> str:
    return (folder / "report" / "index.html").read_text()


def test_other_values_leave_the_runs_own_results_alone(work_dir: Path) -> None:
    own = read_records(work_dir / "report")
    before = state_of(work_dir, None)
    assert (before.state, before.metric) == ("finished", "knn.top1")
    picture = next((work_dir / "report").rglob("reconstruction.png"))
    pixels = picture.read_bytes()
    assert run(["eval", str(work_dir), "knn", "knn.neighbours=7"]) == 0
    assert (
        run(["eval", str(work_dir), "reconstruction.images=2", "evaluation.test_samples=20"]) == 0
    )
    assert run(["eval", str(work_dir), "linear_probe", "linear_probe.epochs=2"]) == 0
    records = read_records(work_dir / "report")
    assert records[:2] == own
    assert [record.own for record in records] == [True, True, False, False, False]
    assert state_of(work_dir, None) == before
    assert picture.read_bytes() == pixels
    page = page_of(work_dir)
    first, _, others = page.partition("Evaluated otherwise")
    assert_says(first, f"{own[0].metrics['top1']:.2f}")
    for text in ("knn.neighbours = 7", "reconstruction.images = 2", "evaluation.test_samples = 20"):
        assert text in others
        assert text not in first


def test_what_is_there_is_not_evaluated_again(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated: list[str] = []
    evaluate = evaluate_module.evaluate

    def watching(config, protocols, *more, **others):  # type: ignore[no-untyped-def]
        evaluated.extend(protocol.kind() for protocol in protocols)
        return evaluate(config, protocols, *more, **others)

    monkeypatch.setattr(evaluate_module, "evaluate", watching)
    own = read_records(work_dir / "report")
    capsys.readouterr()
    assert run(["eval", str(work_dir)]) == 0
    assert_says(capsys.readouterr().out, f"{own[0].metrics['top1']:.2f} %", "step 2", "--again")
    assert run(["eval", str(work_dir), "knn", "knn.neighbours=3"]) == 0
    assert evaluated == []
    assert (
        run(["eval", str(work_dir), "knn,reconstruction,linear_probe", "linear_probe.epochs=2"])
        == 0
    )
    assert evaluated == ["linear_probe"]
    evaluated.clear()
    assert run(["eval", str(work_dir), "--again"]) == 0
    assert evaluated == ["knn", "reconstruction"]
    records = read_records(work_dir / "report")
    assert records[-2].metrics == own[0].metrics
    assert records[-1].folder != own[1].folder
    assert all((work_dir / "report" / str(r.folder)).is_dir() for r in (own[1], records[-1]))


def test_unknown_protocols_between_commas_are_refused(
    work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_command_refused(["eval", work_dir, "knn,probe"], capsys, "probe", "linear_probe")
