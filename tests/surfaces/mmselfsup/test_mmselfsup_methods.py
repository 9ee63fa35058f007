"""The methods of two and more views: their configs, their runs, and the names of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from imagenet_files import make_imagenet

from errors import refuses
from quadriga.contracts import ModelConfig, ObjectiveConfig
from quadriga.engine import session
from quadriga.engine.logs.directory import RunDirectory
from quadriga.engine.meters.throughput import Work
from quadriga.methods.byol import BYOLConfig
from quadriga.methods.moco import MoCoConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig
from quadriga.surfaces.mmselfsup import main
from quadriga.surfaces.mmselfsup.arguments import SHIPPED, read_arguments
from quadriga.surfaces.mmselfsup.config import apply_options
from quadriga.surfaces.mmselfsup.learning_rate import record_of
from quadriga.surfaces.mmselfsup.main import in_keys, train
from quadriga.surfaces.mmselfsup.read import read_given
from quadriga.surfaces.mmselfsup.to_config import config_tree, lengths_of, with_rules
from quadriga.weights.load import export_weights, load_weights
from quadriga.weights.names.mmselfsup_methods import method_layout
from tiny import assert_bit_equal, read_checkpoint

IMAGENET = 1_281_167
SIMCLR = "simclr/simclr_resnet50_8xb32-coslr-200e_in1k"
MOCO = "mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k"
BYOL = "byol/byol_resnet50_8xb32-accum16-coslr-200e_in1k"
SIMSIAM = "simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k"
BARLOW = "barlowtwins/barlowtwins_resnet50_8xb256-coslr-300e_in1k"
SWAV = "swav/swav_resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96"
MOCO_V3 = "mocov3/mocov3_resnet50_8xb512-amp-coslr-100e_in1k"
MOCO_V3_VIT = "mocov3/mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k"

STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
USUAL = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
WEAK = {**USUAL, "saturation": 0.2}


def colours(jitter: Mapping[str, float], blur: float, solarise: float = 0.0) -> dict[str, Any]:
    return {
        **{"jitter_probability": 0.8, **jitter, "grey_probability": 0.2},
        **{"blur_probability": blur, "blur_sigma": [0.1, 2.0], "solarise_probability": solarise},
    }


ASYMMETRIC = {"first": colours(WEAK, 1.0), "second": colours(WEAK, 0.1, 0.2)}
EPOCH_10 = {"form": "linear", "start": 1e-4}
FACTS: tuple[tuple[str, int, Mapping[str, Any]], ...] = (
    (
        SIMCLR,
        8,
        {
            "model": {"kind": "resnet", "depth": 50, "zero_init_residual": True},
            "objective": {
                **{"kind": "simclr", "temperature": 0.1, "hidden_width": 2048},
                **{"output_width": 128, "last_affine": True, "statistics_group": 256},
            },
            "views": {"crop_scale": [0.08, 1.0], "every": colours(STRONG, 0.5)},
            "optim": {"kind": "lars", "lr": 0.3, "weight_decay": 1e-6, "momentum": 0.9},
            "curves": (EPOCH_10, {"form": "cosine", "begin": 10, "period": 190, "every": 5005}),
            "train": {"batch_size": 256, "steps": 200 * 5005},
        },
    ),
    (
        MOCO,
        8,
        {
            "model": {"zero_init_residual": False},
            "objective": {
                **{"kind": "moco", "temperature": 0.2, "queue": 65536, "momentum": 0.999},
                **{"hidden_width": 2048, "output_width": 128},
                **{"statistics_group": 16, "shuffled_groups": 2},
            },
            "views": {"crop_scale": [0.2, 1.0], "every": colours(USUAL, 0.5)},
            "optim": {"kind": "sgd", "lr": 0.03, "weight_decay": 1e-4, "momentum": 0.9},
            "curves": ({"form": "cosine", "period": 200, "every": 5004},),
            "train": {"batch_size": 256, "steps": 200 * 5004},
        },
    ),
    (
        BYOL,
        8,
        {
            "objective": {
                **{"kind": "byol", "momentum": 0.99, "hidden_width": 4096, "output_width": 256},
                "statistics_group": 256,
            },
            "views": {"crop_scale": [0.08, 1.0], "interpolation": "bicubic", **ASYMMETRIC},
            "optim": {"kind": "lars", "lr": 4.8, "weight_decay": 1e-6, "lr_batch": 4096},
            "curves": (EPOCH_10, {"form": "cosine", "period": 190, "every": 313}),
            "train": {"batch_size": 4096, "accumulate": 16, "steps": 200 * 313},
        },
    ),
    (
        SIMSIAM,
        8,
        {
            "objective": {"kind": "simsiam", "hidden_width": 512, "output_width": 2048},
            "views": {"crop_scale": [0.2, 1.0], "every": colours(USUAL, 0.5)},
            "optim": {"kind": "sgd", "lr": 0.05, "weight_decay": 1e-4},
            "curves": ({"form": "cosine", "period": 100},),
        },
    ),
    (
        BARLOW,
        8,
        {
            "objective": {
                **{"kind": "barlow_twins", "redundancy_weight": 0.0051, "hidden_width": 8192},
                "output_width": 8192,
            },
            "views": {"crop_scale": [0.08, 1.0], **ASYMMETRIC},
            "optim": {"kind": "lars", "lr": 1.6, "weight_decay": 1e-6},
            "curves": (
                {"form": "linear", "start": 1.6e-4, "end": 10 * 626},
                {"form": "cosine", "floor": 0.001, "period": 290 * 626, "every": 1},
            ),
            "train": {"batch_size": 2048, "steps": 300 * 626},
        },
    ),
    (
        SWAV,
        8,
        {
            "objective": {
                **{"kind": "swav", "prototypes": 3000, "epsilon": 0.05, "temperature": 0.1},
                **{"sinkhorn_iterations": 3, "queue": 3840, "queue_start_epoch": 15},
                **{"frozen_epochs": 5005 / 5004, "hidden_width": 2048, "output_width": 128},
            },
            "views": {
                **{"crop_scale": [0.14, 1.0], "local_scale": [0.05, 0.14], "local_crops": 6},
                **{"image_px": 224, "local_px": 96, "every": colours(STRONG, 0.5)},
            },
            "optim": {"kind": "lars", "lr": 0.6, "weight_decay": 1e-6},
            "curves": ({"form": "cosine", "floor": 1e-3, "every": 1},),
        },
    ),
    (
        MOCO_V3,
        8,
        {
            "objective": {
                **{"kind": "moco_v3", "temperature": 1.0, "momentum": 0.99, "hidden_width": 4096},
                **{"output_width": 256, "freeze_patches": False, "statistics_group": 4096},
            },
            "views": {"crop_scale": [0.2, 1.0], **ASYMMETRIC},
            "optim": {"kind": "lars", "lr": 9.6, "weight_decay": 1e-6},
            "curves": (EPOCH_10, {"form": "cosine", "period": 90 * 313, "every": 1}),
            "train": {"batch_size": 4096, "precision": "float16"},
        },
    ),
    (
        MOCO_V3_VIT,
        16,
        {
            "model": {"kind": "vit", "width": 384, "depth": 12, "heads": 12, "mlp_ratio": 4.0},
            "objective": {
                **{"temperature": 0.2, "momentum": 0.99, "freeze_patches": True},
                "statistics_group": None,
            },
            "views": {"crop_scale": [0.08, 1.0], **ASYMMETRIC},
            "optim": {"kind": "adamw", "lr": 2.4e-3, "weight_decay": 0.1},
            "curves": ({"start": 1e-4, "end": 40 * 313}, {"period": 260 * 313}),
            "train": {"batch_size": 4096, "precision": "float16"},
        },
    ),
)
"""First file of each method, its processes, and what the specification says of it."""


def config_of(name: str, *options: str) -> dict[str, Any]:
    words = [f"configs/selfsup/{name}.py", *(["--cfg-options", *options] if options else [])]
    return read_given(read_arguments(words)).config


def tree_of(name: str, config: dict[str, Any], ranks: int = 8) -> dict[str, Any]:
    stem = Path(name).name
    lengths = lengths_of(config, IMAGENET, ranks)
    return config_tree(config, stem, lengths, record_of(stem, config, (), None), False)


def assert_holds(found: Any, wanted: Any, path: str = "") -> None:
    if isinstance(wanted, Mapping):
        for key, value in wanted.items():
            assert_holds(found[key], value, f"{path}.{key}")
    else:
        assert found == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), path


@pytest.mark.parametrize(
    ("name", "ranks", "facts"),
    [pytest.param(*fact, id=fact[0].partition("/")[2]) for fact in FACTS],
)
def test_the_first_file_of_each_method_is_the_specification(
    name: str, ranks: int, facts: Mapping[str, Any]
) -> None:
    config = config_of(name)
    tree = tree_of(name, config, ranks)
    assert_holds(tree, {key: value for key, value in facts.items() if key != "curves"})
    curves = tree["schedule"]["curves"]
    assert len(curves) == len(facts["curves"])
    for curve, wanted in zip(curves, facts["curves"], strict=True):
        assert_holds(curve, wanted)
    assert tree["views"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert tree["views"]["kind"] == "multi_crop"


@pytest.mark.long
def test_rates_and_decays_of_single_parameters() -> None:
    """LARS leaves out biases and norms, in SwAV nothing; the predictor of SimSiam is constant."""
    found = {
        name: with_rules(tree_of(name, config_of(name)), config_of(name)).optim
        for name in (SIMCLR, BARLOW, SWAV, SIMSIAM, MOCO_V3_VIT)
    }
    for name in (SIMCLR, BARLOW):
        assert (found[name].decay_vectors, "norm" in found[name].no_decay) == (False, True)
    scales = found[BARLOW].lr_scales
    assert set(scales.values()) == {0.024}
    assert all("norm" in name or name.endswith("bias") for name in scales)
    for name in (SWAV, SIMSIAM, MOCO_V3_VIT):
        assert (found[name].decay_vectors, found[name].no_decay) == (True, ())
    assert found[SIMSIAM].constant_lr == ("predictor.",)
    assert found[SIMCLR].lr_scales == found[SIMSIAM].lr_scales == {}


def test_there_is_a_config_for_each_documented_name() -> None:
    found = {path.parent.name for path in SHIPPED.glob("selfsup/*/*.py")}
    assert {name.partition("/")[0] for name, _, _ in FACTS} < found
    assert len([p for p in SHIPPED.glob("selfsup/*/*.py") if p.parent.name != "_base_"]) == 10 + 24


VIEWS = "train_dataloader.dataset.pipeline.1"


def view(place: str, key: str) -> str:
    return f"{VIEWS}.transforms.{place}.{key}"


@pytest.mark.parametrize(
    ("name", "option", "fragments"),
    [
        (
            SIMCLR,
            "train_dataloader.dataset.pipeline.1.num_views=3",
            (f"{VIEWS}.num_views", "2 views"),
        ),
        (
            SIMCLR,
            view("0.3", "channel_weights=(1,1,1)"),
            (f"{VIEWS}.transforms.0.3.channel_weights", "0.587"),
        ),
        (SIMCLR, view("0.1", "type=ColorJitter"), ("RandomFlip", "change it")),
        (SIMCLR, view("0.4", "sigma_max=None"), ("sigma_max",)),
        (SIMCLR, "model.neck.num_layers=3", ("model.neck.num_layers=2",)),
        (SIMCLR, "model.neck.in_channels=512", ("model.neck.in_channels=2048",)),
        (SIMCLR, "model.backbone.base_channels=32", ("model.backbone.base_channels=64",)),
        (MOCO, "model.momentum=0.001", ("model.momentum", "mmpretrain", "0.99")),
        (MOCO, "model.feat_dim=64", ("model.feat_dim=128",)),
        (BYOL, "model.head.predictor.hid_channels=8", ("model.head.predictor.hid_channels=4096",)),
        (BYOL, view("1.0", "size=96"), ("one size", f"{VIEWS}.num_views")),
        (BYOL, view("1.0", "scale=(0.2,1.0)"), ("crop_scale", f"{VIEWS}.transforms")),
        (
            SWAV,
            "model.head.loss.num_crops=[2,4]",
            ("model.head.loss.num_crops", f"{VIEWS}.num_views"),
        ),
        (SWAV, view("1.0", "size=224"), ("small", VIEWS)),
        (SIMSIAM, "custom_hooks.0.type=SwAVHook", ("custom_hooks.0.type", "model.type=SwAV")),
        (MOCO_V3, "model.head.loss.loss_weight=1.0", ("model.head.loss.loss_weight=2.0",)),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    name: str, option: str, fragments: tuple[str, ...]
) -> None:
    config = config_of(name)
    apply_options(config, [option])
    with refuses(*fragments):
        tree_of(name, config)


TINY = (
    *(
        "model.backbone.depth=18",
        "model.backbone.stem_channels=4",
        "model.backbone.base_channels=4",
    ),
    *("model.neck.in_channels=32", "model.neck.hid_channels=16", "model.neck.out_channels=8"),
    *("train_dataloader.num_workers=0", "train_dataloader.batch_size=8"),
    *("train_cfg.max_epochs=1", "optim_wrapper.accumulative_counts=1"),
)
PREDICTOR = (
    *("model.head.predictor.in_channels=8", "model.head.predictor.hid_channels=16"),
    "model.head.predictor.out_channels=8",
)
RUNS: Mapping[str, tuple[str, ...]] = {
    SIMCLR: (),
    MOCO: ("model.feat_dim=8", "model.queue_len=12"),
    BYOL: PREDICTOR,
    SIMSIAM: (*PREDICTOR, "model.neck.hid_channels=8"),
    BARLOW: ("model.head.in_channels=8",),
    SWAV: (
        *("model.head.loss.feat_dim=8", "model.head.loss.num_prototypes=6"),
        *("custom_hooks.0.feat_dim=8", "custom_hooks.0.epoch_queue_starts=0"),
        *("custom_hooks.0.queue_length=12", "custom_hooks.0.frozen_layers_cfg.prototypes=1"),
    ),
    MOCO_V3: PREDICTOR,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_imagenet(tmp_path_factory.mktemp("pictures"))


def words_of(name: str) -> list[str]:
    config = config_of(name)
    places = range(len(config["train_dataloader"]["dataset"]["pipeline"][1]["transforms"]))
    small = name == SWAV
    sizes = [view(f"{i}.0", f"size={96 if small and i == 0 else 64}") for i in places]
    return [f"configs/selfsup/{name}.py", "--cfg-options", *TINY, *RUNS[name], *sizes]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, id=n.partition("/")[0], marks=[] if n == SIMSIAM else pytest.mark.long)
        for n in RUNS
    ],
)
def test_a_run_and_its_weights(
    name: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run by the documented command; its file has the reference's names, and reads back whole."""
    monkeypatch.chdir(pictures)
    patch_reports(monkeypatch)
    assert train([*words_of(name), f"work_dir={tmp_path}"], {}) == 0
    names = assert_file_is_the_run(tmp_path)
    assert {"backbone.conv1.weight", "backbone.layer2.0.downsample.1.bias"} < names
    assert HEADS[name] < names


@pytest.mark.long
def test_a_vision_transformer_of_moco_v3(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patch projection stays as it was drawn, in the file too."""
    monkeypatch.chdir(pictures)
    patch_reports(monkeypatch)
    (tmp_path / "own.py").write_text(
        f"_base_ = '{SHIPPED / 'selfsup' / MOCO_V3_VIT}.py'\n"
        "model = dict(backbone=dict(img_size=32, arch=dict(_delete_=True, embed_dims=16,\n"
        "    num_layers=1, num_heads=2, feedforward_channels=32)), neck=dict(in_channels=16))\n"
    )
    sizes = [view(f"{i}.0", "size=32") for i in range(2)]
    tiny = [word for word in TINY if "backbone" not in word and "in_channels" not in word]
    words = [str(tmp_path / "own.py"), "--cfg-options", *tiny, *PREDICTOR, *sizes]
    assert train([*words, f"work_dir={tmp_path / 'out'}"], {}) == 0
    names = assert_file_is_the_run(tmp_path / "out")
    patches = "patch_embed.projection.weight"
    assert {
        f"backbone.{patches}",
        "neck.bn2.running_mean",
        "head.predictor.bn1.running_var",
    } < names
    assert {f"momentum_encoder.module.0.{patches}", "momentum_encoder.module.1.fc2.weight"} < names


def patch_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "write_report", lambda work_dir: work_dir)
    monkeypatch.setattr(session, "measure_work", lambda *given: Work())


def assert_file_is_the_run(folder: Path) -> set[str]:
    """The file of the last epoch holds the run's weights and optimizer; return its names."""
    content = torch.load(folder / "epoch_1.pth", weights_only=True)
    run = RunDirectory(folder / "run").read_config().config
    built = run.objective.build(run.model)
    assert load_weights(built, folder / "epoch_1.pth").complete
    stored = read_checkpoint(folder / "run", run.train.steps or 0)
    own = {n.removeprefix("objective."): t for n, t in stored.items() if n.startswith("objective.")}
    assert_bit_equal(dict(built.state_dict()), own)
    state = content["optimizer"]["state"]
    for group in content["optimizer"]["param_groups"]:
        shape = content["state_dict"][group["name"]].shape
        for key, tensor in state.get(group["params"][0], {}).items():
            assert key == "step" or tensor.shape == shape
    assert len(state) == len([p for p in built.parameters() if p.requires_grad])
    return set(content["state_dict"])


NECK = {"neck.fc0.weight", "neck.bn0.running_var", "neck.fc1.weight"}
PREDICTS = {"head.predictor.fc0.weight", "head.predictor.bn0.bias", "head.predictor.fc1.weight"}
HEADS: Mapping[str, set[str]] = {
    SIMCLR: {*NECK, "neck.bn1.weight", "neck.bn1.running_mean"},
    MOCO: {"queue", "queue_ptr", "neck.mlp.2.bias", "encoder_k.module.1.mlp.0.weight"},
    BYOL: {*NECK, *PREDICTS, "neck.fc0.bias", "target_net.steps", "target_net.module.0.bn1.bias"},
    SIMSIAM: {*NECK, *PREDICTS, "neck.bn2.running_mean", "head.predictor.fc1.bias"},
    BARLOW: {*NECK, "neck.fc2.weight", "head.bn.running_mean"},
    SWAV: {"neck.projection_neck.0.bias", "neck.projection_neck.3.bias"}
    | {"head.loss.prototypes.weight"},
    MOCO_V3: {*NECK, *PREDICTS, "momentum_encoder.module.1.fc1.weight", "neck.bn1.running_var"},
}
SMALL_NET = ResNetConfig(image_px=32, depth=18, stem_width=2, stem="small")


def test_a_queue_and_biases_that_only_the_reference_has(tmp_path: Path) -> None:
    """The queue begins at its pointer with the oldest key; a norm subtracts a bias before it."""
    moco = MoCoConfig(queue=5, hidden_width=4, output_width=3).build(SMALL_NET)
    file = tmp_path / "moco.pth"
    export_weights(moco, file, "mmselfsup")
    raw = torch.load(file, weights_only=True)
    assert (raw["queue"].shape, int(raw["queue_ptr"])) == ((3, 5), 0)
    assert torch.equal(raw["queue"][:, 4], moco.queue[0])
    moved = {**raw, "queue": raw["queue"].roll(2, 1), "queue_ptr": torch.tensor([2])}
    torch.save(moved, file)
    other = MoCoConfig(queue=5, hidden_width=4, output_width=3).build(SMALL_NET)
    other.queue.zero_()
    assert load_weights(other, file).complete
    assert torch.equal(other.queue, moco.queue)

    byol = BYOLConfig(hidden_width=4, output_width=3).build(SMALL_NET)
    export_weights(byol, file, "mmselfsup")
    raw = torch.load(file, weights_only=True)
    torch.save({**raw, "neck.fc0.bias": torch.full((4,), 2.0)}, file)
    assert load_weights(byol, file).complete
    assert torch.equal(byol.projector.norms[0].running_mean, torch.full((4,), -2.0))


SMALL_VIT = ViTConfig(image_px=8, patch_px=4, width=8, depth=1, heads=1)


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        *((kind, SMALL_NET) for kind in ("simclr", "simsiam", "barlow_twins", "swav", "moco_v3")),
        *((kind, SMALL_VIT) for kind in ("byol", "moco_v3")),
    ],
)
def test_every_tensor_of_a_method_has_a_name(kind: str, model: ModelConfig) -> None:
    sizes = {"hidden_width": 4, "output_width": 3}
    config = ObjectiveConfig.from_dict({"kind": kind, **sizes})
    layout = method_layout(kind, is_vit=model == SMALL_VIT)
    assert layout is not None
    with torch.device("meta"):
        names = list(config.build(model).state_dict())
    written = [layout.written(name) for name in names]
    assert None not in written
    assert len(set(written)) == len(names)
    assert [layout.table.ours(name) for name in written if name] == names


def test_messages_name_the_keys_of_a_config() -> None:
    assert in_keys("objective.temperature must be") == "model.head.temperature must be"
