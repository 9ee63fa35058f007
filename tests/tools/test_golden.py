"""The golden runs' hashes, spellings and table: what is the same, what differs and by how much."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import torch

import golden
import golden_cases as cases
import golden_parts as parts

TENSORS = {
    "objective.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    "ema.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    "optimizer.weight.exp_avg": torch.tensor([0.5, 0.0]),
    "optimizer.weight.step": torch.tensor(2.0),
    "executor.skipped": torch.tensor(0),
}
RECORDS = [
    {"step": 1, "loss": 2.5, "lr": 0.1, "grad_norm": 1.0, "step_seconds": 0.2, "memory_gib": 1.0},
    {"step": 2, "loss": 2.25, "lr": 0.1, "grad_norm": 1.5, "eta_seconds": 0.0, "mfu": 0.3},
]


def nudged(name, amount):
    return {**TENSORS, name: TENSORS[name] + amount}


def cells(tensors, records):
    old, new = parts.summary(TENSORS, RECORDS), parts.summary(tensors, records)
    return dict(zip(parts.PARTS, parts.compare_runs(old, new, TENSORS, tensors), strict=True))


def test_a_hash_knows_bits_type_and_shape():
    tensor = torch.tensor([0.0, 1.0])
    others = (tensor * -1, tensor.double(), tensor[None], tensor.bfloat16(), tensor + 1e-7)
    assert parts.hash_tensor(tensor) == parts.hash_tensor(tensor.clone())
    assert len({parts.hash_tensor(other) for other in (tensor, *others)}) == 6
    grid = torch.arange(6.0).reshape(2, 3)
    assert parts.hash_tensor(grid.T) == parts.hash_tensor(grid.T.contiguous())


def test_each_part_is_compared_by_itself_and_the_clock_by_nobody():
    later = [{**line, "samples_per_second": 3.0, "data_wait_share": 0.1} for line in RECORDS]
    assert set(cells(TENSORS, later).values()) == {"same"}
    found = cells(nudged("ema.weight", 0.25), RECORDS)
    assert found["parameters"] == "ema.weight by 0.25; 1 of 2 differ"
    assert found["optimizer"] == found["metrics"] == "same"
    found = cells(nudged("executor.skipped", 1), RECORDS)
    assert found["optimizer"].startswith("executor.skipped by 1")
    assert found["parameters"] == found["metrics"] == "same"


def test_the_first_step_that_differs_is_named_with_the_greatest_difference():
    records = [RECORDS[0], {**RECORDS[1], "loss": 2.5, "grad_norm": 2.5}]
    found = cells(TENSORS, records)["metrics"]
    assert found == "step 2 loss by 0.25; 2 of 8 differ, at most by 1"
    assert "step 2 step is missing; 4 of" in cells(TENSORS, RECORDS[:1])["metrics"]


def test_tensors_that_come_go_or_change_shape():
    tensors = {**TENSORS, "objective.bias": torch.zeros(1)}
    assert "objective.bias is new" in cells(tensors, RECORDS)["parameters"]
    del tensors["objective.bias"], tensors["ema.weight"]
    assert "ema.weight is missing" in cells(tensors, RECORDS)["parameters"]
    tensors = {**TENSORS, "ema.weight": torch.zeros(4)}
    assert "ema.weight by inf" in cells(tensors, RECORDS)["parameters"]


def test_todays_spelling_comes_first():
    words = cases.CASES["bert_2bw"].words
    today, before = cases.spellings(words)
    assert today[-3:] == ["executor.kind=pipeline", "executor.schedule=2bw", "executor.stages=2"]
    assert before[-2:] == ["pipeline.schedule=2bw", "pipeline.stages=2"]
    assert today[:-3] == before[:-2]
    assert list(cases.spellings(("seed=1",))) == [["seed=1"]]


def test_record_then_compare(tmp_path, monkeypatch, capsys):
    ends = {"mae": TENSORS, "glue": nudged("objective.weight", 1.0)}

    def run(self, name):
        if ends[name] is None:
            raise golden.Failed("no disk")
        return parts.summary(ends[name], RECORDS), ends[name]

    monkeypatch.setattr(golden.Runner, "run", run)
    monkeypatch.setattr(golden, "revision", lambda source: "abc")
    file = tmp_path / "base.json"
    words = [str(file), "--only", "mae", "--only", "glue"]
    assert golden.main(["record", *words]) == 0
    assert golden.main(["compare", *words]) == 0
    assert capsys.readouterr().out.count("| same") == 6

    ends["glue"] = TENSORS
    assert golden.main(["compare", *words]) == 1
    told = capsys.readouterr().out
    assert "objective.weight by 1; 1 of 2 differ" in told
    assert told.count("| same") == 5
    shutil.move(tmp_path / "base.glue.safetensors", tmp_path / "gone")
    assert golden.main(["compare", *words]) == 1
    assert "objective.weight by nan" in capsys.readouterr().out

    ends["mae"] = None
    assert golden.main(["compare", *words]) == 1
    assert "failed" in capsys.readouterr().out
    assert golden.main(["record", str(file), "--only", "glue"]) == 0
    assert list(json.loads(file.read_text())["runs"]) == ["mae", "glue"]
    assert golden.main(["record", *words]) == 1


def test_the_spelling_is_the_first_that_the_source_knows(tmp_path, monkeypatch):
    known = "pipeline.schedule=1f1b"

    def quadriga(self, folder, *words):
        code = 0 if known in words and words[-1] == "--print-config" else 2
        return subprocess.CompletedProcess(words, code, "", "unknown key executor\n")

    monkeypatch.setattr(golden.Runner, "quadriga", quadriga)
    runner, case = golden.Runner(tmp_path, tmp_path), cases.CASES["bert_1f1b"]
    assert runner.spell(tmp_path, case)[-2:] == [known, "pipeline.stages=2"]
    known = "neither"
    with pytest.raises(golden.Failed, match="unknown key executor"):
        runner.spell(tmp_path, case)
