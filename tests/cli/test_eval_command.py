"""`quadriga eval`: results are records that stay, and the run's own stay its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from errors import assert_command_refused, assert_says
from pictures import encoded, noise, write, write_classes
from quadriga.cli.entry import run
from quadriga.contracts import Dataset
from quadriga.data.images.record import ImageRecord
from quadriga.data.parts.classes import match_classes
from quadriga.engine import evaluate as evaluate_module
from quadriga.engine.logs.results import EvaluationRecord, read_records
from quadriga.engine.status import state_of
from quadriga.weights.files import write_tensors
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


TYPES = ("ant", "bee", "cat", "dog", "elk")
RATE = "optim.lr=0.05"


def classifier(root: Path, folder: Path, *words: str) -> list[str]:
    own = (
        "data.kind=image_folder",
        f"data.root={root}",
        "objective.kind=supervised",
        "model.pool=class",
        'evaluation.protocols=[{"kind":"held_out"}]',
        "loader.workers=0",
        "evaluation.workers=0",
        *words,
    )
    return [
        word
        for word in tiny_run(folder, 30, *own)
        if not word.startswith(("data.image_px", "objective.decoder"))
    ]


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classified")
    for split, count in (("train", 12), ("val", 4)):
        for place, name in enumerate(TYPES):
            for i in range(count):
                pixels = noise(20, 20, seed=100 * place + 10 * count + i) // 4 + 40 * place
                pixels[..., place % 3] = 255 - 60 * place
                write(folder / "images" / split / name / f"{i:03d}.png", encoded(pixels, "PNG"))
    assert run(classifier(folder / "images", folder / "run", RATE)) == 0
    return folder


def last_of(folder: Path) -> EvaluationRecord:
    return read_records(folder / "report")[-1]


def own_of(folder: Path) -> EvaluationRecord:
    (record,) = [record for record in read_records(folder / "report") if record.own]
    return record


def renamed(classified: Path, folder: Path, names: dict[str, str]) -> Path:
    """Return a copy of the images with the classes under other names."""
    for split in ("train", "val"):
        for old, new in names.items():
            shutil.copytree(classified / "images" / split / old, folder / split / new)
    return folder


def test_the_names_of_the_classes_are_kept(classified: Path, tmp_path: Path) -> None:
    work_dir = classified / "run"
    facts = json.loads((work_dir / "data.json").read_text())
    assert facts["classes"] == list(TYPES)
    assert facts["samples"] == {"train": 60}
    manifest = json.loads((work_dir / "checkpoints/step_00000030/manifest.json").read_text())
    assert manifest["extra"]["classes"] == list(TYPES)
    export = ["checkpoint", "export", str(work_dir), str(tmp_path / "hf"), "--to", "hf"]
    assert run([*export, "--part", "all"]) == 0
    described = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert described["id2label"] == {str(i): name for i, name in enumerate(TYPES)}
    assert described["label2id"] == {name: i for i, name in enumerate(TYPES)}
    record = own_of(work_dir)
    assert record.metrics["accuracy"] > 0.5
    assert record.data["classes"] == list(TYPES)
    found = record.details["per_class"]
    assert (found["names"], found["samples"]) == (list(TYPES), [4] * 5)
    assert sum(found["correct"]) == pytest.approx(20 * record.metrics["accuracy"])
    assert [sum(row) for row in found["confusion"]] == [4] * 5
    assert [row[i] for i, row in enumerate(found["confusion"])] == found["correct"]
    page = page_of(work_dir)
    for text in ("Accuracy of each class", "Confusion matrix", "95 %: ", *TYPES):
        assert text in page


def test_other_classes_are_an_error_that_lists_both(
    classified: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = renamed(classified, tmp_path / "other", {name: name for name in TYPES})
    for split in ("train", "val"):
        write_classes(root / split, ("fox", "gnu"), 2)
    words = ["eval", classified / "run", f"data.root={root}"]
    assert_command_refused(words, capsys, "5", "7", *TYPES, "fox", "gnu")
    # Other names sort otherwise, and labels would be other numbers.
    words[-1] = f"data.root={renamed(classified, tmp_path / 'new', {c: c[::-1] for c in TYPES})}"
    assert_command_refused(words, capsys, "ant", "tna", "elk", "kle")


def test_labels_are_matched_by_name(
    classified: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = classified / "run"
    own = own_of(work_dir)
    # A data set whose classes come in another order: what the run knows as 0 is another class.
    numbers = {c: len(TYPES) - 1 - i for i, c in enumerate(TYPES)}
    data = InOrder(classified / "images" / "val", numbers)
    matched = match_classes(data, TYPES, "the run", "the images")
    names = [Path(matched.name(i)).parent.name for i in range(len(matched))]
    assert [TYPES[matched.read(i).label] for i in range(len(matched))] == names
    assert [TYPES[label] for label in matched.labels()] == names
    subset = renamed(classified, tmp_path / "subset", {"bee": "bee", "dog": "dog"})
    capsys.readouterr()
    assert run(["eval", str(work_dir), f"data.root={subset}"]) == 0
    assert_says(capsys.readouterr().err, "2", "5", "bee", "dog")
    found, whole = last_of(work_dir).details["per_class"], own.details["per_class"]
    assert found["samples"] == [0, 4, 0, 4, 0]
    assert found["correct"][1] == whole["correct"][1]
    assert found["correct"][3] == whole["correct"][3]


class InOrder(Dataset):
    """The images of a folder, with classes in an order of their own."""

    def __init__(self, folder: Path, numbers: dict[str, int]) -> None:
        self._paths = sorted(folder.rglob("*.png"))
        self._numbers = numbers
        self.classes = tuple(sorted(numbers, key=numbers.__getitem__))

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> ImageRecord:
        path = self._paths[index]
        return ImageRecord(path.read_bytes(), self._numbers[path.parent.name], str(path))

    def name(self, index: int) -> str:
        return str(self._paths[index])

    def labels(self) -> npt.NDArray[np.int64]:
        return np.array([self._numbers[path.parent.name] for path in self._paths])


def test_a_run_does_not_go_on_with_renamed_classes(
    classified: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = Path(shutil.copytree(classified / "run", tmp_path / "run"))
    moved = {"ant": "zebra", **{name: name for name in TYPES[1:]}}
    root = renamed(classified, tmp_path / "images", moved)
    words = classifier(root, work_dir, RATE, "--resume")
    assert_command_refused(words, capsys, "ant", "zebra")


def test_a_checkpoint_is_evaluated_at_its_step(tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    words = tiny_run(work_dir, 4, *WORDS, "checkpoint.every_steps=2", "checkpoint.keep=9")
    assert run(words) == 0
    before = state_of(work_dir, None)
    older = work_dir / "checkpoints" / "step_00000002"
    assert run(["eval", str(older), "knn"]) == 0
    record = read_records(work_dir / "report")[-1]
    assert (record.step, record.kind, record.own) == (2, "knn", True)
    assert state_of(work_dir, None) == before
    knn = before.value
    # What a run that went back has left is of another history.
    assert run([*words, "--resume", str(older)]) == 0
    aside = work_dir / "checkpoints" / "superseded" / "step_00000004"
    assert run(["eval", str(aside), "knn"]) == 0
    record = read_records(work_dir / "report")[-1]
    assert (record.step, record.own) == (4, False)
    assert record.overrides == {"checkpoint": "checkpoints/superseded/step_00000004"}
    state = state_of(work_dir, None)
    assert (state.state, state.step, state.metric, state.value) == ("finished", 4, "knn.top1", knn)


def test_a_checkpoint_without_a_run_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone = shutil.copytree(trained / "checkpoints" / "step_00000002", tmp_path / "step_00000002")
    assert_command_refused(["eval", lone, "knn"], capsys, lone, "config.json", "export")


@pytest.mark.parametrize("layout", ["safetensors", "timm", "hf"])
def test_weights_are_evaluated_as_the_run_was(
    classified: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported, and read back with nothing but the file: the same answers, class by class."""
    monkeypatch.chdir(tmp_path)
    own = own_of(classified / "run")
    target = tmp_path / ("hf" if layout == "hf" else "model.safetensors")
    export = ["checkpoint", "export", str(classified / "run"), str(target), "--to", layout]
    assert run([*export, "--part", "all"]) == 0
    words = [f"data.root={classified / 'images'}", "evaluation.workers=0"]
    words.append(f"views.test_crop_fraction={crop_of(classified / 'run')}")
    assert run(["eval", str(target), *words]) == 0
    folder = tmp_path / "runs" / ("eval_hf" if layout == "hf" else "eval_model")
    record = last_of(folder)
    assert record.details["per_class"] == own.details["per_class"]
    assert record.metrics["accuracy"] == own.metrics["accuracy"]
    assert record.metrics["loss"] == pytest.approx(own.metrics["loss"], rel=1e-4)
    assert record.overrides["weights"] == str(
        target / "model.safetensors" if layout == "hf" else target
    )
    assert "Accuracy of each class" in page_of(folder)
    # Another protocol, and another file, stand beside it where --out says so.
    assert run(["eval", str(target), "knn", "knn.neighbours=3", *words, "--out", str(folder)]) == 0
    assert [r.kind for r in read_records(folder / "report")] == ["held_out", "knn"]


def crop_of(work_dir: Path) -> float:
    config = json.loads((work_dir / "config.json").read_text())["config"]
    return float(config["views"]["test_crop_fraction"])


def test_an_encoder_is_evaluated_alone(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of tensors under timm's names, with no word on its architecture beside it."""
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "encoder.safetensors"
    export = ["checkpoint", "export", str(trained), str(target), "--to", "timm"]
    assert run(export) == 0
    target.with_suffix(".json").unlink()
    write_classes(tmp_path / "images" / "train", TYPES, 3)
    write_classes(tmp_path / "images" / "val", TYPES, 2, seed=9)
    words = ["knn", "knn.neighbours=3", "data.root=images", "evaluation.workers=0"]
    assert run(["eval", str(target), *words]) == 0
    record = last_of(tmp_path / "runs" / "eval_encoder")
    assert record.details["width"] == 16
    assert sum(record.details["per_class"]["samples"]) == 10


def test_weights_that_are_of_no_image_encoder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.safetensors"
    write_tensors({"a.weight": torch.zeros(2, 2)}, path)
    assert_command_refused(["eval", path, "knn"], capsys, path, "a.weight")


def test_outputs_without_names_are_not_guessed(
    classified: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many classes are taken by number, with a warning; fewer cannot be told apart."""
    target = tmp_path / "model.safetensors"
    export = ["checkpoint", "export", str(classified / "run"), str(target), "--to", "timm"]
    assert run([*export, "--part", "all"]) == 0
    beside = target.with_suffix(".json")
    described = json.loads(beside.read_text())
    del described["quadriga"]["class_names"]
    beside.write_text(json.dumps(described))
    root = renamed(classified, tmp_path / "subset", {"bee": "bee", "dog": "dog"})
    words = ["evaluation.workers=0", "--out", str(tmp_path / "out")]
    refused = ["eval", target, f"data.root={root}", *words]
    assert_command_refused(refused, capsys, "5", "2", "names")
    assert run(["eval", str(target), "knn", "knn.neighbours=3", f"data.root={root}", *words]) == 0
    capsys.readouterr()
    assert run(["eval", str(target), f"data.root={classified / 'images'}", *words]) == 0
    assert_says(capsys.readouterr().err, "by number")
