"""The board: equal operations in every row, and rows that are kept and not made again."""

from __future__ import annotations

import json

import pytest

import board as tool
from pictures import write_classes
from quadriga.cli.workflow import command
from quadriga.engine.build import build_on_meta
from quadriga.engine.run_config import RunConfig
from quadriga.errors import UserError
from quadriga.recipes import board
from quadriga.workflow.preview import Planner
from workflows import InProcess

FEW = {"simclr", "supervised_resnet"}


@pytest.fixture
def few(monkeypatch):
    """Leave two rows, since each is measured."""
    monkeypatch.setattr(board, "ROWS", tuple(row for row in board.ROWS if row.name in FEW))


def differences_of(workflow):
    """Return by how many steps each run differs from the operations that are meant for it."""
    shares = {row.name: row.share for row in board.ROWS}
    for node in workflow.nodes:
        planner = Planner(lambda config: None, rehearses=True)
        planned = planner.measure(*planner.check(node.config))
        meant = board.OPERATIONS * shares[node.name.partition("_seed")[0]]
        yield node.name, (planned.flops - meant) / (planned.flops / planned.total_steps)


def test_runs_have_equal_operations_as_a_workflow_counts_them(few):
    found = dict(differences_of(board.board_cifar10()))
    assert list(found) == ["simclr", "simclr_seed1", "supervised_resnet"]
    assert max(map(abs, found.values())) <= 0.5


@pytest.mark.long
def test_every_row_has_its_operations_and_one_of_two_encoders_and_sees_the_data_six_times():
    workflow = board.board_cifar10(seeds=1)
    assert max(abs(steps) for _, steps in differences_of(workflow)) <= 0.5
    sizes = []
    for row, node in zip(board.ROWS, workflow.nodes, strict=True):
        config = node.config
        encoder = build_on_meta(config).encoder
        sizes.append(
            sum(p.numel() for name, p in encoder.named_parameters() if "class" not in name)
        )
        assert config.train.steps * 256 >= row.share * 6 * 50_000, node.name
        assert RunConfig.from_dict(config.as_dict()) == config
        assert (config.train.batch_size, config.train.precision) == (256, "float32")
        assert config.evaluation == workflow.nodes[0].config.evaluation
    assert len(set(sizes)) == 2


@pytest.mark.parametrize("argument", ["seeds", "share"])
def test_nothing_to_run_is_refused(argument):
    with pytest.raises(UserError, match=argument):
        board.board_cifar10(**{argument: 0})


@pytest.mark.long
def test_a_row_that_is_kept_is_not_made_again_while_its_config_stands(
    few, tmp_path, monkeypatch, capsys
):
    for split, count, seed in (("train", 12, 0), ("test", 4, 50)):
        write_classes(tmp_path / "data" / split, "ab", count, seed)
    launcher = InProcess()
    monkeypatch.setattr(
        tool, "run_workflow", lambda request: command.run_workflow(request, launcher)
    )
    rows = tmp_path / "rows.jsonl"

    def run(work_dir, *words):
        launcher.made.clear()
        stub = ["train.dataset_size=none", "train.batch_size=8", "model.stem_width=2"]
        options = ["--work-dir", str(tmp_path / work_dir), "--rows", str(rows)]
        root = f"root={tmp_path / 'data'}"
        every = ["--only", "simclr*", "share=1e-9", "train.device=cpu"]
        assert tool.main(["run", root, *stub, *every, *words, *options]) == 0
        return launcher.made

    assert run("one", "seeds=1") == ["simclr"]
    assert run("two") == ["simclr_seed1"]
    assert run("three") == []
    first, second = map(json.loads, rows.read_text().splitlines())
    assert (first["node"], first["seed"], first["steps"]) == ("simclr", 0, 1)
    assert (second["node"], second["seed"]) == ("simclr_seed1", 1)
    assert first["hash"] != second["hash"]
    assert first["core_minutes"] >= 0
    assert run("three", "simclr:optim.lr=1e-4") == ["simclr"]
    assert [json.loads(line)["node"] for line in rows.read_text().splitlines()] == [
        "simclr",
        "simclr_seed1",
    ]
    capsys.readouterr()
    assert tool.main(["table", "--rows", str(rows)]) == 0
    line = capsys.readouterr().out.splitlines()[2].strip("| ").split(" | ")
    gain = first["linear"] - first["linear_random"]
    assert line[:2] == ["simclr", "ResNet-18, stem 2"]
    assert dict(zip(tool.COLUMNS, line, strict=True))["gain"].strip() == f"{gain:.1f}"


def test_core_minutes_are_those_of_the_steps_of_all_attempts():
    events = [
        {"event": "start"},
        {"event": "begin", "cpu_seconds": 10.0},
        {"event": "steps", "cpu_seconds": 70.0},
        {"event": "begin", "cpu_seconds": 5.0},
        {"event": "steps", "cpu_seconds": 25.0},
        {"event": "evaluated", "cpu_seconds": 8.0},
        {"event": "steps", "cpu_seconds": 45.0},
        {"event": "end"},
    ]
    assert tool.cpu_seconds(events) == 60 + 40 - 8
