"""The configs that come with the surface, and what is made of their values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmselfsup_keys
from errors import refuses
from quadriga.contracts import Progress
from quadriga.errors import UserError
from quadriga.schedules.chained import ChainedConfig
from quadriga.surfaces.mmselfsup.arguments import (
    SHIPPED,
    config_file,
    default_work_dir,
    read_arguments,
)
from quadriga.surfaces.mmselfsup.config import read_config
from quadriga.surfaces.mmselfsup.learning_rate import batch_of_name, record_of
from quadriga.surfaces.mmselfsup.paramwise import optimizer_rules, rule_of
from quadriga.surfaces.mmselfsup.processes import first_host, set_port, set_up
from quadriga.surfaces.mmselfsup.read import read_given
from quadriga.surfaces.mmselfsup.schedule import Units, schedule_of
from quadriga.surfaces.mmselfsup.to_config import config_tree, lengths_of, with_rules
from quadriga.surfaces.mmselfsup.walk import check, plain

MAE = "configs/selfsup/mae/mae_vit-base-p16_8xb512-coslr-400e_in1k.py"
IMAGENET = 1_281_167
ORIGINAL = list(
    (Path(__file__).parents[3] / ".oracle" / "mmselfsup").glob(
        "lib/python3*/site-packages/mmselfsup/.mim/configs"
    )
)
"""The folder of the reference's configs, where `make oracle` has installed it."""
NAMES = sorted(path.stem for path in SHIPPED.glob("selfsup/mae/*.py"))


def resolved(name: str, *options: str, on_cpu: bool = False) -> dict[str, Any]:
    words = [f"configs/selfsup/mae/{name}.py", *(["--cfg-options", *options] if options else [])]
    given = read_given(read_arguments(words))
    return run_of(name, given.config, given.options, on_cpu)


def run_of(
    name: str, config: dict[str, Any], options: tuple[str, ...] = (), on_cpu: bool = False
) -> dict[str, Any]:
    lengths = lengths_of(config, IMAGENET, 8)
    record = record_of(name, config, options, None)
    return with_rules(config_tree(config, name, lengths, record, on_cpu), config).as_dict()


def test_the_tutorials_config_is_the_specification() -> None:
    """ViT-B/16 and its decoder, AdamW, 40 of 400 epochs of warm-up, 313 iterations in an epoch."""
    found = resolved(Path(MAE).stem)
    assert (
        found["model"].items()
        >= {
            **{"kind": "vit", "image_px": 224, "patch_px": 16, "width": 768, "depth": 12},
            **{"heads": 12, "mlp_ratio": 4.0, "norm_eps": 1e-6, "qkv_bias": True, "drop_path": 0.0},
            **{"positions": "sincos", "class_token": True},
        }.items()
    )
    assert found["objective"] == {
        **{"kind": "mae", "mask_ratio": 0.75, "decoder_width": 512, "decoder_depth": 8},
        **{"decoder_heads": 16, "normalise_pixels": True},
    }
    views = found["views"]
    assert (views["image_px"], views["crop_scale"]) == (224, [0.2, 1.0])
    assert (views["flip_probability"], views["interpolation"]) == (0.5, "bicubic")
    assert views["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert views["std"] == pytest.approx([0.229, 0.224, 0.225])
    data = found["data"]
    assert (data["root"], data["files"], data["holdout"]) == (
        *("data/imagenet/train", "data/imagenet/meta/train.txt"),
        0,
    )
    optim = found["optim"]
    assert optim["lr"] == pytest.approx(2.4e-3)
    assert (
        optim.items()
        >= {
            **{"kind": "adamw", "lr_batch": 4096, "lr_scaling": "linear", "betas": [0.9, 0.95]},
            **{"eps": 1e-8, "weight_decay": 0.05, "clip_norm": None, "decay_vectors": False},
        }.items()
    )
    train = found["train"]
    assert (train["batch_size"], train["steps"], train["precision"]) == (4096, 400 * 313, "float32")
    assert found["log"]["every_steps"] == 100
    assert (found["checkpoint"]["every_steps"], found["checkpoint"]["keep"]) == (313, 3)
    assert (found["seed"], found["loader"]["workers"]) == (0, 8)
    warm, cosine = found["schedule"]["curves"]
    assert (warm["form"], warm["start"], warm["end"], warm["every"]) == (
        "linear",
        1e-4,
        40 * 313,
        1,
    )
    assert (cosine["form"], cosine["begin"], cosine["period"]) == ("cosine", 40 * 313, 360 * 313)
    schedule = ChainedConfig.from_dict({k: v for k, v in found["schedule"].items() if k != "kind"})
    factors = [
        schedule.factor(Progress(step, 400 * 313, 4096, IMAGENET))
        for step in (0, 40 * 313 - 1, 40 * 313, 220 * 313, 400 * 313 - 1)
    ]
    assert factors == pytest.approx([1e-4, 1.0, 1.0, 0.5, 0.0], abs=1e-9)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == NAMES[0] else pytest.mark.long) for name in NAMES],
)
def test_each_config_says_what_its_name_says(name: str) -> None:
    arch, epochs, amp = name.split("-")[1], int(name.split("-")[-1].split("e_")[0]), "amp" in name
    sizes = {"base": (768, 12, 16), "large": (1024, 24, 16), "huge": (1280, 32, 14)}[arch]
    found = resolved(name)
    model, train = found["model"], found["train"]
    assert (model["width"], model["depth"], model["patch_px"]) == sizes
    assert (train["steps"], train["batch_size"]) == (epochs * 313, batch_of_name(name))
    assert train["precision"] == ("float16" if amp else "float32")
    warm, cosine = found["schedule"]["curves"]
    assert warm["start"] == (1e-9 if epochs == 800 else 1e-4)
    assert cosine["begin"] + cosine["period"] == cosine["end"] == epochs * 313


def test_the_ten_configs_are_there() -> None:
    assert len(NAMES) == 10


@pytest.mark.long
@pytest.mark.skipif(not ORIGINAL, reason="the reference is not here: make oracle")
def test_the_references_own_files_make_the_same_runs() -> None:
    """Each of its keys is known; what is not of a method that is built is refused by name."""
    (folder,) = ORIGINAL
    packages = {"mmcls": folder.parents[2] / "mmcls" / ".mim" / "configs"}
    for path in sorted(folder.glob("selfsup/*/*.py")):
        config = plain(read_config(path, packages=packages))
        if (SHIPPED / path.relative_to(folder)).is_file() and path.parent.name != "_base_":
            check(config)
            ours = plain(read_config(SHIPPED / path.relative_to(folder)))
            assert run_of(path.stem, config) == run_of(path.stem, ours), path
        elif path.parent.name != "_base_":
            named = (
                ("model.neck.type", "MoCo v1") if path.parent.name == "mocov1" else ("model.type",)
            )
            with refuses(*named, error=UserError):
                check(config)


def test_the_page_of_keys_is_the_table() -> None:
    """python tools/mmselfsup_keys.py writes it."""
    assert mmselfsup_keys.PAGE.read_text(encoding="utf-8") == mmselfsup_keys.page()


Chain = list[dict[str, Any]]

lengths = st.integers(1, 5)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    """A warm-up, then a curve, in epochs, converted or not, or in iterations."""
    by_epoch = draw(st.booleans())
    counted: dict[str, Any] = {"by_epoch": by_epoch}
    if by_epoch:
        counted["convert_to_iter_based"] = draw(st.booleans())
    first, second = draw(lengths), draw(lengths)
    warm = {"type": "LinearLR", "start_factor": draw(st.floats(0.01, 1)), "begin": 0, "end": first}
    after = draw(
        st.sampled_from(
            [
                {"type": "CosineAnnealingLR", "T_max": second, "eta_min": 0.01},
                {"type": "CosineAnnealingLR", "eta_min": 0.0},
                {"type": "PolyLR", "power": 2.0, "eta_min": 0.02},
                {"type": "ExponentialLR", "gamma": 0.7},
                {"type": "MultiStepLR", "milestones": [1, 3], "gamma": 0.5},
                {"type": "ConstantLR", "factor": 0.25},
            ]
        )
    )
    return [{**warm, **counted}, {**after, "begin": first, "end": first + second, **counted}]


EPOCH, PEAK = 3, 0.2


def stepwise(chain: Chain, steps: int) -> list[float]:
    """The rates by the recursive forms, one step after the other: each scheduler changes the rate
    that it finds (mmengine's documentation of parameter schedulers)."""
    rate, found = PEAK, []
    for step in range(steps):
        for one in chain:
            scale, now = 1, step
            if one["by_epoch"]:
                if one["convert_to_iter_based"]:
                    scale = EPOCH
                elif step % EPOCH:
                    continue
                else:
                    now = step // EPOCH
            begin, end = one["begin"] * scale, one["end"] * scale
            if begin <= now < end:
                rate = change(one, rate, now - begin, end - begin, scale)
        found.append(rate)
    return found


def change(one: dict[str, Any], rate: float, t: int, length: int, scale: int) -> float:
    kind, last = one["type"], length - 1
    if kind == "LinearLR":
        start, slope = one["start_factor"], 1 - one["start_factor"]
        if t == 0:
            return rate * start
        return rate * (1 + slope / (last * start + (t - 1) * slope))
    if kind == "ConstantLR":
        factor = one["factor"]
        if t == 0:
            return rate * factor
        return rate / factor if t == last else rate
    if kind == "MultiStepLR":
        return rate * one["gamma"] if t in [m * scale for m in one["milestones"]] else rate
    if t == 0:
        return rate
    if kind == "ExponentialLR":
        return rate * one["gamma"]
    floor = one["eta_min"]
    if kind == "PolyLR":
        return (rate - floor) * (1 - 1 / (last - t + 1)) ** one["power"] + floor
    period = one["T_max"] * scale if "T_max" in one else length
    ratio = (1 + math.cos(math.pi * t / period)) / (1 + math.cos(math.pi * (t - 1) / period))
    return ratio * (rate - floor) + floor


@settings(max_examples=60)
@given(chain=chains())
def test_a_list_of_schedulers_steps_as_their_recursive_forms(chain: Chain) -> None:
    values = schedule_of(chain, Units(EPOCH, 1, PEAK))
    values.pop("kind")
    schedule = ChainedConfig.from_dict(values)
    found = [PEAK * schedule.factor(Progress(step, 40, 1, 3)) for step in range(40)]
    assert found == pytest.approx(stepwise(chain, 40), rel=1e-9, abs=1e-12)


def test_the_longest_part_of_the_references_name_decides() -> None:
    """And then no other rule does; without one a vector decays like the rest."""
    rules = {
        "custom_keys": {"ln": {"decay_mult": 0}, "layers.0.ln1": {"lr_mult": 2}},
        "bias_decay_mult": 0,
        "norm_decay_mult": 0,
    }
    ln1 = "backbone.layers.0.ln1.weight"
    assert rule_of(ln1, "encoder.blocks.0.attention_norm.weight", 1, rules) == (2.0, 1.0)
    other = ln1.replace("0", "1")
    assert rule_of(other, "encoder.blocks.1.attention_norm.weight", 1, rules) == (1.0, 0.0)
    bias = "backbone.patch_embed.projection.bias"
    assert rule_of(bias, "encoder.patch_projection.bias", 1, rules) == (1.0, 0.0)
    assert rule_of(bias, "encoder.patch_projection.bias", 1, {}) == (1.0, 1.0)


def test_rules_that_the_engine_has_no_parts_of_names_for() -> None:
    named = [
        ("encoder.norm.bias", torch.nn.Parameter(torch.zeros(2))),
        ("encoder.class_token", torch.nn.Parameter(torch.zeros(1, 1, 2))),
    ]
    found = optimizer_rules(named, lambda name: None, {"custom_keys": {"token": {"decay_mult": 0}}})
    assert found == {
        "lr_scales": {},
        "no_decay": ["encoder.class_token"],
        "decay_vectors": True,
    }


def test_the_batch_of_record() -> None:
    names = {
        "mae_vit-base-p16_8xb512-coslr-400e_in1k": 4096,
        "byol_resnet50_8xb32-accum16-coslr-200e_in1k": 4096,
        "vit-base-p16_ft-8xb128-coslr-100e_in1k": 1024,
        "config1": None,
        "box8xb512er": None,
    }
    assert {name: batch_of_name(name) for name in names} == names
    config = {"optim_wrapper": {"optimizer": {"lr": 0.1}}}
    mae = Path(MAE).stem
    assert record_of(mae, config, (), 0.1).batch == 4096
    assert record_of(mae, config, (), 0.2).batch is None
    assert record_of(mae, config, ("optim_wrapper.optimizer.lr",), 0.1).batch is None
    assert record_of("config1", config, (), None).batch is None
    own = {**config, "auto_scale_lr": {"base_batch_size": 512}}
    assert record_of("config1", own, (), None).batch == 512


def test_the_batch_counts_processes_and_accumulation() -> None:
    """A step never has more samples than there are images."""
    config = read_given(read_arguments([MAE])).config
    config["optim_wrapper"]["accumulative_counts"] = 2
    found = lengths_of(config, IMAGENET, 4)
    assert (found.batch, found.accumulate, found.epoch_steps) == (4096, 2, 313)
    assert lengths_of(config, 10, 2).batch == 10
    config["train_dataloader"]["drop_last"] = True
    assert lengths_of(config, IMAGENET, 4).epoch_steps == 312
    with refuses("train_dataloader.batch_size", "drop_last"):
        lengths_of(config, 10, 2)


def test_amp_and_a_cpu() -> None:
    assert resolved(NAMES[0], on_cpu=True)["train"]["precision"] == "bfloat16"
    words = [MAE, "--amp"]
    wrapper = read_given(read_arguments(words)).config["optim_wrapper"]
    assert (wrapper["type"], wrapper["loss_scale"]) == ("AmpOptimWrapper", "dynamic")
    amp, fixed = "mae_vit-base-p16_8xb512-amp-coslr-400e_in1k", "optim_wrapper.loss_scale=512"
    assert resolved(amp)["train"]["loss_scale"] is None
    assert resolved(amp, fixed)["train"]["loss_scale"] == 512.0


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (MAE, "work_dirs/selfsup/mae_vit-base-p16_8xb512-coslr-400e_in1k"),
        (f"./{MAE}", "work_dirs/selfsup/mae_vit-base-p16_8xb512-coslr-400e_in1k"),
        (f"/home/me/{MAE}", "work_dirs/selfsup/mae_vit-base-p16_8xb512-coslr-400e_in1k"),
        ("config1.py", "work_dirs/config1"),
        ("own/config1.py", "work_dirs/config1"),
        ("own/deep/config1.py", "work_dirs/deep/config1"),
        ("/home/me/config1.py", "work_dirs/config1"),
    ],
)
def test_the_work_directory_of_a_config(typed: str, expected: str) -> None:
    assert default_work_dir(typed) == Path(expected)


def test_flags_come_before_options_and_the_config(tmp_path: Path) -> None:
    words = [MAE, "--work-dir", "a", "--resume", "b.pth", "--cfg-options", "work_dir=c"]
    given = read_given(read_arguments([*words, "load_from=d", "resume=False"]))
    assert given.work_dir == Path("a")
    assert (given.config["resume"], given.config["load_from"]) == (True, "b.pth")
    assert given.weights == "d"
    assert config_file(MAE).is_file()


def test_processes_of_each_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config's port comes before MASTER_PORT, and 29500 last."""
    monkeypatch.setenv("PATH", "")  # no scontrol
    slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_NODELIST": "gpu[07-09,12],cpu3"}
    set_up("slurm", slurm)
    assert slurm["MASTER_ADDR"] == "gpu07" == first_host("gpu07")
    set_port({}, slurm)
    assert slurm["MASTER_PORT"] == "29500"
    set_port({"env_cfg": {"dist_cfg": {"port": 29501}}}, slurm)
    assert slurm["MASTER_PORT"] == "29501"
    mpi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "MASTER_ADDR": "a"}
    set_up("mpi", mpi)
    assert (mpi["RANK"], mpi["WORLD_SIZE"]) == ("1", "2")
    del mpi["MASTER_ADDR"]
    with refuses("MASTER_ADDR"):
        set_up("mpi", mpi)
    lent = {
        **{"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"},
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    set_up("pytorch", lent)
    set_port({"env_cfg": {"dist_cfg": {"port": 2}}}, lent)
    assert (lent["MASTER_PORT"], lent["TORCHELASTIC_USE_AGENT_STORE"]) == ("2", "False")
    with refuses("slurm_train.sh"):
        set_up("slurm", {})
