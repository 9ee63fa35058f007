"""Whatever bytes lie in a file: one error that names it on one short line, or it is ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quadriga.cli.glue.source import _read_json
from quadriga.cli.resolve import read_values, resolve
from quadriga.engine.checkpoint.read import stored_tensors
from quadriga.engine.checkpoint.store import InvalidCheckpoint, read_manifest, verify
from quadriga.engine.faults.replay import read_replay
from quadriga.engine.initial_weights import _config_beside
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import read_records
from quadriga.engine.logs.times import read_times
from quadriga.engine.status import state_of
from quadriga.errors import UserError
from quadriga.export.safetensors import HEADER, rebuild
from quadriga.models.bert import BertConfig
from quadriga.pipeline.planner.profile import read_profile
from quadriga.pipeline.topology import read_conf
from quadriga.weights.files import read_weights
from quadriga.workflow.directory import WorkflowDirectory

CONTENTS = {
    "nothing": b"",
    "no text": bytes(range(256)) * 4,
    "brackets": b"[" * 100_000,
    "closed brackets": b"[" * 900 + b"]" * 900,
    "groups": b'{"config":' * 3_000,
    "digits": b"9" * 5_000,
    "digits inside": b'{"config": {"seed": ' + b"9" * 4_000 + b'}, "sources": {}}',
    "infinity": b'{"ranges": [[1e999, 1]], "tried": [1e999], "step": 1e999, "results": 1e999}',
    "null": b"null",
    "list": b"[]",
    "group": b"{}",
    "lists for groups": b'{"config": [], "sources": [], "nodes": [], "model": [], "bad": []}',
    "numbers for groups": b'{"config": 1, "sources": 2, "nodes": 3, "model": 4, "name": 5}',
    "keys": b'{"config": {"\\n\\u001b[31m' + b"k" * 9_000 + b'": 1}, "sources": {}}',
    "half a surrogate": b'{"config": {"name": "\\ud800"}, "sources": {}, "result": "\\ud800"}',
}


def workflow_of(path: Path) -> WorkflowDirectory:
    return WorkflowDirectory(path.parents[1])


Reader = Callable[[Path], Any]
READERS: dict[str, tuple[str, Reader]] = {
    "a run's config": ("config.json", lambda path: RunDirectory(path.parent).read_config()),
    "a config as a recipe": ("config.json", lambda path: resolve(str(path), None, [])),
    "values in JSON": ("values.json", lambda path: resolve("mae_digits", path, [])),
    "values in TOML": ("values.toml", lambda path: read_values(path)),
    "a graph": (
        "workflow/workflow.json",
        lambda path: workflow_of(path).read_graph(),
    ),
    "a node": ("workflow/a.json", lambda path: workflow_of(path).read_config("a")),
    "a conf": ("conf.json", read_conf),
    "a model's config": ("bert_config.json", BertConfig.from_bert_config),
    "a tokenizer's": ("tokenizer_config.json", _read_json),
    "a profile": ("profile.json", lambda path: read_profile(path, "x", "float32")),
    "weights": ("weights.safetensors", read_weights),
    "torch weights": ("weights.pth", read_weights),
    "a replay file": ("step.safetensors", read_replay),
    "an export": ("model.safetensors", rebuild),
    "a run beside": ("config.json", lambda path: _config_beside(path.parent / "checkpoints" / "x")),
}


def error_of(call: Callable[[], Any]) -> str | None:
    """Return the message of a user's error; None if there is none."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_one_error_with_the_file_s_name(reader: str, content: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CONTENTS[content])
    said = error_of(lambda: read(path))
    if said is not None:
        assert path.name in said
        assert len(said) < 4_000
        assert said.isprintable()


@pytest.mark.parametrize("content", CONTENTS)
def test_headers_of_exports_and_replay_files(content: str, tmp_path: Path) -> None:
    text = CONTENTS[content].decode("utf-8", "replace")
    header = {HEADER: text, "recorded": text, "config": text}
    save_file({"x": torch.ones(2)}, tmp_path / "w.safetensors", header)
    for read in (rebuild, read_replay):
        with pytest.raises(UserError) as caught:
            read(tmp_path / "w.safetensors")
        assert "w.safetensors" in str(caught.value)


@pytest.mark.parametrize("content", CONTENTS)
def test_checkpoints_and_logs(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step_00000004"
    folder.mkdir(parents=True)
    for name in ("manifest.json", "shard.safetensors"):
        (folder / name).write_bytes(CONTENTS[content])
    for read in (read_manifest, verify, stored_tensors):
        with pytest.raises(InvalidCheckpoint):
            read(folder)
    for name in ("metrics.jsonl", "times.jsonl", "config.json"):
        (tmp_path / name).write_bytes(CONTENTS[content])
    for name in ("report/evaluation.json", "report/evaluations.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CONTENTS[content])
    assert read_records(tmp_path / "report") == []
    read_times(tmp_path)
    assert "config.json" in (error_of(lambda: state_of(tmp_path, None)) or "config.json")
