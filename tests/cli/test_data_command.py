"""``quadriga data``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from errors import assert_command_refused
from pictures import encoded, noise, write
from quadriga.cli.entry import run


def test_statistics_are_those_of_the_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [noise(9 + 4 * number, 12, seed=number) for number in range(5)]
    for number, picture in enumerate(pictures):
        write(tmp_path / "train" / "a" / f"{number}.png", encoded(picture, "PNG"))
        write(tmp_path / "test" / "a" / f"{number}.png", encoded(picture, "PNG"))
    write(tmp_path / "train" / "a" / "x.png", encoded(pictures[0], "PNG")[:60])
    words = ["data.kind=image_folder", f"data.root={tmp_path}"]
    assert run(["data", "statistics", "mae_vit_small", *words]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("5 of 6 training images, 1 more unreadable")
    values = dict(re.findall(r"views\.(mean|std)=(.*)", shown))
    # Each image counts the same, whatever its size.
    means, squares = (
        np.mean([((p / 255) ** power).mean((0, 1)) for p in pictures], 0) for power in (1, 2)
    )
    np.testing.assert_allclose(json.loads(values["mean"]), means, rtol=0, atol=6e-5)
    deviations = np.sqrt(squares - means**2)
    np.testing.assert_allclose(json.loads(values["std"]), deviations, rtol=0, atol=6e-5)


def test_texts_have_no_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "statistics", "bert_mini", "data.kind=pydoc_corpus"]
    assert_command_refused(words, capsys, "data.kind")
