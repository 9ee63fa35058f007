"""Folders of pictures as people have them, through ``quadriga train``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from errors import assert_command_refused, assert_says
from pictures import encoded, noise, write, write_classes, write_tar
from quadriga.cli.entry import run
from quadriga.data.images.decode import readable_formats, readable_suffixes
from tiny import read_metrics

TINY = [
    *("model.width=16", "model.depth=1", "model.heads=2", "model.image_px=8", "views.image_px=8"),
    *("objective.decoder_width=16", "objective.decoder_depth=1", "objective.decoder_heads=2"),
    *("train.batch_size=4", "train.steps=1", "train.ranks=1", "train.device=cpu"),
    *("schedule.warmup_epochs=0", "evaluation.workers=0"),
]
RECONSTRUCTION = 'evaluation.protocols=[{"kind":"reconstruction"}]'
KNN = 'evaluation.protocols=[{"kind":"knn","neighbours":1}]'


def train(*words: str, kind: str = "image_folder") -> list[str]:
    return ["train", "mae_digits", f"data.kind={kind}", *TINY, *words]


def files(values: np.ndarray[Any, Any], form: str) -> bytes:
    return encoded(Image.fromarray(values), form)


GREY = np.asarray(Image.fromarray(noise(16, 16)).convert("L"))


@pytest.mark.parametrize(
    ("name", "data", "proposed"),
    [
        ("x.tif", files(GREY.astype(np.float32) / 255, "TIFF"), "[0,1]"),
        ("x.tiff", files(GREY.astype(np.int32), "TIFF"), "[0,255]"),
        ("x.png", files(GREY.astype(np.uint16) * 16, "PNG"), "[0,4095]"),
    ],
)
@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_black_pictures_are_refused_by_name(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    data: bytes,
    proposed: str,
    words: list[str],
) -> None:
    for i in range(24):
        write(tmp_path / "photos" / "ab"[i % 2] / f"{i}" / name, data)
    words = [*words, "--work-dir", str(tmp_path / "run")]
    command = train(f"data.root={tmp_path / 'photos'}", RECONSTRUCTION, *words)
    assert_command_refused(
        command, capsys, f"data.value_range={proposed}", "data.value_range", name
    )


def test_scaled_pictures_train_as_their_8_bit_images_do(tmp_path: Path) -> None:
    losses = []
    for name, value_range in (("8", "none"), ("float", "[0,1]")):
        for i in range(8):
            grey = np.asarray(Image.fromarray(noise(16, 16, seed=i)).convert("L"))
            values = grey.astype(np.float32) / 255 if name == "float" else grey
            write(tmp_path / name / "ab"[i % 2] / f"{i}.tif", files(values, "TIFF"))
        words = [f"data.root={tmp_path / name}", f"data.value_range={value_range}", RECONSTRUCTION]
        assert run([*train(*words), "--work-dir", str(tmp_path / f"run {name}")]) == 0
        losses.append([row["loss"] for row in read_metrics(tmp_path / f"run {name}")])
    assert losses[0] == losses[1]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder as a camera and an archive leave it."""
    root = tmp_path / "photos"
    write_classes(root, ["cat", "dog"], 24)
    write(root / "stray.jpg", encoded(noise(8, 8)))
    for name in ("cat/1.heic", "cat/2.heic", ".DS_Store", "__MACOSX/cat/._000.jpg"):
        write(root / name, b"no image")
    write(root / "__MACOSX" / "cat" / "plain.jpg", encoded(noise(8, 8)))
    (root / "empty").mkdir()
    for name, form in (("a.jp2", "JPEG2000"), ("a.avif", "AVIF"), ("a.jfif", "JPEG")):
        write(root / "dog" / name, encoded(noise(8, 8), form))
    return root


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the extra's package, as well as what its plug-in left in Pillow."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    caches = readable_formats, readable_suffixes
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("without_heif")
@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_one_line_says_what_was_found_and_skipped(
    photos: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    words = [*words, "--work-dir", str(photos.parent / "run")]
    assert run([*train(f"data.root={photos}", KNN, *words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if "skipped" in line)
    assert_says(line, "51 images", "2 classes", "stray.jpg", "2 with suffix .heic", "cat/1.heic")
    assert_says(line, ".DS_Store", "__MACOSX/", "empty/")
    assert_says(line, "2 with suffix .heic, which needs pip install 'quadriga[heic]', (cat/1.heic")


def test_heic_is_read_with_its_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heif = pytest.importorskip("pillow_heif")
    write_classes(tmp_path / "photos", ["cat", "dog"], 2)
    heif.from_pillow(Image.fromarray(noise(16, 16))).save(tmp_path / "photos" / "cat" / "x.HEIC")
    command = train(f"data.root={tmp_path / 'photos'}", RECONSTRUCTION, "--dry-run")
    assert run(command) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "classes in" in x)
    assert_says(line, "5 images")
    assert "skipped" not in line


def test_the_held_out_pictures_are_shared_out_by_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hash of the names alone held out four cats and no dog of these."""
    write_classes(tmp_path / "photos", ["cat", "dog"], 5)
    command = train(f"data.root={tmp_path / 'photos'}", KNN, "data.holdout=0.2")
    assert run([*command, "--work-dir", str(tmp_path / "run")]) == 0
    assert "without a test image" not in capsys.readouterr().err
    report = (tmp_path / "run" / "report" / "evaluations.jsonl").read_text()
    assert re.search(r'"test_samples": 2\b', report)


@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_one_class_has_no_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    write_classes(tmp_path / "photos", ["all"], 24)
    words = [*words, "--work-dir", str(tmp_path / "run")]
    command = train(f"data.root={tmp_path / 'photos'}", KNN, *words)
    assert_command_refused(command, capsys, "knn", "one class", "all", "evaluation.protocols")
    assert run(train(f"data.root={tmp_path / 'photos'}", RECONSTRUCTION, *words)) == 0


def test_too_few_pictures_of_a_class_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "photos" / "train", ["cat", "dog", "owl", "rat"], 8)
    write_classes(tmp_path / "photos" / "train", ["emu"], 2)
    write_classes(tmp_path / "photos" / "val", ["cat", "dog", "emu"], 2)
    knn = 'evaluation.protocols=[{"kind":"knn","neighbours":5}]'
    assert run(train(f"data.root={tmp_path / 'photos'}", knn, "--dry-run")) == 0
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: knn")]
    assert len(lines) == 2
    assert_says(lines[0], "2 of 5", "owl, rat")
    assert_says(lines[1], "1 of 5", "emu", "5")


def test_test_shards_are_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def members(count: int, first: int) -> list[tuple[str, bytes]]:
        names = range(first, first + count)
        images = [(f"{i}.jpg", encoded(noise(8, 8, seed=i))) for i in names]
        return [*images, *((f"{i}.cls", b"%d" % (i % 2)) for i in names)]

    root = tmp_path / "shards"
    write_tar(root / "train-000.tar", members(20, 0))
    write_tar(root / "train-001.tar", [*members(10, 20), ("x.psd", b"no image")])
    write_tar(root / "val-000.tar", members(7, 30))
    write_tar(root / "test-000.tar", members(5, 40))
    command = train(f"data.root={root}", KNN, "--dry-run", kind="tar_shards")
    assert run(command) == 0
    out = capsys.readouterr().out
    assert_says(out, "30 samples per epoch", "30 images in 2 shards", "7 images in 1 shards")
    assert_says(out, "test-000.tar", "1 samples without an image", "x.psd")
    assert run([*command, "data.shards=*.tar", "data.test_shards=val-*.tar"]) == 0
    assert_says(capsys.readouterr().out, "42 samples per epoch")
    for name in ("train-000.tar", "train-001.tar"):
        (root / name).unlink()
    assert_command_refused(command, capsys, "data.shards", root)


def test_a_list_with_a_byte_order_mark_is_looked_for_in_the_root_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, here = tmp_path / "photos", tmp_path / "here"
    write_classes(root, ["a", "b"], 4)
    here.mkdir()
    monkeypatch.chdir(here)
    names = [f"{c}/{i:03d}.jpg\t{c}" for c in "ab" for i in range(4)]
    write(root / "train.txt", "\n".join(names).encode("utf-8-sig"))
    write(root / "val.txt", names[0].encode("utf-8-sig"))
    words = [f"data.root={root}", "data.files=train.txt", "data.test_files=val.txt"]
    command = train(*words, RECONSTRUCTION, "--work-dir", str(tmp_path / "run"), kind="image_list")
    assert run([*command, "loader.max_unreadable_fraction=0"]) == 0
    (root / "train.txt").unlink()
    assert_command_refused(command, capsys, "data.files", "train.txt", here, root)


def flat(root: Path) -> tuple[list[str], tuple[object, ...]]:
    write_classes(root, ["."], 8)
    return [RECONSTRUCTION], ("data.kind=image_list", root)


def no_images(root: Path) -> tuple[list[str], tuple[object, ...]]:
    write(root / "a" / "notes.txt", b"none")
    return [RECONSTRUCTION], ("data.root", root)


def no_labels(root: Path) -> tuple[list[str], tuple[object, ...]]:
    write_classes(root, ["."], 8)
    return [KNN, "data.labelled=false"], ("knn", "labelled")


def damaged(root: Path) -> tuple[list[str], tuple[object, ...]]:
    for name in "abcd":
        write(root / name / "1.jpg", b"none")
        write(root / name / "2.jpg", b"none")
    return [RECONSTRUCTION], ("data.root", "4")


def no_test_split(root: Path) -> tuple[list[str], tuple[object, ...]]:
    write_classes(root / "train", ["a", "b"], 8)
    return [KNN], ("data.test_split=NAME", root)


@pytest.mark.parametrize("case", [flat, no_images, no_labels, damaged, no_test_split])
def test_a_rehearsal_refuses_what_training_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Any
) -> None:
    words, fragments = case(tmp_path / "photos")
    # The number of samples that a recipe was written for does not stand in for bad data.
    words = [f"data.root={tmp_path / 'photos'}", "train.dataset_size=1000", *words]
    for more in (["--dry-run"], ["--work-dir", str(tmp_path / "run")]):
        assert_command_refused([*train(*words), *more], capsys, *fragments)


def test_data_that_is_not_there_yet_can_be_rehearsed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = train(f"data.root={tmp_path / 'photos'}", KNN, "--dry-run")
    assert_command_refused(command, capsys, "data.root", tmp_path / "photos")
    assert run([*command, "train.dataset_size=1000"]) == 0
    assert_says(capsys.readouterr().out, "1000 samples per epoch")
