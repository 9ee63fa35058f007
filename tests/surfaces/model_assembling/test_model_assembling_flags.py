"""Every flag of the documented model-assembling command, as values of the config; nothing runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from assembling_files import make_images, small

from errors import assert_says
from quadriga.contracts import Progress
from quadriga.engine.build import build_on_meta
from quadriga.engine.run_config import RunConfig
from quadriga.engine.run_plan import make_plan
from quadriga.errors import UserError
from quadriga.methods.supervised import SupervisedConfig
from quadriga.surfaces.model_assembling.flags import parser, read_flags
from quadriga.surfaces.model_assembling.main import in_flags, read_arguments, read_command, train
from quadriga.surfaces.model_assembling.models import MODELS, find_model
from quadriga.surfaces.model_assembling.to_config import config_tree, with_length

IMAGENET = 1_281_167
DOCUMENTED = (
    "batch_size epochs model input-size drop drop-path opt opt-eps opt-betas clip-grad momentum "
    "weight-decay sched lr lr-noise lr-noise-pct lr-noise-std warmup-lr min-lr decay-epochs "
    "decay-rate dr warmup-epochs cooldown-epochs patience-epochs color-jitter aa smoothing "
    "train-interpolation repeated-aug no-repeated-aug reprob remode recount resplit mixup cutmix "
    "cutmix-minmax mixup-prob mixup-switch-prob mixup-mode teacher-model teacher-path "
    "distillation-type distillation-alpha distillation-tau finetune data-path data-set "
    "inat-category output_dir device seed start_epoch eval dist-eval num_workers pin-mem "
    "no-pin-mem world_size dist_url phase divided_depths idx meta_model incubation_models "
    "update_freq use_amp save_ckpt_num save_freq"
).split()
"""The flags of the reference."""
E2E = ("--model", "deit_tiny_patch16_224", "--divided_depths", "1", "2")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


def leaves_of(words: tuple[str, ...], ranks: int = 1, samples: int = IMAGENET) -> dict[str, Any]:
    """Return the values of a run on data that need not be there."""
    flags = read_flags(words)
    tree = with_length(config_tree(flags, ranks), flags, samples, ranks)
    return dict(RunConfig.from_dict(tree).leaves())


def refused(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        train(words, {})
    said = in_flags(str(caught.value))
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_flag_is_known_in_both_spellings(name: str) -> None:
    known = parser()._option_string_actions
    assert f"--{name.replace('-', '_')}" in known
    assert known[f"--{name.replace('-', '_')}"].dest in vars(read_flags(E2E))


@pytest.mark.parametrize("spelling", ["warmup-epochs=3", "warmup_epochs=3", "warmup-ep=3"])
def test_dashes_underscores_and_abbreviations(spelling: str) -> None:
    assert read_flags([*E2E, f"--{spelling}"]).warmup_epochs == 3
    name, _, value = spelling.partition("=")
    assert read_flags([*E2E, f"--{name}", value]).warmup_epochs == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {"model.depth": 3, "model.width": 192, "model.image_px": 224, "seed": 0}),
        ((), {"model.drop_path": 0.1, "model.dropout": 0.0, "model.positions": "learned"}),
        ((), {"objective.kind": "supervised", "objective.smoothing": 0.1, "modular": None}),
        ((), {"optim.kind": "adamw", "optim.lr": 5e-4, "optim.lr_batch": 512, "optim.eps": 1e-8}),
        ((), {"optim.betas": [0.9, 0.999], "optim.weight_decay": 0.05, "optim.clip_norm": None}),
        ((), {"train.batch_size": 64, "train.accumulate": 1, "train.repeats": 3}),
        ((), {"train.device": "auto", "train.precision": "float32", "loader.workers": 10}),
        ((), {"data.kind": "image_folder", "data.root": "data"}),
        ((), {"views.augment": "rand-m9-mstd0.5-inc1", "views.erase_probability": 0.25}),
        ((), {"views.mixup": 0.8, "views.cutmix": 1.0, "views.cutmix_minmax": None}),
        ((), {"views.crop": "resized", "views.interpolation": "bicubic"}),
        ((), {"evaluation.protocols.0.kind": "held_out", "evaluation.protocols.0.batch_size": 96}),
        ((), {"checkpoint.keep": 2, "log.every_steps": 10}),
        (("--input-size", "32"), {"model.image_px": 32, "views.image_px": 32}),
        (("--input-size", "32"), {"views.crop": "padded"}),
        (("--drop", "0.1", "--drop_path", "0"), {"model.dropout": 0.1, "model.drop_path": 0.0}),
        (("--opt", "nesterov", "--momentum", "0.8"), {"optim.kind": "sgd", "optim.momentum": 0.8}),
        (("--opt", "sgd"), {"optim.nesterov": True}),
        (("--opt", "momentum"), {"optim.nesterov": False}),
        (("--opt", "lamb", "--opt-betas", "0.8", "0.9"), {"optim.betas": [0.8, 0.9]}),
        (("--opt", "RMSprop", "--opt-eps", "1e-6"), {"optim.kind": "rmsprop", "optim.eps": 1e-6}),
        (("--opt", "adafactor"), {"optim.kind": "adafactor"}),
        (("--opt", "nadam"), {"optim.kind": "nadam", "optim.weight_decay": 0.05}),
        (("--clip-grad", "1"), {"optim.clip_norm": 1.0}),
        (("--aa", ""), {"views.augment": "none", "views.color_jitter": 0.4}),
        (("--remode", "const", "--recount", "3"), {"views.erase_mode": "const"}),
        (("--cutmix-minmax", "0.2", "0.8"), {"views.cutmix_minmax": [0.2, 0.8]}),
        (("--mixup-mode", "elem"), {"views.mix_mode": "elem"}),
        (("--no-repeated-aug",), {"train.repeats": 1}),
        (("--use_amp", "1"), {"train.precision": "bfloat16"}),
        (("--data-set", "CIFAR"), {"data.kind": "cifar"}),
        (("--data-set", "INAT"), {"data.kind": "inaturalist", "data.year": 2018}),
        (("--data-set", "INAT19", "--inat-category", "genus"), {"data.year": 2019}),
        (("--data-set", "INAT19", "--inat-category", "genus"), {"data.level": "genus"}),
        (("--sched", "step", "--decay-epochs", "100"), {"schedule.kind": "step_decay"}),
        (("--sched", "tanh"), {"schedule.kind": "tanh"}),
        (("--save_ckpt_num", "5", "--save-freq", "3"), {"checkpoint.keep": 5}),
        (("--seed", "7", "--smoothing", "0"), {"seed": 7, "objective.smoothing": 0.0}),
    ],
)
def test_flags_become_values(words: tuple[str, ...], expected: dict[str, Any]) -> None:
    leaves = leaves_of((*E2E, *words))
    assert {name: leaves[name] for name in expected} == expected


def test_the_published_numbers() -> None:
    """625 updates an epoch and a learning rate of 2e-3 in each phase (its table 3.1)."""
    pt = "--phase PT --model vit_base_patch16_224 --divided_depths 1 1 1 1 --batch_size 256".split()
    leaves = leaves_of((*pt, "--epochs", "300", "--drop-path", "0"), ranks=8)
    assert leaves["train.batch_size"] == 2048
    assert leaves["train.steps"] == 300 * 625
    assert leaves["schedule.warmup_steps"] == 20 * 625
    assert leaves["checkpoint.every_steps"] == 625
    ft = "--divided_depths 3 3 3 3 --batch_size 64 --update_freq 4 --epochs 100".split()
    flags = read_flags((*ft, "--warmup-epochs", "10"))
    config = RunConfig.from_dict(with_length(config_tree(flags, 8), flags, IMAGENET, 8))
    plan = make_plan(config, IMAGENET, 8)
    assert plan.lr == pytest.approx(2e-3)
    assert (plan.evaluate_every, plan.checkpoint_every) == (625, 625)

    def rate(step: int) -> float:
        return plan.lr * config.schedule.factor(Progress(step, 62_500, 2048, IMAGENET))

    assert rate(0) == pytest.approx(1e-6)
    assert rate(6249) == pytest.approx(1e-6 + (2e-3 - 1e-6) * 6249 / 6250)
    # min + (lr - min) (1 + cos(pi t / E)) / 2, the horizon being the whole run.
    for epoch in (10, 50, 99):
        cosine = 1e-5 + 0.5 * (2e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / 100))
        assert rate(epoch * 625) == pytest.approx(cosine)


@pytest.mark.parametrize(
    ("name", "depth", "millions"),
    [
        ("vit_base_patch16_224", 12, 86.57),
        ("vit_base_patch16_224", 4, 29.86),
        ("vit_large_patch16_224", 24, 304.33),
        ("vit_large_patch16_224", 4, 52.40),
        ("vit_huge_patch14_224", 32, 631.92),
        ("vit_huge_patch14_224", 4, 81.06),
        ("deit_tiny_patch16_224", 12, 5.72),
        ("deit_small_patch16_224", 12, 22.05),
        ("vit_small_patch16_224", 8, 48.75),
    ],
)
def test_the_models_have_the_published_size(name: str, depth: int, millions: float) -> None:
    model = find_model(name).override({"depth": depth})
    with torch.device("meta"):
        whole = SupervisedConfig(classes=1000).build(model)
    assert sum(p.numel() for p in whole.parameters()) / 1e6 == pytest.approx(millions, abs=5e-3)


def test_the_names_of_the_models() -> None:
    sizes = {name: find_model(name) for name in MODELS}
    assert len(sizes) == 14
    for name, model in sizes.items():
        assert f"patch{model.patch_px}_{model.image_px}" in name
        plain = "huge" in name or "vit_small" in name
        assert (model.qkv_bias, model.norm_eps) == ((False, 1e-5) if plain else (True, 1e-6))
    assert sizes["vit_huge_patch14_392"].grid == 28
    assert sizes["vit_base_patch16_384"].grid == 24


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (
            ("--model", "vit_base_patch16"),
            ("--model", "vit_base_patch16", "vit_base_patch16_384"),
        ),
        (("--model", "deit_base_distilled_patch16_224"), ("--model", "deit_base_patch16_224")),
        (
            ("--model", "vit_base_resnet50d_224"),
            ("--model", "vit_base_resnet50d_224", "convolutional"),
        ),
        (("--resplit",), ("--resplit", "refused")),
        (("--cooldown-epochs", "10"), ("--cooldown-epochs", "refused")),
        (("--patience-epochs", "3"), ("--patience-epochs", "refused")),
        (("--lr-noise", "0.4", "0.9"), ("--lr-noise", "refused")),
        (("--teacher-path", "t.pth"), ("--teacher-path", "refused")),
        (("--distillation-type", "soft"), ("--distillation-type", "refused")),
        (("--start_epoch", "3"), ("--start-epoch", "refused")),
        (("--sched", "plateau"), ("--sched plateau", "refused")),
        (("--sched", "poly"), ("--sched", "cosine, tanh or step")),
        (("--opt", "adamp"), ("--opt adamp", "adamw")),
        (("--opt", "lookahead_adamw"), ("--opt", "lookahead_adamw", "choose adamw")),
        (("--opt", "adamm"), ("--opt", "adamm", "adam")),
        (("--opt", "adafactor", "--opt-eps", "1e-3"), ("--opt-eps", "meaning")),
        (("--finetune", "https://host/x.pth"), ("--finetune", "https://host/x.pth", "downloaded")),
        (("--use_amp", "2"), ("--use_amp", "0 or 1")),
        (("--epochs", "0"), ("--epochs", "at least 1")),
        (("--epochs", "many"), ("--epochs", "integer", "'many'", "main.py --help")),
        (("--lr", "nan"), ("--lr", "at least 0")),
        (("--divided_depths", "2", "0", "2"), ("--divided_depths", "1 block", "2 0 2")),
        (
            ("--phase", "PT", "--divided_depths", "4"),
            ("--divided_depths", "two modules", "PT", "4"),
        ),
        (("--phase", "MT"), ("--idx", "given")),
        (("--phase", "MT", "--idx", "2"), ("--idx", "0 to 1")),
        (("--phase", "MT", "--idx", "1"), ("--meta_model", "given")),
        (("--idx", "1"), ("--idx", "--phase MT", "E2E")),
        (("--incubation_models", "a"), ("--incubation_models", "--phase FT")),
        (("--imitation", "1"), ("--imitation", "--phase MT")),
        (
            ("--phase", "FT"),
            ("--incubation_models", "2 modules", "--divided_depths", "0"),
        ),
        (("--phase", "FT", "--finetune", "x.pth"), ("--finetune", "phase FT")),
        (("--data-path", "nowhere"), ("--data-path", "nowhere")),
        (("--input-size", "30"), ("--input-size", "multiple")),
        (("--batch_size", "64"), ("--data-path", "64 samples")),
        (("--world_size", "8"), ("--world_size", "(1)")),
        (("--dist_url", "tcp://h:1"), ("--dist_url", "env://")),
        (("--aa", "rand-z9"), ("--aa", "'rand-z9'")),
        (("--eval",), ("--eval", "weights")),
        (("--nosuch",), ("--nosuch", "unknown")),
        (("--drop-pth", "0"), ("--drop_pth", "unknown", "--drop_path")),
    ],
)
def test_bad_lines(
    words: tuple[str, ...],
    fragments: tuple[object, ...],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    last = words if words[0] in ("--input-size", "--data-path") else ()
    assert_says(refused(*E2E, *small(images), "--batch_size", "4", *words, *last), *fragments)
    assert not list(tmp_path.iterdir())


def test_the_depths_must_be_given() -> None:
    assert_says(refused("--model", "deit_tiny_patch16_224"), "--divided_depths")


def test_overrides_and_the_hybrids_target(images: Path, tmp_path: Path) -> None:
    """Target depths are those of the module unless they are told; drop paths follow from them."""
    with torch.device("cpu"):
        meta = build_on_meta(RunConfig.from_dict(_tree(read_flags(E2E)))).to_empty(device="cpu")
    torch.save(dict(meta.state_dict()), tmp_path / "meta.pth")
    words = ["--phase", "MT", "--model", "deit_tiny_patch16_224", "--divided_depths", "4", "2"]
    words += ["--idx", "0", "--meta_model", str(tmp_path / "meta.pth"), *small(images)]
    words += ["--batch_size", "4", "--override", "loader.prefetch=2"]
    leaves = dict(read_command(read_arguments(words, {}), {}).resolved.config.leaves())
    assert leaves["modular.depths"] == [4, 4]
    assert leaves["modular.meta_depths"] == [1, 2]
    assert (leaves["model.depth"], leaves["loader.prefetch"]) == (8, 2)
    words += ["--target_depths", "4", "6", "--initialise", "inherit", "--imitation", "0.5"]
    leaves = dict(read_command(read_arguments(words, {}), {}).resolved.config.leaves())
    assert (leaves["modular.depths"], leaves["model.depth"]) == ([4, 6], 10)
    assert (leaves["modular.initialise"], leaves["modular.imitation"]) == ("inherit", 0.5)
    said = refused(*words, "--target_depths", "3", "6")
    assert_says(said, "--target_depths", "4 blocks", "module 0", "3")


def _tree(flags: Any) -> dict[str, Any]:
    tree = with_length(config_tree(flags, 1), flags, IMAGENET, 1)
    return {**tree, "objective": {**tree["objective"], "classes": 3}}
