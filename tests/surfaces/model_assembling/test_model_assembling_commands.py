"""The documented model-assembling commands, run small."""

from __future__ import annotations

import json
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
from assembling_files import FT, MT, PT, TRAIN, commands, make_images, small

from errors import assert_says, refuses
from quadriga.distributed.environment import SINGLE
from quadriga.engine.faults.preemption import Preempted
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.logs.results import read_records
from quadriga.engine.resume import Request
from quadriga.engine.session import run
from quadriga.errors import UserError
from quadriga.surfaces.model_assembling import main
from quadriga.surfaces.model_assembling.main import in_flags, read_arguments, read_command, train
from quadriga.surfaces.model_assembling.sources import meta_depths
from quadriga.weights.files import read_weights
from quadriga.weights.layouts.model_stages import digest, own_names
from ranks import free_port
from tiny import assert_bit_equal, read_checkpoint, read_metrics

SURFACE = Path(__file__).resolve().parents[3] / "surfaces" / "model_assembling"
ONE_EPOCH = ("--batch_size", "4", "--epochs", "1", "--warmup-epochs", "0")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def chain(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every documented command has been run, in order; without reports."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(main, "write_report", lambda work_dir: work_dir)
        for script in (PT, MT, FT):
            for words in commands(script, folder):
                assert train([*words, *small(images, *ONE_EPOCH)], {}) == 0
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are pictures, which take longer than the runs."""
    monkeypatch.setattr(main, "write_report", lambda work_dir: work_dir)


@pytest.fixture
def there(chain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(chain)
    return chain


def objective_of(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    stored = read_checkpoint(run_dir, step)
    before = "objective."
    return {n.removeprefix(before): t for n, t in stored.items() if n.startswith(before)}


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return own_names(read_weights(path).tensors, str(path))


def test_the_chain_is_the_engines_own(there: Path, images: Path, tmp_path: Path) -> None:
    """The same runs, each starting from the runs before and not from the files they left."""
    log_dir = there / "log_dir"
    modules = [log_dir / f"MT_tiny_{index}" / "run" for index in range(4)]
    origin: dict[str, dict[str, object]] = {
        "PT_tiny": {},
        "MT_tiny_2": {"modular.meta": str(tmp_path / "PT_tiny")},
        "FT_tiny": {
            "modular.modules": [str(modules[i]) for i in (3, 0, 1)] + [str(tmp_path / "MT_tiny_2")]
        },
    }
    scripts = {"PT_tiny": (PT, 0), "MT_tiny_2": (MT, 2), "FT_tiny": (FT, 0)}
    # Micro-batches of 4, of which an update has 1, 2 and 4.
    for name, step in (("PT_tiny", 6), ("MT_tiny_2", 3), ("FT_tiny", 1)):
        script, number = scripts[name]
        words = [*commands(script, there)[number], *small(images, *ONE_EPOCH)]
        resolved = read_command(read_arguments(words, {}), {}).resolved
        run(
            resolved.override(origin[name], "test"),
            Request(tmp_path / name),
            SINGLE,
            Console(False),
        )
        made = objective_of(tmp_path / name, step)
        assert_bit_equal(made, objective_of(log_dir / name / "run", step))
    assert_bit_equal(weights_of(log_dir / "FT_tiny" / "finished_checkpoint.pth"), made)


def test_what_the_files_hold(there: Path) -> None:
    """The documented layout; the module is the trained one, all else the meta model."""
    folder = there / "log_dir" / "MT_tiny_1"
    content = torch.load(folder / "finished_checkpoint.pth", weights_only=True)
    documented = ["model", "model_stages", "optimizer", "lr_scheduler", "epoch", "scaler"]
    assert list(content) == [*documented, "quadriga"]
    assert (content["epoch"], content["scaler"]) == (0, {})
    stages = content["model_stages"]
    blocks = [{name.split(".")[1] for name in stage if "blocks" in name} for stage in stages]
    assert blocks == [{"0"}, {"0", "1"}, {"0"}, {"0"}]
    meta = torch.load(there / "log_dir" / "PT_tiny" / "finished_checkpoint.pth", weights_only=True)[
        "model_stages"
    ]
    for stage in (0, 2, 3):
        assert_bit_equal(stages[stage], meta[stage])
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} < set(stages[0])
    assert stages[0]["patch_embed.proj.weight"].shape == (192, 3, 16, 16)
    assert stages[0]["pos_embed"].shape == (1, 5, 192)
    assert set(stages[3]) - set(stages[2]) == {
        *("norm.weight", "norm.bias", "head.weight", "head.bias")
    }
    for stage, first in enumerate((0, 1, 3, 4)):
        for name, tensor in stages[stage].items():
            number = name.split(".")[1] if "blocks" in name else ""
            flat = name.replace(f"blocks.{number}.", f"blocks.{int(number or 0) + first}.")
            for alias in (flat, f"stages.{stage}.{name}"):
                assert torch.equal(content["model"][alias], tensor)
    facts = content["quadriga"]
    assert (facts["phase"], facts["index"], facts["step"]) == ("MT", 1, 3)
    assert facts["meta"] == digest(weights_of(there / "log_dir/PT_tiny/finished_checkpoint.pth"))
    assert (folder / "checkpoint-0.pth").samefile(folder / "finished_checkpoint.pth")


def test_the_cut_of_a_run_lies_beside_it(there: Path) -> None:
    """A meta model whose files are gone is known by it; the file of another cut is refused."""
    run_dir = there / "log_dir" / "PT_tiny" / "run"
    beside = RunDirectory(run_dir).read_sidecars()
    assert beside is not None
    assert (beside["phase"], beside["depths"], beside["epoch_steps"]) == ("PT", [1, 1, 1, 1], 6)
    assert meta_depths(run_dir, (1, 1, 2, 1), 2) == (1, 1, 1, 1)
    with refuses("--divided_depths"):
        meta_depths(run_dir, (2, 1, 2, 1), 2)


def test_the_optimizers_state_is_torchs(there: Path) -> None:
    """torch's AdamW takes it, and has then the moments that the run has."""
    path = there / "log_dir" / "MT_tiny_0" / "finished_checkpoint.pth"
    content = torch.load(path, weights_only=True)
    stored = read_checkpoint(there / "log_dir" / "MT_tiny_0" / "run", 3)
    flat, saved = content["model"], content["optimizer"]
    groups = [
        {"params": [torch.nn.Parameter(flat[name]) for name in group["names"]]}
        for group in saved["param_groups"]
    ]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(saved)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]
    named = [name for group in saved["param_groups"] for name in group["names"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = {name: optimizer.state[p]["exp_avg"] for name, p in zip(named, parameters, strict=True)}
    begin, end = "optimizer.live.0.", ".exp_avg"
    expected = {
        name.removeprefix(begin).removesuffix(end): tensor
        for name, tensor in stored.items()
        if name.startswith(begin) and name.endswith(end)
    }
    assert_bit_equal(own_names(found, "state"), expected)
    exempt = set(saved["param_groups"][0]["names"])
    assert {"cls_token", "pos_embed", "blocks.0.norm1.weight", "blocks.0.mlp.fc1.bias"} < exempt
    assert all(flat[name].dim() > 1 for name in set(named) - exempt)


def test_the_log_has_a_line_for_each_epoch(there: Path) -> None:
    folder = there / "log_dir" / "PT_tiny"
    (line,) = [json.loads(text) for text in (folder / "log.txt").read_text().splitlines()]
    rows = read_metrics(folder / "run")
    assert line["train_loss"] == pytest.approx(sum(row["loss"] for row in rows) / 6)
    assert line["train_lr"] == rows[-1]["lr"]
    (record,) = read_records(folder / "run" / "report")
    assert line["test_acc1"] == 100 * record.metrics["accuracy"]
    assert line["test_loss"] == record.metrics["loss"]
    assert (line["epoch"], line["test_acc5"]) == (0, 100.0)
    tensors = objective_of(folder / "run", 6)
    assert line["n_parameters"] == sum(tensor.numel() for tensor in tensors.values())


def test_a_finished_phase_is_not_run_again(
    there: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*commands(PT, there)[0], *small(images, *ONE_EPOCH)]
    before = (there / "log_dir/PT_tiny/finished_checkpoint.pth").stat()
    assert train(words, {}) == 0
    assert_says(capsys.readouterr().out, "nothing")
    assert (there / "log_dir/PT_tiny/finished_checkpoint.pth").stat() == before
    with refuses("--epochs 1", "--epochs is 2"):
        train([*words, "--epochs", "2"], {})
    with refuses("--phase PT", "--phase is E2E"):
        train([*words, "--phase", "E2E"], {})


def test_evaluation(there: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a file, of what an output folder holds, of a module's hybrid, and of an assembly."""
    model = ["--eval", "--batch_size", "1024", "--model", "deit_tiny_patch16_224", *small(images)]

    def numbers(*words: str) -> str:
        assert train([*model, *words], {}) == 0
        return capsys.readouterr().out.splitlines()[-1]

    cut = ["--divided_depths", "2", "2", "2", "2"]
    of_file = numbers(*cut, "--finetune", "./log_dir/FT_tiny/finished_checkpoint.pth")
    line = json.loads((there / "log_dir/FT_tiny/log.txt").read_text())
    assert of_file == (
        f"* Acc@1 {line['test_acc1']:.3f} Acc@5 100.000 loss {line['test_loss']:.3f}"
    )
    assert numbers(*cut, "--output_dir", "./log_dir/FT_tiny") == of_file
    assert numbers(*cut, "--finetune", "./log_dir/FT_tiny/run") == of_file
    hybrid = json.loads((there / "log_dir/MT_tiny_1/log.txt").read_text())
    found = numbers("--divided_depths", "1", "2", "1", "1", "--finetune", "log_dir/MT_tiny_1/run")
    assert found.endswith(f"loss {hybrid['test_loss']:.3f}")
    assembled = numbers("--phase", "FT", *cut, "--incubation_models", "./log_dir/MT_tiny_*")
    assert assembled.startswith("* Acc@1 ")
    assert assembled != of_file
    larger = numbers(*cut, "--finetune", "./log_dir/FT_tiny", "--input-size", "64")
    assert larger.startswith("* Acc@1 ")
    file = "./log_dir/FT_tiny/finished_checkpoint.pth"
    assert_says(
        refused(*model, "--divided_depths", "2", "2", "2", "--finetune", file),
        *("--divided_depths", "8 blocks", "finished_checkpoint.pth (2 2 2 2)", "6 (2 2 2)"),
    )
    words = [*model[1:], "--batch_size", "8", "--output_dir", "log_dir/other"]
    said = refused(*words, "--divided_depths", "2", "2", "2", "--finetune", file)
    assert_says(said, "--divided_depths", "--model")


def test_released_files_hold_stages_alone(
    there: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a reference file: no notes, nothing but stages, plain values beside."""
    for index in range(4):
        whole = torch.load(f"log_dir/MT_tiny_{index}/finished_checkpoint.pth", weights_only=True)
        torch.save({"model_stages": whole["model_stages"]}, tmp_path / f"{3 - index}.pth")
    meta = torch.load("log_dir/PT_tiny/finished_checkpoint.pth", weights_only=True)
    torch.save({"model_stages": meta["model_stages"], "epoch": 299}, tmp_path / "meta.pth")
    cut = ["--divided_depths", "2", "2", "2", "2", *small(images)]
    words = ["--eval", "--phase", "FT", "--model", "deit_tiny_patch16_224", *cut]
    lines = []
    for pattern in ("log_dir/MT_tiny_*", str(tmp_path / "[0-3].pth")):
        assert train([*words, "--incubation_models", pattern], {}) == 0
        lines.append(capsys.readouterr().out.splitlines()[-1])
    assert lines[0] == lines[1]
    (mt, *_) = commands(MT, there)
    flags = read_arguments(
        [*mt, *small(images, *ONE_EPOCH), "--meta_model", str(tmp_path / "meta.pth")], {}
    )
    leaves = dict(read_command(flags, {}).resolved.config.leaves())
    assert leaves["modular.meta_depths"] == [1, 1, 1, 1]


def refused(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        train(words, {})
    return in_flags(str(caught.value))


def test_modules_that_do_not_belong(there: Path, images: Path, tmp_path: Path) -> None:
    files = [f"log_dir/MT_tiny_{index}/finished_checkpoint.pth" for index in range(4)]
    ft = [*commands(FT, there)[0], *small(images, *ONE_EPOCH), "--output_dir", str(tmp_path / "o")]

    def modules(*paths: str) -> str:
        return refused(*ft, "--incubation_models", *paths)

    twice = modules(files[1], files[1], files[2], files[3])
    assert_says(twice, "--incubation_models", "both", "log_dir/MT_tiny_1")
    assert_says(modules(*files[:3]), "--incubation_models", "4 modules", "3")
    other = torch.load(files[2], weights_only=True)
    other["model_stages"][0]["blocks.0.norm1.bias"][0] += 1
    torch.save(other, tmp_path / "other.pth")
    said = modules(files[0], files[1], str(tmp_path / "other.pth"), files[3])
    assert_says(said, "--incubation_models", "module 2", tmp_path / "other.pth")
    assert "module 1" in refused(*ft, "--divided_depths", "2", "3", "2", "1")
    (mt, *_) = commands(MT, there)
    mt = [*mt, *small(images, *ONE_EPOCH), "--output_dir", str(tmp_path / "m")]
    said = refused(*mt, "--divided_depths", "2", "1", "1", "2")
    assert_says(said, "log_dir/PT_tiny/finished_checkpoint.pth", "1 1 1 1", "module 0")
    assert_says(refused(*mt, "--meta_model", "nowhere.pth"), "--meta_model", "nowhere.pth")
    said = refused(*mt, "--input-size", "64")
    assert_says(said, "--input-size=32", "--input-size is 64")
    assert not (tmp_path / "m" / "run" / "checkpoints").exists()


@pytest.mark.parametrize("there_already", [False, True])
def test_a_failed_start_leaves_no_folder(images: Path, tmp_path: Path, there_already: bool) -> None:
    words = ["--phase", "E2E", "--model", "deit_tiny_patch16_224", "--divided_depths", "1"]
    words += small(images, "--override", "warm_start.path=nowhere.pth", *ONE_EPOCH)
    output = tmp_path / "outputs" / "run"
    if there_already:
        output.mkdir(parents=True)
    assert "nowhere.pth" in refused(*words, "--output_dir", str(output))
    assert list(tmp_path.rglob("*")) == ([output.parent, output] if there_already else [])
    (tmp_path / "file").write_text("of others")
    assert "--output_dir" in refused(*words, "--output_dir", str(tmp_path / "file"))


def test_the_same_command_goes_on_bit_by_bit(images: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, more epochs than nine, a file of an epoch lost."""
    words = ["--phase", "E2E", "--model", "deit_tiny_patch16_224", "--divided_depths", "1"]
    words += ["--batch_size", "8", "--epochs", "11", "--warmup-epochs", "1", "--save_ckpt_num", "3"]
    words += small(images, "--override", "log.every_steps=1", "--save_freq", "2")
    assert train([*words, "--output_dir", str(tmp_path / "whole")], {}) == 0
    cut = tmp_path / "cut"
    metrics = cut / "run" / "metrics.jsonl"

    def interrupt() -> None:
        while not metrics.exists() or metrics.read_text().count('"lr"') < 20:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Preempted) as stopped:
        train([*words, "--output_dir", str(cut)], {})
    assert_says(in_flags(str(stopped.value)), "same command")
    assert 20 <= stopped.value.step < 33
    assert train([*words, "--output_dir", str(cut)], {}) == 0
    assert_bit_equal(*(read_checkpoint(tmp_path / name / "run", 33) for name in ("whole", "cut")))
    assert_bit_equal(
        *(weights_of(tmp_path / n / "finished_checkpoint.pth") for n in ("whole", "cut"))
    )
    assert (cut / "log.txt").read_text() == (tmp_path / "whole" / "log.txt").read_text()
    epochs = [json.loads(line)["epoch"] for line in (cut / "log.txt").read_text().splitlines()]
    assert epochs == list(range(11))
    # The newest by number and not by name, where 9 is above 10.
    left = sorted(path.name for path in cut.glob("checkpoint-*.pth"))
    assert left == ["checkpoint-10.pth", "checkpoint-7.pth", "checkpoint-9.pth"]
    # A file that a full disk has kept from being written is written by the same command.
    (cut / "finished_checkpoint.pth").unlink()
    assert train([*words, "--output_dir", str(cut)], {}) == 0
    assert (cut / "finished_checkpoint.pth").is_file()


@pytest.mark.long
def test_two_processes_make_the_run_of_one(there: Path, images: Path, tmp_path: Path) -> None:
    """As the launcher starts them; one module is trained, from a meta model's run."""
    shutil.copy(SURFACE / "main.py", tmp_path)
    words = [*commands(MT, there)[1], *small(images, "--epochs", "1", "--warmup-epochs", "0")]
    words += ["--batch_size", "2", "--meta_model", str(there / "log_dir" / "PT_tiny" / "run")]
    words += ["--no-repeated-aug", "--mixup", "0", "--cutmix", "0", "--drop-path", "0"]
    launcher = "-W ignore -m torch.distributed.launch --nproc_per_node=2 --use_env"
    launcher += f" --master_port={free_port()} main.py"
    done = subprocess.run(
        [sys.executable, *launcher.split(), *words, "--output_dir", "two", "--world_size", "2"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one = [*words, "--batch_size", "4", "--output_dir", str(tmp_path / "one")]
    assert train(one, {}) == 0
    losses = [[row["loss"] for row in read_metrics(tmp_path / n / "run")] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(losses[0]) == TRAIN // 8
    assert (tmp_path / "two" / "finished_checkpoint.pth").is_file()
