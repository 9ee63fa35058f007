"""An export computes what the model computes, or it does not exist."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from errors import assert_command_refused, assert_says, refuses
from quadriga.cli.entry import run
from quadriga.distributed.environment import SINGLE
from quadriga.engine.build import build_objective
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.evaluate import load_objective
from quadriga.engine.logs.console import Console
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.run_config import CheckpointConfig, RunConfig
from quadriga.export import huggingface, onnx, safetensors, timm
from quadriga.export.arguments import hf_arguments, timm_arguments
from quadriga.export.export import ExportRequest, export
from quadriga.export.safetensors import rebuild
from quadriga.export.subject import Check, Subject, greatest_difference, keyed_images, read_back
from tiny import read_checkpoint, tiny_run
from trained_executor import Trained

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    assert run(tiny_run(folder, 2, "checkpoint.every_steps=1", "model.pool=class")) == 0
    return folder


def config_of(folder: Path) -> RunConfig:
    return RunDirectory(folder).read_config().config


def disturbed(config: RunConfig, part: Any = "encoder") -> Subject:
    """A model whose biases and norms are no zeros and ones, where a mistake could hide."""
    objective = build_objective(config, torch.device("cpu"), 3)
    with torch.no_grad():
        for tensor in objective.state_dict().values():
            tensor += 0.1 * torch.linspace(-1, 1, tensor.numel()).view(tensor.shape)
    return Subject(config=config, objective=objective.eval(), part=part, step=1, weights="raw")


def refused(words: list[Any], capsys: Capture, *fragments: object) -> None:
    assert_command_refused(["checkpoint", "export", *words], capsys, *fragments)


def test_own_names_rebuild_the_model(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    objective, _, _ = load_objective(config_of(trained), trained, SINGLE, Console())
    for part, expected in (("encoder", objective.encoder), ("all", objective)):
        path = tmp_path / f"{part}.safetensors"
        words = ["checkpoint", "export", str(trained), str(path), "--to", "safetensors"]
        assert run([*words, "--part", part]) == 0
        out = capsys.readouterr().out
        assert_says(out, "0.0e+00", path)
        again = rebuild(path)
        assert type(again) is type(expected)
        for (name, tensor), value in zip(
            again.state_dict().items(), expected.state_dict().values(), strict=True
        ):
            assert torch.equal(tensor, value), name
    assert sorted(os.listdir(tmp_path)) == ["all.safetensors", "encoder.safetensors"]


@pytest.mark.parametrize(
    ("recipe", "evaluated"),
    [("dino_digits", "teacher"), pytest.param("moco_v3_digits", "student", marks=pytest.mark.long)],
)
def test_of_student_and_teacher_the_evaluated_one_is_exported(
    tmp_path: Path, capsys: Capture, recipe: str, evaluated: str
) -> None:
    small = ["model.width=16", "model.depth=1", "model.heads=2", "objective.hidden_width=16"]
    small += ["objective.prototypes=8"] if recipe == "dino_digits" else ["objective.output_width=8"]
    words = ["train.steps=1", "train.batch_size=4", "train.device=cpu", "train.ranks=1"]
    words += ["evaluation.protocols=[]", "loader.workers=0", "schedule.warmup_epochs=0"]
    assert run(["train", recipe, *small, *words, "--work-dir", str(tmp_path / "run")]) == 0
    held = read_checkpoint(tmp_path / "run", 1)
    names = {"student": "objective.encoder.", "teacher": "objective.teacher_encoder."}
    for options, network in ([], evaluated), (["--part", "student"], "student"):
        capsys.readouterr()
        output = str(tmp_path / "out.safetensors")
        command = ["checkpoint", "export", str(tmp_path / "run"), output, "--to", "safetensors"]
        assert run([*command, "--force", *options]) == 0
        for name, tensor in load_file(output).items():
            assert torch.equal(tensor, held[names[network] + name]), name
        assert f"{network}'s encoder" in capsys.readouterr().out
        with safe_open(output, "pt") as opened:
            assert json.loads(opened.metadata()["quadriga"])["network"] == network


def test_a_teacher_is_refused_where_there_is_none(trained: Path, capsys: Capture) -> None:
    refused(
        [trained, trained / "x.safetensors", "--to", "safetensors", "--part", "teacher"],
        capsys,
        "--part",
        "no teacher",
    )


def test_moving_averages_are_exported(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    words = [trained, tmp_path / "a.safetensors", "--to", "safetensors", "--weights", "ema"]
    refused(words, capsys, "--weights", "raw", "ema", "ema.decay")
    config = config_of(trained)
    executor = Trained(disturbed(config).objective)
    with CheckpointStore(tmp_path / "checkpoints", SINGLE, CheckpointConfig(), "h") as store:
        folder = store.save(7, executor)
    words[0] = folder
    refused(words, capsys, folder, "--config")
    words += ["--config", trained / "config.json"]
    assert run(["checkpoint", "export", *map(str, words)]) == 0
    tensors = load_file(tmp_path / "a.safetensors")
    ema = executor.ema()
    for name in ("norm.weight", "blocks.1.mlp.hidden.bias"):
        assert torch.equal(tensors[name], ema[f"encoder.{name}"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("normalise", ["true", "false"])
@pytest.mark.parametrize("part", ["encoder", "all"])
def test_hugging_face_computes_the_same(
    part: Any, normalise: str, trained: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra quadriga[hf]")
    config = config_of(trained).override(
        {"objective.normalise_pixels": normalise, "model.pool": "mean"}
    )
    subject, form = disturbed(config, part), huggingface.HuggingFaceFormat()
    form.check(config, part)
    form.write(subject, tmp_path / "hf")
    check = form.verify(subject, tmp_path / "hf")
    print(check)
    assert f"with transformers {transformers.__version__}" in str(check)
    assert check.difference < 1e-5
    # Without the library the same file is read back by this project.
    with torch.no_grad():
        compare = huggingface._encoder_read_back if part == "encoder" else None
        compare = compare or huggingface._objective_read_back
        assert greatest_difference(compare(subject, tmp_path / "hf")) < 1e-6
    cls = transformers.AutoModel if part == "encoder" else transformers.ViTMAEForPreTraining
    model = cls.from_pretrained(tmp_path / "hf")
    assert model.config.quadriga["part"] == part
    name = f"{'vit.' if part == 'all' else ''}layernorm.weight"
    assert torch.equal(model.state_dict()[name], subject.vit.norm.weight)
    # A weight that was changed afterwards does not pass.
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors[name] = tensors[name] * 1.01
    huggingface.export_weights(subject.module, tmp_path / "hf" / "model.safetensors", "hf")
    assert form.verify(subject, tmp_path / "hf").passed
    safetensors.write_tensors(tensors, tmp_path / "hf" / "model.safetensors")
    assert not form.verify(subject, tmp_path / "hf").passed


@pytest.mark.parametrize(
    "changes",
    [
        {"registers": 2, "layer_scale": 0.1, "pool": "mean"},
        {"class_token": False, "pool": "mean"},
        {"qkv_bias": False, "positions": "learned"},
    ],
)
def test_timm_reads_back(changes: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    config = config_of(trained)
    config = config.override({f"model.{name}": value for name, value in changes.items()})
    subject, form = disturbed(config), timm.TimmFormat()
    form.check(config, "encoder")
    form.write(subject, tmp_path / "vit.safetensors")
    assert form.verify(subject, tmp_path / "vit.safetensors").passed
    described = json.loads((tmp_path / "vit.json").read_text())
    assert described["arguments"] == timm_arguments(subject.vit.config)
    images = keyed_images(subject.vit.config)
    again = read_back(subject.vit.config, tmp_path / "vit.safetensors")
    torch.testing.assert_close(again.features(images), subject.vit.features(images))


def test_onnx_computes_the_same(trained: Path, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (the extra quadriga[onnx])")
    changes = {"model.registers": 2, "model.layer_scale": 0.1, "model.pool": "mean"}
    subject = disturbed(config_of(trained).override(changes))
    form = onnx.OnnxFormat()
    form.check(subject.config, "encoder")
    for limit in (onnx.ONE_FILE_BYTES, 0):
        onnx.ONE_FILE_BYTES, before = limit, onnx.ONE_FILE_BYTES
        target = tmp_path / f"{limit}.onnx"
        try:
            form.write(subject, target)
        finally:
            onnx.ONE_FILE_BYTES = before
        assert (tmp_path / f"{limit}.onnx.data").exists() == (limit == 0)
        check = form.verify(subject, target)
        print(check)
        assert check.difference < 1e-5
        assert_says(str(check), "18", "1, 2 and 3")
    # A small model takes the place of a large one: nothing of the old export stays.
    request = ExportRequest(source=trained, output=tmp_path / "0.onnx", to="onnx", force=True)
    assert export(request).files == (request.output,)
    assert not (tmp_path / "0.onnx.data").exists()


def test_a_wrong_export_is_not_kept(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*ignored: Any) -> Check:
        return Check(against="here", difference=float("nan"), tolerance=1.0)

    monkeypatch.setattr(timm.TimmFormat, "verify", fail)
    request = ExportRequest(source=trained, output=tmp_path / "x.safetensors", to="timm")
    with refuses("nan"):
        export(request)
    assert not os.listdir(tmp_path)


def test_nothing_is_replaced_unasked(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    words = [trained, tmp_path / "vit.safetensors", "--to", "timm"]
    (tmp_path / "vit.json").write_text("mine")
    refused(words, capsys, tmp_path / "vit.json", "--force")
    assert (tmp_path / "vit.json").read_text() == "mine"
    assert run(["checkpoint", "export", *map(str, words), "--force"]) == 0
    assert (tmp_path / "vit.json").read_text() != "mine"
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_text("a cat")
    words = [trained, folder, "--to", "hf", "--force"]
    refused(words, capsys, folder, "cat.jpg", "OUTPUT")
    (folder / "cat.jpg").rename(folder / "config.json")
    assert run(["checkpoint", "export", *map(str, words)]) == 0
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert sorted(os.listdir(tmp_path)) == ["photos", "vit.json", "vit.safetensors"]


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (
            ["a", "--to", "tim"],
            ("--to", "safetensors, hf, timm, onnx", "'tim'", "timm"),
        ),
        (["a", "--to", "hf", "--weights", "emma"], ("--weights", "raw, ema", "'emma'", "ema")),
        (
            ["a", "--to", "hf", "--part", "head"],
            ("--part", "teacher, all", "'head'"),
        ),
        (["a.bin", "--to", "safetensors"], ("OUTPUT", ".safetensors", "a.bin")),
        (
            ["a.safetensors", "--to", "timm", "--part", "all"],
            ("--part", "timm", "--to hf or safetensors"),
        ),
        (["a.onnx", "--to", "onnx", "--part", "all"], ("--part", "onnx", "--to hf or safetensors")),
    ],
)
def test_wrong_words(
    words: list[str], fragments: tuple[object, ...], trained: Path, tmp_path: Path, capsys: Capture
) -> None:
    output, *rest = words
    refused([trained, tmp_path / output, *rest], capsys, *fragments)
    assert not os.listdir(tmp_path)


def test_what_a_layout_cannot_express(trained: Path) -> None:
    model = config_of(trained).model
    for changes, fragment in (
        ({"registers": 2}, "model.registers=2"),
        ({"layer_scale": 0.1}, "model.layer_scale=0.1"),
        ({"class_token": False, "pool": "mean"}, "model.class_token=false"),
    ):
        with refuses("hf", fragment, "timm and safetensors", "--to"):
            hf_arguments(model.override(changes))
    with refuses("timm", "model.norm_eps=1e-05", "hf and safetensors", "--to"):
        timm_arguments(model.override({"norm_eps": 1e-5}))


def test_damaged_and_missing_sources(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    output = tmp_path / "x.safetensors"
    for folder in (copy / "checkpoints").iterdir():
        shard = next(folder.glob("*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:-1])
    words = [output, "--to", "safetensors"]
    damaged = copy / "checkpoints" / "step_00000002"
    refused([copy, *words], capsys, damaged, "damaged", "--resume")
    refused([damaged, *words], capsys, damaged, "damaged", "shard_00000_000.safetensors")
    refused([tmp_path / "absent", *words], capsys, tmp_path / "absent")
    other = tmp_path / "other.json"
    text = (trained / "config.json").read_text().replace('"depth": 2', '"depth": 1')
    other.write_text(text)
    refused([trained, *words, "--config", other], capsys, trained, "model", "--config")
    other.write_text("{}")
    refused([trained, *words, "--config", other], capsys, "--config", "config.json")
    assert not output.exists()


def test_files_that_do_not_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    safetensors.write_tensors({"weight": torch.zeros(2)}, path)
    with refuses(path, "load_weights"):
        rebuild(path)
    path.write_bytes(b"no")
    with refuses(path, "safetensors"):
        rebuild(path)
    with refuses(tmp_path, "must be a file", "folder"):
        rebuild(tmp_path)
