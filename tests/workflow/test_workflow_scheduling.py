"""In which order nodes are started, beside which others, and what happens when one fails."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadriga.engine.logs.times import read_times
from quadriga.workflow.launcher import (
    CONSOLE,
    LocalLauncher,
    NodeLauncher,
    Running,
    Task,
    default_slots,
    last_error,
    visible_devices,
)
from quadriga.workflow.runner import WorkflowRunner

NEEDS = {"meta": (), "a": ("meta",), "b": ("meta",), "joined": ("a", "b"), "plain": ()}


class Scripted(NodeLauncher):
    """Nodes that end with a given code after a given number of looks; nothing is run."""

    def __init__(self, slots=1, codes=None, looks=None):
        self.slots, self.codes, self.looks = slots, codes or {}, looks or {}
        self.order, self.most, self.at_once, self.told = [], 0, 0, []

    def has_room(self, task, running):
        assert running == self.at_once
        return running < self.slots

    def start(self, task):
        self.order.append(task.name)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        return Script(self, task.name)


class Script(Running):
    def __init__(self, owner, name):
        self.owner, self.name, self.left = owner, name, owner.looks.get(name, 1)
        self.signal = None

    def poll(self):
        self.left -= 1
        if self.left > 0 and self.signal is None:
            return None
        self.owner.at_once -= 1
        codes = self.owner.codes.get(self.name, [0])
        return 75 if self.signal else codes.pop(0) if len(codes) > 1 else codes[0]

    def tell(self, number):
        self.signal = number
        self.owner.told.append((self.name, number))

    def kill(self):
        self.owner.told.append((self.name, "kill"))


def make(tmp_path, launcher, needs=NEEDS, finished=(), watch=lambda outcome: None, **options):
    tasks = {n: Task(n, tmp_path / f"{n}.json", tmp_path / n, 1, "cpu") for n in needs}
    left = {name: task for name, task in tasks.items() if name not in finished}
    runner = WorkflowRunner(
        needs,
        left,
        set(finished),
        launcher,
        prepare=lambda name: None,
        is_finished=lambda name: True,
        poll_seconds=0.0,
        **options,
    )
    return runner, runner.run(watch)


@settings(max_examples=30)
@given(
    slots=st.integers(1, 4),
    looks=st.fixed_dictionaries({name: st.integers(1, 5) for name in NEEDS}),
    done=st.sets(st.sampled_from(["meta", "plain"])),
)
def test_a_node_starts_once_after_what_it_needs_and_slots_are_kept(
    tmp_path_factory, slots, looks, done
):
    launcher = Scripted(slots, looks=looks)
    ends = []

    def watch(outcome):
        for name, progress in outcome.progress.items():
            if progress == "finished" and name not in ends:
                ends.append(name)
            if progress == "runs":
                assert all(outcome.progress[other] == "finished" for other in NEEDS[name])

    _, outcome = make(tmp_path_factory.mktemp("w"), launcher, finished=done, watch=watch)
    assert sorted(launcher.order) == sorted(set(NEEDS) - done)
    assert launcher.most <= slots
    assert set(outcome.progress.values()) == {"finished"}
    assert (outcome.exit_code, sorted(ends)) == (0, sorted(NEEDS))


def test_what_can_run_side_by_side_does(tmp_path):
    launcher = Scripted(2, looks={"a": 3, "b": 3, "plain": 9})
    make(tmp_path, launcher)
    assert launcher.most == 2
    assert launcher.order == ["meta", "plain", "a", "b", "joined"]


def test_a_failed_node_holds_up_what_needs_it_and_nothing_else(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / CONSOLE).write_text("step 1\nerror: no such file\nwarning: late\n")
    launcher = Scripted(1, codes={"a": [3], "plain": [137]})
    runner, outcome = make(tmp_path, launcher)
    assert outcome.progress == {
        "meta": "finished",
        "a": "failed",
        "b": "finished",
        "joined": "waits",
        "plain": "failed",
    }
    assert runner.blocked_by("joined") == ["a"]
    assert outcome.errors == {"a": "no such file", "plain": "killed by SIGKILL"}
    assert outcome.exit_code == 3, "that of the first one that failed"
    assert read_times(tmp_path / "a")[-1]["error"] == "no such file"


def test_a_killed_node_is_started_again_as_often_as_allowed(tmp_path):
    launcher = Scripted(codes={"a": [137, 139, 0], "b": [2]})
    _, outcome = make(tmp_path, launcher, max_restarts=2)
    assert launcher.order.count("a") == 3
    assert launcher.order.count("b") == 1, "an error that would come again"
    assert outcome.progress["a"] == "finished"


@pytest.mark.parametrize(
    ("number", "handed_on", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 75),
        (signal.SIGUSR1, signal.SIGUSR1, 75),
        (signal.SIGINT, signal.SIGUSR2, 75),
    ],
)
def test_signals_are_handed_on_and_nothing_more_is_started(tmp_path, number, handed_on, code):
    assert threading.current_thread() is threading.main_thread()
    launcher = Scripted(1, looks={"meta": 10**6})
    before = signal.getsignal(number)

    def watch(outcome):
        if outcome.asked_by is None:
            os.kill(os.getpid(), number)

    _, outcome = make(tmp_path, launcher, watch=watch)
    assert launcher.order == ["meta"]
    assert launcher.told == [("meta", handed_on)]
    assert (outcome.exit_code, outcome.progress["meta"]) == (code, "stopped")
    assert signal.getsignal(number) == before


def test_a_second_interrupt_kills(tmp_path):
    class Deaf(Scripted):
        def start(self, task):
            running = super().start(task)
            running.tell = lambda number: None
            return running

    launcher = Deaf(1, looks={"meta": 10**6})
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, launcher, watch=lambda outcome: os.kill(os.getpid(), signal.SIGINT))
    assert launcher.told == [("meta", "kill")]


def test_devices_go_to_those_who_need_them_and_come_back(tmp_path, monkeypatch):
    """The command is replaced by one that prints what it was given."""
    show = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['OMP_NUM_THREADS'])"
    monkeypatch.setattr(Task, "words", property(lambda self: ["-c", show]))
    monkeypatch.setattr(sys, "executable", _without_module(tmp_path))
    launcher = LocalLauncher(
        2, ["4", "5", "6", "7"], cores=16, environ={"PATH": os.environ["PATH"]}
    )

    def start(name, device="auto"):
        task = Task(name, tmp_path / "x.json", tmp_path / name, 2, device)
        return launcher.start(task)

    first, second, third = start("first"), start("second"), start("third", "cpu")
    for running in (first, second, third):
        while running.poll() is None:
            pass
    fourth = start("fourth")
    while fourth.poll() is None:
        pass
    said = {n: (tmp_path / n / CONSOLE).read_text().strip() for n in ("first", "second", "third")}
    assert said == {"first": "4,5 4", "second": "6,7 4", "third": "None 4"}
    assert (tmp_path / "fourth" / CONSOLE).read_text().strip() == "4,5 4"


def _without_module(folder):
    """Return a program that drops ``-P -m quadriga`` and calls Python with the rest."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_devices_are_named_as_the_environment_names_them():
    assert visible_devices(3, {}) == ["0", "1", "2"]
    assert visible_devices(2, {"CUDA_VISIBLE_DEVICES": "GPU-ab, 3"}) == ["GPU-ab", "3"]
    assert visible_devices(0, {"CUDA_VISIBLE_DEVICES": ""}) == []
    assert [default_slots(8, 2), default_slots(0, 2), default_slots(3, 4)] == [4, 1, 1]


def test_the_last_error_of_a_console(tmp_path):
    console = tmp_path / CONSOLE
    assert last_error(console) is None
    console.write_text("a\n[rank 1] error: lost\nerror: the first\nstopped: lost\n")
    assert last_error(console) == "the first"
    console.write_text("Traceback\nKeyError: 'error: x'\n")
    assert last_error(console) == "KeyError: 'error: x'"
