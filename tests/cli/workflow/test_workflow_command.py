"""``quadriga run`` and ``quadriga status`` on a tiny workflow, most of it in this process."""

from __future__ import annotations

import json

import pytest
import torch

from errors import assert_command_refused, assert_says, refuses
from quadriga.cli import entry
from quadriga.cli.workflow import resolve
from quadriga.workflow.directory import WorkflowDirectory
from tiny import assert_bit_equal, read_checkpoint
from workflows import EVERY, InProcess, diamond, run

STEPS = 8


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Have the command find the tiny workflow."""
    own = resolve.find_workflow
    monkeypatch.setattr(
        resolve,
        "find_workflow",
        lambda name: (lambda: diamond(STEPS)) if name == "diamond" else own(name),
    )


def states_of(folder, capsys):
    capsys.readouterr()
    assert entry.run(["status", str(folder), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    return {name: node["state"] for name, node in content["nodes"].items()}, content


def test_a_failed_node_is_told_and_made_up_for(tmp_path, capsys):
    folder = tmp_path / "w"
    launcher = InProcess({"left": (3, "warming up\nerror: the disk is full")})
    assert run(folder, launcher) == 3
    said = capsys.readouterr()
    assert "error: left: the disk is full\n" in said.err
    assert_says(said.err, "last waits", "left:KEY=VALUE")
    assert launcher.made == ["first", "left", "right"]
    states, content = states_of(folder, capsys)
    assert states == {
        "first": "finished",
        "left": "failed",
        "right": "finished",
        "last": "waiting",
    }
    assert content["nodes"]["last"]["waits_for"] == ["left"]
    assert entry.run(["status", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert_says(shown, "failed", "the disk is full", "waits")

    # Moved, and called with a value that changes nothing of what is computed.
    folder = folder.rename(tmp_path / "moved")
    launcher = InProcess()
    assert run(folder, launcher, "log.every_steps=2") == 0
    assert launcher.made == ["left", "last"]
    assert run(folder, launcher) == 0
    assert launcher.made == ["left", "last"], "nothing is made again"
    capsys.readouterr()

    with refuses("left", "seed is 1", "7"):
        run(folder, launcher, "left:seed=7")
    with refuses("first: optim.lr", "left: optim.lr", "last: optim.lr"):
        run(folder, launcher, "optim.lr=1")

    states, content = states_of(folder, capsys)
    assert set(states.values()) == {"finished"}
    ledger = json.loads((folder / "ledger.json").read_text())
    assert ledger == content["ledger"]
    each = ledger["nodes"]["first"]["flops"]
    assert ledger["result"]["nodes"] == ["first", "left", "last"]
    assert ledger["result"]["flops"] == ledger["result"]["planned_flops"] == 3 * each
    assert ledger["reference"]["flops"] == 5 * each
    assert ledger["others"].keys() == {"right"}
    seconds = [ledger["nodes"][name]["seconds"] for name in ("first", "left", "last")]
    assert ledger["result"]["critical_seconds"] == pytest.approx(sum(seconds))

    page = (folder / "report" / "index.html").read_text()
    for expected in ("4 of 4 runs finished", "first → left → last", "../left/report/index.html"):
        assert expected in page
    capsys.readouterr()
    assert entry.run(["report", str(folder)]) == 0
    assert str(folder / "report" / "index.html") in capsys.readouterr().out
    assert entry.run(["status", str(folder / "left")]) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.long
def test_only_some_nodes_and_a_process_of_its_own_for_each(tmp_path):
    """A node that is a process computes what it computes in this one."""
    with refuses("left", "first", "finished"):
        run(tmp_path / "w", InProcess(), only=("left",))
    assert run(tmp_path / "w", None, only=("fir*",)) == 0
    launcher = InProcess()
    assert run(tmp_path / "other", launcher, only=("first",)) == 0
    first, second = (tmp_path / name / "first" for name in ("w", "other"))
    assert_bit_equal(read_checkpoint(first, STEPS), read_checkpoint(second, STEPS))
    assert "report:" in (first / "console.txt").read_text()
    states = WorkflowDirectory(tmp_path / "w").states(
        WorkflowDirectory(tmp_path / "w").read_graph()
    )
    assert [states[name].state for name in EVERY] == ["finished", *["waiting"] * 3]


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["run", "mae_digits"], ("mae_digits", "quadriga train")),
        (["run", "mae_digits_twostage"], ("mae_digits_two_stage",)),
        (["train", "mae_digits_two_stage"], ("mae_digits_two_stage", "quadriga run")),
        (["run", "diamond", "lef:seed=1"], ("lef", "left")),
        (["run", "diamond", "seed=1", "left:sed=1"], ("left", "sed", "seed")),
        (["run", "diamond", "l*:=1"], ("module_*:train.epochs=5",)),
        (["run", "diamond", "trian.steps=1"], ("last", "trian", "train")),
        (["run", "diamond", "left:warm_start.path=@last"], ("last needs left needs last",)),
        (["run", "diamond", "--only", "rigth"], ("rigth", "right")),
        (
            [
                "run",
                "diamond",
                "l*:objective.mask_ratio=0.99",
                "first:train.batch_size=4000",
                "--dry-run",
            ],
            ("left, last",),
        ),
        (
            ["run", "diamond", "--device", "cuda"],
            ("first, left, last, right, reference", "cuda"),
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line_before_anything_starts(
    words, fragments, tmp_path, capsys, monkeypatch
):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    assert_command_refused(words, capsys, *fragments)
    assert not list(tmp_path.iterdir())


def test_a_work_dir_of_something_else_and_one_in_use(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with refuses(tmp_path, "workflow"):
        run(tmp_path, InProcess())
    with (
        WorkflowDirectory(tmp_path / "w").lock(),
        refuses(tmp_path / "w", "in use"),
    ):
        run(tmp_path / "w", InProcess())


def test_dry_run_shows_what_it_would_be(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert entry.run(["run", "diamond", "r*:train.steps=5", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"{STEPS} x 8" in shown
    assert "5 x 8" in shown
    assert "reference, not run" in shown
    assert not list(tmp_path.iterdir())


def test_both_kinds_of_recipes_are_listed(capsys):
    assert entry.run(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("mae_digits ") < shown.index("several runs") < shown.index("_two_stage")


def test_nothing_starts_from_older_weights_of_a_finished_node(tmp_path, capsys):
    folder = tmp_path / "w"
    assert run(folder, InProcess(), only=("first",)) == 0
    last = folder / "first" / "checkpoints" / f"step_{STEPS:08d}"
    shard = next(last.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    capsys.readouterr()
    assert run(folder, InProcess()) == 2
    said = capsys.readouterr().err
    assert_says(said, "left", "right", shard.name, "--resume")
    command = said.partition("`")[2].partition("`")[0].split()
    assert command[0] == "quadriga"
    assert entry.run(command[1:]) == 0
    assert run(folder, InProcess()) == 0
