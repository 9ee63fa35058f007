"""Every user error is one line that names the remedy, exit code 2, and nothing is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from errors import assert_command_refused, assert_says, refuses
from quadriga.cli.entry import run
from quadriga.cli.resolve import resolve
from quadriga.engine.checkpoint.store import list_checkpoints
from tiny import read_checkpoint, tiny_run


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["optim.learning_rate=1"], ("optim.learning_rate", "command line", "optim.lr")),
        (["optim.lr=fast"], ("optim.lr", "number", "'fast'", "command line")),
        (["objective.mask_ratio=7.5"], ("objective.mask_ratio", "above 0", "below 1", "7.5")),
        (["model.heads=5"], ("model.heads", "width", "96", "5")),
        (["model.patch_px=5"], ("model.image_px", "patch_px", "5", "32")),
        (["optim.lr"], ("optim.lr=3e-4", "'optim.lr'")),
        (["optim.lr=1", "optim.lr=2"], ("optim.lr", "twice")),
        (["data.kind=image_foldr"], ("data.kind", "'image_foldr'", "image_folder")),
        (["train.steps=5", "train.epochs=3"], ("train.epochs", "steps", "3.0", "5", "none")),
        (["epochs=many"], ("epochs", "number", "'many'")),
        (["epochs=-1"], ("epochs", "above 0.0", "-1.0")),
        (["epochs=nan"], ("epochs", "finite", "nan")),
        (["epochs=1e400"], ("epochs", "finite", "inf")),
        ([".lr=3"], ("optim.lr", "'.lr'")),
        (["evaluation.protocols.².k=1"], ("evaluation.protocols.²", "0 to 2")),
    ],
)
def test_a_bad_value_is_refused_when_the_config_is_resolved(
    words: list[str], fragments: tuple[str, ...]
) -> None:
    with refuses(*fragments):
        resolve("mae_digits", None, words)


def test_options_and_overrides_may_not_contradict_each_other() -> None:
    with refuses("train.precision", "twice", "float16", "bfloat16"):
        resolve("mae_digits", None, ["train.precision=float16"], {"train.precision": "bfloat16"})
    with refuses("train.ranks", "twice", "1", "2"):
        resolve("mae_digits", None, ["train.ranks=1"], {"train.ranks": 2})


def test_unknown_recipes_and_missing_files() -> None:
    with refuses("mae_digit", "mae_digits"):
        resolve("mae_digit", None, [])
    with refuses("/no/such/file.json"):
        resolve("mae_digits", Path("/no/such/file.json"), [])


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["optim.learning_rate=1"], ("optim.learning_rate", "optim.lr")),
        (["objective.mask_ratio=0.99"], ("objective.mask_ratio", "0.99")),
        (["views.image_px=24", "model.image_px=32"], ("model.image_px", "24")),
        (["data.kind=image_folder", "data.root=/does/not/exist"], ("data.root", "/does/not/exist")),
        (["train.batch_size=1", "train.accumulate=2"], ("train.batch_size", "train.accumulate")),
        (["--device", "tpu"], ("train.device", "'tpu'")),
        (["--device", "cuda:99"], ("cuda:99",)),
        (["--amp", "train.precision=float16"], ("train.precision", "float16", "bfloat16")),
        (["checkpoint.keep_best=lineer.top1"], ("checkpoint.keep_best", "lineer", "knn")),
        (["checkpoint.keep_best=knn"], ("checkpoint.keep_best", "knn", "knn.top1")),
        (
            ["train.ranks=1", "train.parallel=hsdp", "train.shard_ranks=2"],
            ("train.shard_ranks", "1", "2"),
        ),
        (['log.loggers=[{"kind":"csv"},{"kind":"csv"}]'], ("log.loggers.1", "csv")),
    ],
)
def test_a_bad_value_is_refused_before_anything_starts(
    words: list[str],
    fragments: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work_dir = tmp_path / "run"
    command = ["train", "mae_digits", *words, "--work-dir", work_dir]
    assert_command_refused(command, capsys, *fragments)
    assert not work_dir.exists()


def test_an_unknown_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert_command_refused(["tran"], capsys, "tran", "train")


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    words = ["train", "mae_cifar10", f"data.root={tmp_path / 'images'}"]
    words += ["--work-dir", str(tmp_path / "r")]
    assert_command_refused(words, capsys, "data.root", tmp_path / "images")


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
    assert_says(warnings[-1], "1 of the samples")


def test_too_many_broken_images_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder(tmp_path / "images", 20)
    for path in (root / "train" / "a").glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    words = folder_run(tmp_path, root, "loader.max_unreadable_fraction=0.1")
    assert_command_refused(words, capsys, "loader.max_unreadable_fraction", "0.1")


def test_a_work_dir_of_another_run_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 2)) == 0
    before = read_checkpoint(work_dir, 2)
    words = tiny_run(work_dir, 2, "objective.mask_ratio=0.5", "--resume")
    assert_command_refused(words, capsys, work_dir, "objective.mask_ratio", "0.75", "0.5")
    assert read_checkpoint(work_dir, 2).keys() == before.keys()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    words = tiny_run(tmp_path / "mine", 2)
    assert_command_refused(words, capsys, tmp_path / "mine", "empty", "--work-dir")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


def test_an_unwritable_work_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_command_refused(tiny_run(tmp_path / "file" / "run", 2), capsys, tmp_path / "file")
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
    assert_says(said.err, "step_00000004")
    assert_says(said.out, "step 2 of 4")
    again = read_checkpoint(work_dir, 4)
    assert all((again[name] == tensor).all() for name, tensor in expected.items())


def test_no_whole_checkpoint_left_is_an_error_not_a_silent_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 2)) == 0
    for path in list_checkpoints(work_dir / "checkpoints"):
        (path / "manifest.json").unlink()
    words = tiny_run(work_dir, 2, "--resume")
    assert_command_refused(words, capsys, "no checkpoint", work_dir / "checkpoints")
    assert list_checkpoints(work_dir / "checkpoints")


def test_resume_from_a_path_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny_run(tmp_path / "run", 2, "--resume", str(tmp_path))
    assert_command_refused(words, capsys, tmp_path, "manifest.json")


def test_resume_of_another_run_names_the_difference_and_one_of_weights_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    assert run(tiny_run(there, 2)) == 0
    words = tiny_run(tmp_path / "here", 2, "objective.mask_ratio=0.5")
    for path in (there, there / "checkpoints" / "step_00000002"):
        named = ("objective.mask_ratio", "0.75", "0.5")
        assert_command_refused([*words, "--resume", str(path)], capsys, "step_00000002", *named)
    weights = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(2)}, weights)
    for path in (weights, tmp_path):
        remedy = f"warm_start.path={path}"
        assert_command_refused([*words, "--resume", str(path)], capsys, "weights only", remedy)


def test_eval_of_a_moving_average_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_run(tmp_path / "run", 1)) == 0
    words = ["eval", str(tmp_path / "run"), "knn", "weights=ema"]
    assert_command_refused(words, capsys, "evaluation.weights=ema", "ema.decay", "none")


def test_eval_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_command_refused(["eval", tmp_path], capsys, tmp_path, "config.json")
    work_dir = tmp_path / "run"
    assert run(tiny_run(work_dir, 1)) == 0
    assert_command_refused(["eval", work_dir, "kn"], capsys, "kn", "knn")
    shutil.rmtree(work_dir / "checkpoints")
    assert_command_refused(["eval", work_dir, "knn"], capsys, work_dir, "checkpoint", "train")


def test_a_rank_whose_neighbour_is_gone_says_so_in_one_line(monkeypatch, capsys):
    def lose(*arguments, **options):
        raise RuntimeError("[gloo/pair.cc:553] Connection closed by peer [1.2.3.4]:5. This is typ")

    monkeypatch.setattr("quadriga.cli.train.train", lose)
    with pytest.raises(RuntimeError):  # one process has no neighbour: a bug of ours
        run(["train", "mae_digits"])
    monkeypatch.setenv("RANK", "3")
    assert run(["train", "mae_digits"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("[rank 3] ")
    assert_says(told, "another rank", "--resume")
    assert told.count("\n") == 1
