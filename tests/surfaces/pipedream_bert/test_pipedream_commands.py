"""The documented BERT commands, run small."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from pipedream_files import QUIET, Files, make_files

from errors import assert_says, refuses
from quadriga.engine.faults.preemption import Preempted
from quadriga.surfaces.pipedream_bert.glue import compute, read_pretrained
from quadriga.surfaces.pipedream_bert.glue_flags import read_flags as read_glue_flags
from quadriga.surfaces.pipedream_bert.messages import in_flags
from quadriga.surfaces.pipedream_bert.pretrain import main, pretrain
from quadriga.surfaces.pipedream_bert.stage_files import choose_files, read_stages
from quadriga.weights.layouts.pipedream import own_names
from ranks import free_port
from tiny import assert_bit_equal, read_checkpoint, read_metrics

SURFACE = Path(__file__).resolve().parents[3] / "surfaces" / "pipedream_bert"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, where the command's files are."""
    for script in ("launch.py", "main_with_runtime.py", "compute_glue_scores.py"):
        shutil.copy(SURFACE / script, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*words: str) -> subprocess.Popen[str]:
    """Start a documented command in the current folder."""
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out


def objective_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    stored = read_checkpoint(run, step)
    before = "objective."
    return {n.removeprefix(before): t for n, t in stored.items() if n.startswith(before)}


def test_the_throughput_command(files: Files, here: Path) -> None:
    """2BW over two stages; nothing of the weights is kept without a --checkpoint_dir."""
    words = "--nnodes 1 --node_rank 0 --nproc_per_node=2 main_with_runtime.py".split()
    words += ["--master_addr", "127.0.0.1", *files.words("--on_memory", "--num_minibatches", "9")]
    words += ["--gradient_accumulation_steps", "1", "--config_path", str(files.conf), *QUIET]
    out = finish(start("-m", "launch", *words))
    assert_says(out, "2bw", "2 stages", "2+2 blocks")
    assert_says(out, "4 updates of 2")
    (run,) = (here / "runs").iterdir()
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]
    assert not (run / "checkpoints").exists()


def test_the_command_for_accuracy_and_its_fine_tuning(files: Files, here: Path) -> None:
    """Two servers of one process; then two processes fine-tune what the files hold."""
    checkpoints = here / "checkpoints"
    checkpoints.mkdir()
    words = files.words("--gradient_accumulation_steps", "1", "--partitioned_data", "--on_memory")
    words += ["--config_path", str(files.data_parallel), "--master_addr", "127.0.0.1"]
    words += ["--num_train_epochs", "2.0", "--learning_rate", "2e-3", *QUIET]
    words += ["--checkpoint_dir", str(checkpoints)]
    nodes = ["--nnodes", "2", "--nproc_per_node=1", f"--master_port={free_port()}", "--node_rank"]
    servers = [
        start("-u", "-m", "launch", *nodes, str(rank), "main_with_runtime.py", *words)
        for rank in range(2)
    ]
    for server in servers:
        finish(server)
    run = checkpoints / "run"
    for epoch, step in ((0, 6), (1, 12)):
        found = own_names(read_stages(choose_files(checkpoints, epoch, 1)))
        assert_bit_equal(found, objective_of(run, step))
    assert (checkpoints / "vocab.txt").read_text() == files.vocabulary.read_text()
    own = files.glue_arguments("--do_train", "--do_eval", "--checkpoint_path", str(checkpoints))
    own += ["--epoch", "1", "--num_stages", "1", "--num_train_epochs", "1", *QUIET]
    own += ["--train_batch_size", "6", "--eval_batch_size", "6", "--output_dir", "rte"]
    out = finish(
        start(
            *("-W", "ignore", "-u", "-m", "torch.distributed.launch", "--nproc_per_node=2"),
            *("compute_glue_scores.py", *own),
        )
    )
    scores = [line for line in out.splitlines() if line.startswith("accuracy = ")]
    assert len(scores) == 1
    assert "2 begin anew: classifier.weight, classifier.bias" in out
    assert '"lowercase": true' in (here / "rte" / "config.json").read_text()


def test_fine_tuning_starts_from_the_encoder_and_the_pooler_alone(
    files: Files, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a task has as many classes as the next-sentence head; then evaluated alone."""
    (here / "saved").mkdir()
    saved = ["--checkpoint_dir", "saved", *QUIET]
    assert pretrain(files.words("--num_minibatches", "2", *saved), {}) == 0
    own = files.glue_arguments("--do_train", "--do_eval", "--checkpoint_path", "saved")
    flags = read_glue_flags(own)
    whole = objective_of(here / "saved" / "run", 2)
    expected = {n: t for n, t in whole.items() if n.startswith(("encoder.", "pooler."))}
    assert_bit_equal(read_pretrained(flags, 4), expected)
    with refuses("4 layers", "2"):
        read_pretrained(flags, 2)
    own += ["--output_dir", "rte", "--override", "train.steps=1", *QUIET]
    assert compute(own, {}) == 0
    trained = capsys.readouterr().out
    assert compute(files.glue_arguments("--do_eval", "--output_dir", "rte"), {}) == 0
    evaluated = capsys.readouterr().out
    score = [line for line in trained.splitlines() if line.startswith("accuracy = ")]
    assert score == [line for line in evaluated.splitlines() if line.startswith("accuracy = ")]
    assert len(score) == 1


def test_the_same_command_goes_on_bit_by_bit(files: Files, here: Path) -> None:
    words = files.words("--num_train_epochs", "4", *QUIET, "--verbose_frequency", "1")
    for name in ("whole", "cut"):
        (here / name).mkdir()
    assert pretrain([*words, "--checkpoint_dir", "whole"], {}) == 0
    metrics = here / "cut" / "run" / "metrics.jsonl"

    def interrupt() -> None:
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=interrupt, daemon=True)
    killer.start()
    with pytest.raises(Preempted) as stopped:
        pretrain([*words, "--checkpoint_dir", "cut"], {})
    assert_says(str(stopped.value), "--resume")
    assert_says(in_flags(str(stopped.value)), "same command")
    assert 5 <= stopped.value.step < 48
    # A file that a kill has kept from being written is written at the next start.
    for path in (here / "cut").glob("checkpoint.0.pth.tar.epoch.*"):
        path.unlink()
    assert pretrain([*words, "--checkpoint_dir", "cut"], {}) == 0
    assert_bit_equal(
        read_checkpoint(here / "whole" / "run", 48), read_checkpoint(here / "cut" / "run", 48)
    )
    last = [read_stages(choose_files(here / name, 3, 1)) for name in ("whole", "cut")]
    assert_bit_equal(*last)


def test_load_takes_the_weights_or_goes_on(files: Files, here: Path) -> None:
    for name in ("first", "files", "again"):
        (here / name).mkdir()
    words = files.words("--num_minibatches", "4", *QUIET)
    assert pretrain([*words, "--checkpoint_dir", "first"], {}) == 0
    shutil.copy(here / "first" / "checkpoint.0.pth.tar.epoch.0", here / "files")
    other = files.words("--num_minibatches", "1", "--seed", "1", *QUIET)
    losses = []
    for folder, name in (("first", "a"), ("files", "b")):
        assert pretrain([*other, "--load", folder, "--log_dir", name], {}) == 0
        losses.append(read_metrics(here / name)[0]["loss"])
    assert losses[0] == losses[1]
    assert pretrain([*other, "--log_dir", "c"], {}) == 0
    assert read_metrics(here / "c")[0]["loss"] != losses[0]
    # The same run elsewhere: it is gone on with, and there is nothing left to do.
    assert pretrain([*words, "--load", "first", "--checkpoint_dir", "again"], {}) == 0
    assert not (here / "again" / "run" / "metrics.jsonl").exists()
    (here / "empty").mkdir()
    with refuses("--load", "empty"):
        pretrain([*other, "--load", "empty", "--log_dir", "d"], {})


def test_errors_are_one_line_in_the_words_of_the_user(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = files.words("--num_minibatches", "2", *QUIET, "--vocab_path", "nowhere")
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "argv", ["main_with_runtime.py", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert_says(line, "--vocab_path", "nowhere", "vocab.txt")


SCRIPT = """
import os, signal, sys, time
def leave(number, frame):
    os.write(1, f"{number} ".encode())
    sys.exit(75)
if "leaves" in sys.argv:
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGUSR1, leave)
    signal.signal(signal.SIGUSR2, leave)
places = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()
with open(os.environ["RANK"] + ".part", "w") as file:
    print(*sys.argv, *(os.environ[name] for name in places), sep="|", end="", file=file)
os.rename(file.name, os.environ["RANK"])
if os.environ["RANK"] == "3":
    sys.exit(75)
time.sleep(100)
"""


def test_processes_fall_together(here: Path) -> None:
    (here / "script.py").write_text(SCRIPT)
    nodes = ["--nnodes=2", "--node_rank", "1", "--nproc_per_node=2", "script.py"]
    rest = ["--master_addr", "10.0.0.1", "--module", "$$HOME ${local_rank}", "--"]
    began = time.monotonic()
    process = start("-m", "launch", *nodes, *rest)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert time.monotonic() - began < 30
    words = ["script.py", "--rank=3", "--local_rank=1", *rest]
    assert (here / "3").read_text() == "|".join([*words, *"3 4 1 2 10.0.0.1 12345".split()])


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGTERM, "15"), (signal.SIGUSR1, "10"), (signal.SIGINT, "12")],
)
def test_signals_are_handed_on(here: Path, number: signal.Signals, said: str) -> None:
    (here / "script.py").write_text(SCRIPT)
    process = start("-m", "launch", "--nproc_per_node=2", "script.py", "leaves")
    try:
        while not all((here / rank).exists() for rank in "01"):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, err
    assert said in out.split()
    assert "Traceback" not in err
