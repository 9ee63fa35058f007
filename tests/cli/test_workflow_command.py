"""``quadriga run`` and ``quadriga status`` on a tiny workflow, most of it in this process."""

from __future__ import annotations

import json

import pytest

from quadriga.cli import entry, workflow, workflow_words
from quadriga.engine.workflow_files import WorkflowDirectory
from quadriga.errors import UserError
from tiny import assert_bit_equal, read_checkpoint
from workflows import EVERY, InProcess, diamond, run

STEPS = 8


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Have the command find the tiny workflow."""
    own = workflow_words.find_workflow
    monkeypatch.setattr(
        workflow_words,
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
    assert "error: left: the disk is full\nlast waits for left\n" in said.err
    assert said.err.endswith("the same command goes on; left:KEY=VALUE gives left another value\n")
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
    assert "failed: the disk is full" in shown
    assert "waits for left (failed)" in shown

    # Moved, and called with a value that changes nothing of what is computed.
    folder = folder.rename(tmp_path / "moved")
    launcher = InProcess()
    assert run(folder, launcher, "log.every_steps=2") == 0
    assert launcher.made == ["left", "last"]
    assert run(folder, launcher) == 0
    assert launcher.made == ["left", "last"], "nothing is made again"
    capsys.readouterr()

    with pytest.raises(UserError, match=r"another config: left: seed is 1 there and 7 here;"):
        run(folder, launcher, "left:seed=7")
    with pytest.raises(UserError, match=r"first: optim.lr is .*; left: optim.lr .*; last: optim"):
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


def test_only_some_nodes_and_a_process_of_its_own_for_each(tmp_path):
    """A node that is a process computes what it computes in this one."""
    with pytest.raises(UserError, match="left starts from first, which is not finished"):
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
    ("words", "sentence"),
    [
        (["run", "mae_digits"], "mae_digits is one run and no workflow; use quadriga train"),
        (["run", "mae_digits_twostage"], "did you mean mae_digits_two_stage?"),
        (["train", "mae_digits_two_stage"], "is a workflow of several runs; use quadriga run"),
        (["run", "diamond", "lef:seed=1"], "but lef matches none; did you mean left?"),
        (["run", "diamond", "seed=1", "left:sed=1"], "did you mean seed?\n"),
        (["run", "diamond", "l*:=1"], "must look like module_*:train.epochs=5"),
        (["run", "diamond", "trian.steps=1"], "last: unknown key trian; did you mean train?"),
        (["run", "diamond", "left:warm_start.path=@last"], "last needs left needs last"),
        (["run", "diamond", "--only", "rigth"], "did you mean right?"),
        (
            ["run", "diamond", "l*:views.image_px=8", "first:train.batch_size=4000", "--dry-run"],
            "left, last: ",
        ),
        (
            ["run", "diamond", "--device", "cuda"],
            "first, left, last, right, reference: device cuda",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line_before_anything_starts(
    words, sentence, tmp_path, capsys, monkeypatch
):
    if "cuda" in words and workflow.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    assert entry.run(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert not list(tmp_path.iterdir())


def test_a_work_dir_of_something_else_and_one_in_use(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no workflow"):
        run(tmp_path, InProcess())
    with (
        WorkflowDirectory(tmp_path / "w").lock(),
        pytest.raises(UserError, match="is in use: another `quadriga run` works there"),
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
