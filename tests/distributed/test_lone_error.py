"""An error of one rank, while the other waits for it, ends the whole job and is told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tiny import tiny_run

TESTS = Path(__file__).resolve().parent.parent


def image_folder(root: Path) -> Path:
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
        for i in range(16):
            Image.new("RGB", (20, 20), (12 * i, 30, 200)).save(root / split / "a" / f"{i}.jpg")
    return root


@pytest.mark.parametrize("damage", [pytest.param("missing", marks=pytest.mark.long), "unreadable"])
def test_an_error_of_one_rank_ends_the_job(tmp_path: Path, damage: str) -> None:
    good, bad = image_folder(tmp_path / "good"), tmp_path / "bad"
    if damage == "unreadable":
        shutil.copytree(good, bad)
        for path in (bad / "train" / "a").glob("1*.jpg"):
            path.write_bytes(path.read_bytes()[:200])
    own = ["data.kind=image_folder", "loader.workers=0", "loader.max_unreadable_fraction=0"]
    words = [w for w in tiny_run(tmp_path / "run", 500, *own) if w != "data.image_px=16"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(Path(__file__).parent / "lone_error_worker.py")]
    began = time.monotonic()
    done = subprocess.run(
        [*command, str(good), str(bad), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    seconds = time.monotonic() - began
    assert done.returncode != 0
    # What the ranks can agree on before they start is told by rank 0, the rest by who has it.
    start, expected = {
        "missing": ("error: ", str(bad)),
        "unreadable": ("[rank 1] error: ", "max_unreadable_fraction"),
    }[damage]
    errors = [
        line for line in done.stderr.splitlines() if re.match(r"(\[rank \d\] )?error: ", line)
    ]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(start)
    assert expected in errors[0]
    # Not the half hour that a collective may take.
    assert seconds < 60
