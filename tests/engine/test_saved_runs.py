"""Runs that revision 7f9c01b has written are read, evaluated, exported and gone on with.

`fixtures/runs_7f9c01b.tar.xz` holds an MAE of the digits and a BERT that two ranks trained under
2bw, both after step 2 of 4, with the metrics and the evaluations of all four steps.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from quadriga.cli.entry import run
from quadriga.engine.checkpoint.store import read_manifest
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import read_records
from quadriga.engine.run_config import RunConfig, config_hash
from quadriga.pipeline.config import PipelineConfig
from tiny import assert_bit_equal, read_metrics

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "runs_7f9c01b.tar.xz"
MOVED = {"mae": [], "bert": ["data.root=text"]}
"""Where the data lies: beside the runs."""
CLOSE: dict[str, Any] = {"rel": 2e-4}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        # The argument of this name is younger than 3.11.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUADRIGA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def config_of(folder: Path) -> RunConfig:
    return RunDirectory(folder).read_config().config


def history(folder: Path) -> dict[int, dict[str, float]]:
    """Return what was found of the trained weights, by step; random ones are drawn otherwise."""
    found: dict[int, dict[str, float]] = {}
    for record in read_records(folder / "report"):
        metrics = {k: v for k, v in record.named_metrics.items() if not k.endswith("_random")}
        found.setdefault(record.step, {}).update(metrics)
    return found


def test_the_config_is_translated(runs: Path) -> None:
    assert config_of(runs / "mae").executor.kind() == "data_parallel"
    resolved = RunDirectory(runs / "bert").read_config()
    assert resolved.config.executor == PipelineConfig(schedule="2bw", stages=2)
    assert resolved.sources["executor.kind"] == "command line"
    assert resolved.sources["executor.stages"] == "command line"
    assert resolved.sources["executor.depths"] == "recipe bert_mini"
    assert not [path for path in resolved.sources if path.startswith("pipeline")]


@pytest.mark.parametrize("name", ["mae", "bert"])
def test_it_is_the_same_run(runs: Path, name: str) -> None:
    config = config_of(runs / name)
    dataset = config.data.build("train")
    manifest = read_manifest(runs / name / "checkpoints" / "step_00000002")
    assert config_hash(config, len(dataset), dataset.identity) == manifest.config_hash


@pytest.mark.parametrize(
    ("name", "words"),
    [("mae", []), ("bert", ["--ranks", "1", "executor.stages=1"])],
)
def test_it_goes_on(runs: Path, name: str, words: list[str]) -> None:
    before, found = read_metrics(runs / name), history(runs / name)
    assert sorted(found) == [2, 4]
    old = (runs / name / "report" / "evaluation.json").read_bytes()
    command = ["train", f"{name}/config.json", *MOVED[name], *words, "--resume"]
    assert run([*command, "--work-dir", name]) == 0
    after = read_metrics(runs / name)
    assert [row["step"] for row in after] == [1, 2, 3, 4]
    for key in ("loss", "lr", "grad_norm"):
        assert [row[key] for row in after] == pytest.approx([row[key] for row in before], **CLOSE)
    again = history(runs / name)
    for step in (2, 4):
        assert again[step] == pytest.approx(found[step], **CLOSE)
    # Step 4 was made and evaluated anew; what the older revision wrote is left as it was.
    (record,) = [r for r in read_records(runs / name / "report") if r.step == 4]
    assert record.time is not None
    assert (runs / name / "report" / "evaluation.json").read_bytes() == old
    saved = json.loads((runs / name / "config.json").read_text())["config"]
    assert "pipeline" not in saved
    assert saved["executor"]["kind"] == config_of(runs / name).executor.kind()


@pytest.mark.parametrize("name", ["mae", "bert"])
def test_it_is_evaluated_and_reported(runs: Path, name: str) -> None:
    expected = history(runs / name)[2]
    assert run(["eval", name, *MOVED[name], "--again"]) == 0
    record = read_records(runs / name / "report")[-1]
    assert (record.step, record.own) == (2, True)
    metrics = record.named_metrics
    assert {k: metrics[k] for k in expected} == pytest.approx(expected, **CLOSE)
    assert run(["report", name]) == 0
    page = (runs / name / "report" / "index.html").read_text()
    assert "pipeline" in page if name == "bert" else page


@pytest.mark.parametrize("name", ["mae", "bert"])
def test_it_is_exported(runs: Path, name: str) -> None:
    output = runs / "weights.safetensors"
    words = ["checkpoint", "export", name, str(output), "--to", "safetensors", "--part", "all"]
    assert run(words) == 0
    tensors = load_file(output)
    stored = {}
    for shard in (runs / name / "checkpoints" / "step_00000002").glob("*.safetensors"):
        stored |= load_file(shard)
    wanted = {n: t for n, t in stored.items() if n.startswith("objective.")}
    assert_bit_equal({f"objective.{name}": tensor for name, tensor in tensors.items()}, wanted)


def test_the_files_of_a_documented_command_are_not_forgotten(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They stood in the config; a resume without that command says that it does not write them."""
    path = runs / "mae" / "config.json"
    saved = json.loads(path.read_text())
    files = {"folder": ".", "phase": "PT", "depths": [1], "epoch_steps": 2, "total_steps": 4}
    saved["config"]["checkpoint"]["modular_files"] = files
    path.write_text(json.dumps(saved))
    assert RunDirectory(runs / "mae").read_sidecars() == files
    assert run(["train", "mae/config.json", "--resume", "--work-dir", "mae"]) == 0
    assert "sidecars.json" in capsys.readouterr().err
    assert RunDirectory(runs / "mae").read_sidecars() is None
