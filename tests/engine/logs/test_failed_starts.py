"""What a start that fails leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import RECORDS


@pytest.mark.parametrize("result", [f"report/{RECORDS}", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["", "{}"])
def test_results_are_kept_and_nothing_else(tmp_path: Path, result: str, content: str) -> None:
    directory = RunDirectory(tmp_path / "runs" / "new")
    before = directory.existing()

    def start() -> None:
        with directory.undone_without_results(before):
            directory.create()
            (directory.path / result).write_text(content)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start()
    assert (directory.path / result).is_file() == bool(content)
    assert (tmp_path / "runs").exists() == bool(content)
