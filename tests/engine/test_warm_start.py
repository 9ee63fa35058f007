"""A run that starts from weights has exactly those weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from errors import refuses
from quadriga import randomness
from quadriga.config.base import construct
from quadriga.contracts import Executor, ObjectiveConfig
from quadriga.distributed.environment import SINGLE
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.initial_weights import check_warm_start, warm_start
from quadriga.engine.run_config import CheckpointConfig, WarmStartConfig
from quadriga.methods.mae import MAE, MAEConfig
from quadriga.methods.supervised import Supervised, SupervisedConfig
from quadriga.models.parts.positions import interpolate_table
from quadriga.models.vit import ViT, ViTConfig
from quadriga.weights import WeightReport, export_weights
from ranks import run_ranks
from trained_executor import Trained

MODEL = ViTConfig(image_px=16, patch_px=4, width=16, depth=1, heads=2)


def mae(seed: int, **changes: Any) -> MAE:
    method = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)
    objective = method.build(MODEL.override(changes))
    objective.initialise(seed)
    return objective


def save(run: Path, executor: Executor, *steps: int) -> None:
    with CheckpointStore(run / "checkpoints", SINGLE, CheckpointConfig(keep=9), "h") as store:
        for step in steps:
            store.save(step, executor)


def start(objective: nn.Module, path: Path, **fields: Any) -> WeightReport:
    config = WarmStartConfig(path=str(path), **fields)
    check_warm_start(config)
    report = warm_start(config, objective, SINGLE)
    assert report is not None
    return report


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, tensor), value in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, value), name


@pytest.mark.parametrize("place", [".", "checkpoints", "checkpoints/step_00000020"])
def test_a_run_and_a_checkpoint_give_the_same_weights(place: str, tmp_path: Path) -> None:
    source, objective = mae(1), mae(2)
    save(tmp_path, Trained(mae(3)), 10)
    save(tmp_path, Trained(source), 20)
    report = start(objective, tmp_path / place)
    assert report.complete
    assert_same(objective, source)
    assert report.path == tmp_path / "checkpoints" / "step_00000020"
    assert "step 20, SHA-256 " in str(report)


def test_moving_averages_replace_parameters_and_no_buffer(tmp_path: Path) -> None:
    source, objective = mae(1), mae(2)
    executor = Trained(source)
    save(tmp_path, executor, 10)
    report = start(objective, tmp_path, weights="ema")
    assert "moving average" in str(report)
    for name, ema in executor.ema().items():
        assert torch.equal(objective.get_parameter(name), ema), name
    assert torch.equal(objective.encoder.positions, source.encoder.positions)
    save(tmp_path / "other", Trained(source, has_ema=False), 10)
    for function in (check_warm_start, lambda c: warm_start(c, objective, SINGLE)):
        with refuses(tmp_path / "other", "ema.decay", "warm_start.weights=raw"):
            function(WarmStartConfig(path=str(tmp_path / "other"), weights="ema"))


def test_no_older_checkpoint_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    save(tmp_path, Trained(mae(1)), 10)
    save(tmp_path, Trained(mae(3)), 20)
    shard = next((tmp_path / "checkpoints" / "step_00000020").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    for path in (tmp_path, shard.parent):
        with refuses("step_00000020", "checksum", "name another"):
            start(mae(2), path)
    assert start(mae(2), shard.parent.with_name("step_00000010")).complete
    (tmp_path / "config.json").write_text("{}")
    with refuses("step_00000020", "quadriga train", tmp_path / "config.json", "--resume"):
        start(mae(2), tmp_path)
    shard.parent.with_name("step_00000010").rename(tmp_path / "elsewhere")
    with refuses("step_00000020", "remove it", "--resume"):
        start(mae(2), tmp_path)


@pytest.mark.parametrize("layout", ["quadriga", "timm", "hf"])
def test_a_file_of_weights(layout: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    export_weights(mae(1), path, layout)
    objective = mae(2)
    assert start(objective, path).complete
    assert_same(objective, mae(1))


class Contrastive(nn.Module):
    """Another method: the same encoder, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MODEL.build()
        self.projection = nn.Linear(16, 4)


def test_another_method_gets_the_encoder(tmp_path: Path) -> None:
    source, other = mae(1), Contrastive()
    save(tmp_path, Trained(source), 10)
    with torch.no_grad():
        other.projection.weight.fill_(0.25)
    with refuses("2 missing", "projection.weight", "warm_start.strict=false"):
        start(other, tmp_path)
    report = start(other, tmp_path, strict=False)
    assert report.missing == ("projection.weight", "projection.bias")
    assert len(report.unexpected) == len(source.decoder.state_dict())
    assert "unexpected: decoder." in str(report)
    assert_same(other.encoder, source.encoder)
    assert (other.projection.weight == 0.25).all()


def test_another_image_size(tmp_path: Path) -> None:
    source = mae(1)
    save(tmp_path, Trained(source), 10)
    larger = mae(2, image_px=24)
    with refuses("encoder.positions", "(37, 16)", "warm_start.interpolate=true"):
        start(larger, tmp_path, interpolate=False)
    report = start(larger, tmp_path)
    assert sorted(report.reshaped) == ["decoder.positions", "encoder.positions"]
    expected = interpolate_table(source.encoder.positions, (6, 6), prefix=1)
    assert torch.equal(larger.encoder.positions, expected)


def test_another_width_keeps_its_random_values(tmp_path: Path) -> None:
    save(tmp_path, Trained(mae(1)), 10)
    wider, fresh = mae(2, mlp_ratio=8), mae(2, mlp_ratio=8)
    with refuses("encoder.blocks.0.mlp.hidden.weight"):
        start(wider, tmp_path)
    assert_same(wider, fresh)
    report = start(wider, tmp_path, strict=False)
    assert len(report.kept) == 6
    for name, tensor in wider.state_dict().items():
        expected = fresh if name in report.kept else mae(1)
        assert torch.equal(tensor, expected.state_dict()[name]), name


def test_what_can_be_told_before_any_process(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "run" / "checkpoints" / "step_00000010").mkdir(parents=True)
    export_weights(mae(1), tmp_path / "weights.safetensors")
    check_warm_start(WarmStartConfig())
    for name, weights, *fragments in (
        ("absent", "raw", "warm_start.path", tmp_path / "absent"),
        ("absent.pth", "raw", "warm_start.path", tmp_path / "absent.pth"),
        ("notes.txt", "raw", "warm_start.path", ".safetensors"),
        ("empty", "raw", "warm_start.path", tmp_path / "empty", "run"),
        ("run", "raw", "warm_start.path", "step_00000010", "manifest.json"),
        ("weights.safetensors", "ema", "warm_start.weights", "raw", "ema"),
    ):
        config = WarmStartConfig(path=str(tmp_path / name), weights=weights)
        with refuses(*fragments):
            check_warm_start(config)
    assert warm_start(WarmStartConfig(), mae(1), SINGLE) is None


def test_two_ranks_get_the_same_weights(tmp_path: Path) -> None:
    save(tmp_path, Trained(mae(1)), 10)
    worker = Path(__file__).with_name("warm_start_worker.py")
    results = run_ranks([sys.executable, str(worker), str(tmp_path)], world_size=2, timeout=120)
    for result in results:
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-2:] == ["equal", "no checkpoint"]


def test_float16_files_are_converted(tmp_path: Path) -> None:
    encoder = MODEL.build()
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            tensor.normal_(generator=randomness.generator(0, name))
    export_weights(encoder.half(), tmp_path / "half.safetensors")
    objective = mae(2)
    report = start(objective, tmp_path / "half.safetensors", strict=False)
    assert isinstance(objective.encoder, ViT)
    assert all(name.startswith("decoder.") for name in report.missing)
    for name, tensor in objective.encoder.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, encoder.state_dict()[name].float()), name


def classifier(seed: int) -> Supervised:
    objective = SupervisedConfig(classes=3).build(MODEL)
    objective.initialise(seed)
    return objective


def test_the_encoder_alone_fills_another_methods_encoder(tmp_path: Path) -> None:
    source, objective, before = mae(1), classifier(2), classifier(2)
    save(tmp_path, Trained(source), 10)
    assert start(objective, tmp_path, part="encoder").complete
    assert_same(objective.encoder, source.encoder)
    assert_same(objective.head, before.head)
    for layout in ("quadriga", "timm", "hf"):
        file, objective = tmp_path / f"{layout}.safetensors", classifier(2)
        export_weights(source, file, layout)  # type: ignore[arg-type]
        assert start(objective, file, part="encoder").complete
        assert_same(objective.encoder, source.encoder)
    other = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)
    save(tmp_path / "deep", Trained(other.build(MODEL.override({"depth": 2}))), 10)
    with refuses("unexpected", "warm_start.strict"):
        start(classifier(2), tmp_path / "deep", part="encoder")
    with refuses("warm_start.part", "teacher"):
        start(classifier(2), tmp_path, part="teacher")


def test_the_teachers_encoder_or_the_students(tmp_path: Path) -> None:
    small = {"kind": "dino", "prototypes": 8, "hidden_width": 8, "bottleneck_width": 4}
    source: Any = construct(ObjectiveConfig, small).build(MODEL)  # type: ignore[type-abstract]
    with torch.no_grad():
        for parameter in source.teacher_encoder.parameters():
            parameter += 1
    export_weights(source, tmp_path / "dino.safetensors")
    for part, expected in (("teacher", source.teacher_encoder), ("encoder", source.encoder)):
        objective = classifier(2)
        start(objective, tmp_path / "dino.safetensors", part=part)
        assert_same(objective.encoder, expected)
