"""A run lists the files of its data once, however often it is evaluated."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from parallel_worker import tiny_config
from quadriga.config.provenance import Resolved
from quadriga.distributed.environment import SINGLE
from quadriga.engine.logs.console import Console
from quadriga.engine.resume import Request
from quadriga.engine.session import run

CLASSES, BATCH = 50, 8
STEPS = 6
WORDS = [
    f"train.steps={STEPS}",
    f"train.batch_size={BATCH}",
    "loader.workers=0",
    'evaluation.protocols=[{"kind":"knn","neighbours":3},{"kind":"held_out"}]',
    "evaluation.train_samples=40",
    "evaluation.test_samples=40",
    "evaluation.workers=0",
]


@pytest.fixture(params=[10_000, pytest.param(100_000, marks=pytest.mark.long)])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Class folders of many links to one small picture each."""
    root = tmp_path / "images"
    for split, count in (("train", request.param // CLASSES), ("val", 4)):
        for label in range(CLASSES):
            of_class = root / split / f"{label:02}"
            of_class.mkdir(parents=True)
            pixels = np.full((16, 16, 3), 5 * label, np.uint8)
            Image.fromarray(pixels).save(of_class / "0.png")
            for number in range(1, count):
                os.link(of_class / "0.png", of_class / f"{number}.png")
    yield root
    shutil.rmtree(root)  # pytest would keep them for three sessions


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each folder was listed."""
    counts: Counter[str] = Counter()
    scandir, listdir = os.scandir, os.listdir

    def counting(function: Any) -> Any:
        def counted(path: Any = ".") -> Any:
            if not isinstance(path, int):
                counts[os.fspath(path)] += 1
            return function(path)

        return counted

    monkeypatch.setattr(os, "scandir", counting(scandir))
    monkeypatch.setattr(os, "listdir", counting(listdir))
    return counts


def test_evaluations_list_no_folder_again(
    tmp_path: Path, folder: Path, listed: Counter[str]
) -> None:
    files = CLASSES * len(list((folder / "train" / "00").iterdir()))
    found = {}
    for every in (2, STEPS):
        listed.clear()
        data = {"kind": "image_folder", "root": str(folder)}
        epochs = every * BATCH / files
        changes = {"data": data, "evaluation.every_epochs": epochs}
        config = tiny_config(WORDS).override(changes)
        with Console() as console:
            run(Resolved.of(config, "test"), Request(tmp_path / f"run{every}"), SINGLE, console)
        found[every] = {
            path: count for path, count in listed.items() if path.startswith(str(folder))
        }
        log = (tmp_path / f"run{every}" / "log.txt").read_text()
        assert log.count("evaluation  knn") == STEPS // every
    # Of the training classes, once more: the test split's classes are those that hold an image.
    often = {"train": 2, "val": 1}
    classes = {f"{folder}/{s}/{n:02}": often[s] for s in often for n in range(CLASSES)}
    assert {path: found[2].pop(path) for path in classes} == classes
    assert {path: found[STEPS].pop(path) for path in classes} == classes
    assert found[2] == found[STEPS], "what else is listed does not follow the evaluations"
