"""Every user error is one line that names the remedy, exit code 2, and nothing is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from quadriga.cli.entry import run
from quadriga.engine.checkpoint import list_checkpoints
from tiny import read_checkpoint, tiny_run


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; return its one line."""
    assert run(words) == 2
    lines = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")
    ]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["optim.learning_rate=1"],
            "unknown key optim.learning_rate (set on the command line); did",
        ),
        (["optim.lr=fast"], "optim.lr must be a number, but is 'fast' (set on the command line)"),
        (
            ["objective.mask_ratio=7.5"],
            "objective.mask_ratio must be above 0 and below 1, but is 7.5",
        ),
        (["objective.mask_ratio=0.99"], "objective.mask_ratio must leave at least one patch"),
        (["model.heads=5"], "model.heads must divide width"),
        (["model.patch_px=5"], "model.image_px must be a multiple of patch_px"),
        (["views.image_px=24"], "set model.image_px to the size of the views"),
        (["optim.lr"], "an override must look like optim.lr=3e-4, but is 'optim.lr'"),
        (["optim.lr=1", "optim.lr=2"], "optim.lr is set twice"),
        (["data.kind=image_foldr"], "did you mean image_folder?"),
        (["data.kind=image_folder", "data.root=/does/not/exist"], "/does/not/exist"),
        (["train.steps=5", "train.epochs=3"], "train.epochs or steps must be set"),
        (["train.batch_size=1", "train.accumulate=2"], "train.batch_size must be at least"),
        (["--device", "tpu"], "train.device"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--config", "/no/such/file.json"], "/no/such/file.json cannot be read"),
        (["epochs=many"], "epochs must be a number, but is 'many'"),
        (
            ["--amp", "train.precision=float16"],
            "train.precision is set twice: float16 and bfloat16",
        ),
        (["--ranks", "2", "train.ranks=1"], "train.ranks is set twice: 1 and 2"),
        (["checkpoint.keep_best=lineer.top1"], "lineer is not among evaluation.protocols (knn, "),
        (["checkpoint.keep_best=knn"], "must name a number of knn, such as knn.top1"),
        (
            ["train.ranks=1", "train.parallel=hsdp", "train.shard_ranks=2"],
            "train.shard_ranks must divide the number of ranks (1), but is 2",
        ),
        (
            ['log.loggers=[{"kind":"csv"},{"kind":"csv"}]'],
            "log.loggers.1: csv is listed twice",
        ),
    ],
)
def test_a_bad_value_is_refused_before_anything_starts(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "run"
    line = error_of(["train", "mae_digits", *words, "--work-dir", str(work_dir)], capsys)
    assert message in line
    assert not work_dir.exists()


def test_unknown_names_get_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean mae_digits?" in error_of(["train", "mae_digit"], capsys)
    assert "train" in error_of(["tran"], capsys)


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    words = ["train", "mae_cifar10", f"data.root={tmp_path / 'images'}"]
    assert str(tmp_path / "images") in error_of([*words, "--work-dir", str(tmp_path / "r")], capsys)


def image_folder(root: Path, count: int) -> Path:
    for split in ("train", "val"):
        for i in range(count):
            folder = root / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (12 * i, 30, 200)).save(folder / f"{i}.jpg")
    return root


def folder_run(tmp_path: Path, root: Path, *words: str) -> list[str]:
    own = ["data.kind=image_folder", f"data.root={root}", "loader.workers=0"]
    return [w for w in tiny_run(tmp_path / "run", 4, *own, *words) if w != "data.image_px=16"]


def test_a_truncated_jpeg_is_replaced_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder(tmp_path / "images", 20)
    broken = root / "train" / "a" / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    assert run(folder_run(tmp_path, root, "loader.max_unreadable_fraction=0.2")) == 0
    warnings = [w for w in capsys.readouterr().err.splitlines() if w.startswith("warning:")]
    assert len([line for line in warnings if "4.jpg" in line]) == 1
    assert "1 of the samples could not be read and were replaced" in warnings[-1]


def test_too_many_broken_images_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder(tmp_path / "images", 20)
    for path in (root / "train" / "a").glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    line = error_of(folder_run(tmp_path, root, "loader.max_unreadable_fraction=0.1"), capsys)
    assert "max_unreadable_fraction is 0.1" in line


def test_a_work_dir_of_another_run_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 2)) == 0
    before = read_checkpoint(work_dir, 2)
    line = error_of(tiny_run(work_dir, 2, "objective.mask_ratio=0.5", "--resume"), capsys)
    assert "belongs to another run: objective.mask_ratio is 0.75 there and 0.5 here" in line
    assert read_checkpoint(work_dir, 2).keys() == before.keys()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    line = error_of(tiny_run(tmp_path / "mine", 2), capsys)
    assert "is not empty and holds no run" in line
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


def test_an_unwritable_work_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    line = error_of(tiny_run(tmp_path / "file" / "run", 2), capsys)
    assert "cannot be written" in line
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 4, "checkpoint.every_steps=2")) == 0
    expected = read_checkpoint(work_dir, 4)
    shard = next((work_dir / "checkpoints" / "step_00000004").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    capsys.readouterr()
    assert run(tiny_run(work_dir, 4, "checkpoint.every_steps=2", "--resume")) == 0
    said = capsys.readouterr()
    assert "step_00000004 is passed over" in said.err
    assert "resumed after step 2 of 4" in said.out
    again = read_checkpoint(work_dir, 4)
    assert all((again[name] == tensor).all() for name, tensor in expected.items())


def test_no_whole_checkpoint_left_is_an_error_not_a_silent_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 2)) == 0
    for path in list_checkpoints(work_dir / "checkpoints"):
        (path / "manifest.json").unlink()
    capsys.readouterr()
    line = error_of(tiny_run(work_dir, 2, "--resume"), capsys)
    assert "no checkpoint in" in line
    assert list_checkpoints(work_dir / "checkpoints")


def test_resume_from_a_path_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(tiny_run(tmp_path / "run", 2, "--resume", str(tmp_path)), capsys)
    assert "cannot be resumed: it has no manifest.json" in line


def test_eval_of_a_moving_average_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_run(tmp_path / "run", 1)) == 0
    words = ["eval", str(tmp_path / "run"), "knn", "weights=ema"]
    assert "but ema.decay is none" in error_of(words, capsys)


def test_eval_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run" in error_of(["eval", str(tmp_path)], capsys)
    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 1)) == 0
    capsys.readouterr()
    assert "did you mean knn?" in error_of(["eval", str(work_dir), "kn"], capsys)
    shutil.rmtree(work_dir / "checkpoints")
    assert "no whole checkpoint" in error_of(["eval", str(work_dir), "knn"], capsys)


def test_a_rank_whose_neighbour_is_gone_says_so_in_one_line(monkeypatch, capsys):
    def lose(*arguments, **options):
        raise RuntimeError("[gloo/pair.cc:553] Connection closed by peer [1.2.3.4]:5. This is typ")

    monkeypatch.setattr("quadriga.cli.training.train", lose)
    with pytest.raises(RuntimeError):  # one process has no neighbour: a bug of ours
        run(["train", "mae_digits"])
    monkeypatch.setenv("RANK", "3")
    assert run(["train", "mae_digits"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("[rank 3] stopped: another rank has ended")
    assert told.count("\n") == 1
