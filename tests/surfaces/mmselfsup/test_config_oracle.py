"""Our reader of configs and the reference's own agree: on its files, and on ours that are small."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mmselfsup_configs import CASES, ENVIRONMENT, IMPORTS

from errors import assert_says
from oracles import read_configs
from oracles.read_configs import encode
from quadriga.errors import UserError
from quadriga.surfaces.mmselfsup.config import dump_config, read_config

ORACLE = Path(__file__).parents[3] / ".oracle" / "mmselfsup"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (ORACLE / ".installed").is_file(), reason="the reference is not here: make oracle"
    ),
]


def ask(asked: Sequence[tuple[Path, Sequence[str]]]) -> list[dict[str, Any]]:
    """Return what the reference makes of files with options."""
    run = subprocess.run(
        [ORACLE / "bin" / "python", "-W", "ignore", read_configs.__file__],
        input=json.dumps([(str(path), options) for path, options in asked]),
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    answers: list[dict[str, Any]] = json.loads(run.stdout.splitlines()[-1])
    return answers


def installed(package: str) -> Path:
    """Return the folder of a package's configs in the oracle's environment."""
    (found,) = ORACLE.glob(f"lib/python3*/site-packages/{package}/.mim/configs")
    return found


def test_the_original_files_are_read_as_the_reference_reads_them(tmp_path: Path) -> None:
    files = sorted(installed("mmselfsup").rglob("*.py"))
    named = [path for path in files if "_base_" not in path.parts]
    assert len(named) == 131
    packages = {"mmcls": installed("mmcls")}
    refused = []
    for path, answer in zip(files, ask([(path, ()) for path in files]), strict=True):
        try:
            config = read_config(path, packages=packages)
        except UserError as error:
            refused.append((path, str(error), answer))
            continue
        assert answer.get("value") == encode(config), path
        written = tmp_path / path.name
        written.write_text(dump_config(config), encoding="utf-8")
        assert read_config(written) == config, path
    assert len(refused) == 7
    for path, said, answer in refused:
        assert "is not installed" in answer["error"], path
        assert_says(said, path.name, "mmseg" if "mmsegmentation" in path.parts else "mmdet")


def short_types(value: Any, key: Any = None) -> Any:
    """Return an encoded value with the last words of its types, as we name imported classes."""
    if isinstance(value, list):
        return [short_types(item, key) for item in value]
    if "dict" in value:
        return {"dict": [[k, short_types(v, k.get("str"))] for k, v in value["dict"]]}
    if key == "'type'" and "str" in value:
        return {"str": repr(value["str"].strip("'").rpartition(".")[2])}
    return {kind: short_types(v) if isinstance(v, list) else v for kind, v in value.items()}


def test_what_our_small_configs_mean_is_what_they_mean_to_the_reference(tmp_path: Path) -> None:
    asked = [(case.write(tmp_path / str(index)), case.options) for index, case in enumerate(CASES)]
    for case, answer in zip(CASES, ask(asked), strict=True):
        value = answer.get("value")
        if case in IMPORTS:
            value = short_types(value)
        assert value == encode(case.values), (case.name, answer.get("error"))
