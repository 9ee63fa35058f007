"""Losses of the whole step, and queues, on two ranks of two micro-batches are those of one process.

The gradient through the sums over the ranks is part of it: torch's in-place all-reduce would make
it half as large on two ranks (lightly's issue 1980).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ranks import run_ranks

WORKER = Path(__file__).resolve().parents[1] / "parallel_worker.py"
VIT = ["model.width=16", "model.depth=1", "model.heads=2", "model.drop_path=0.2"]
RESNET = ["model.kind=resnet", "model.depth=18", "model.stem_width=2", "model.stem=small"]
RESNET += ["objective.statistics_group=4"]
SHARED = ["smooth", "recipe=moco_v3_digits", "train.epochs=none", "train.batch_size=16"]
SHARED += ["train.steps=2", "optim.kind=sgd", "schedule.warmup_epochs=0", "optim.lr=0.001"]
SHARED += ["optim.clip_norm=none", "model.image_px=16", "views.image_px=16", "data.image_px=16"]
MOCO = ["objective.queue=40", "objective.hidden_width=none", "objective.shuffled_groups=1"]
METHODS: dict[str, list[str]] = {
    **{name: [] for name in ("byol", "simsiam", "barlow_twins", "vicreg", "simclr", "lejepa")},
    "moco": MOCO,
}
PATCHES = ["objective.prototypes=20", "objective.hidden_width=16", "objective.bottleneck_width=8"]
PATCHES += ["objective.frozen_epochs=0", "views.kind=multi_crop", "views.local_crops=2"]
PATCHES += ["views.local_px=8", "views.augmentation=none"]
OF_PATCHES = {"ibot": PATCHES, "dinov2": [*PATCHES, "objective.koleo_group=4"]}
ONE_VIEW = ["views.crops=1", "model.pool=mean"]
OF_PATCHES["simmim"] = [*ONE_VIEW, "objective.mask_px=8"]
OF_PATCHES["ijepa"] = [*ONE_VIEW, "objective.predictor_width=16", "objective.predictor_depth=1"]
OF_PATCHES["ijepa"] += ["objective.predictor_heads=2"]
"""Methods that need a vision transformer."""
LAYOUTS = [(1, 1, "ddp"), (2, 2, "ddp"), (2, 1, "ddp"), (1, 4, "ddp"), (4, 1, "ddp")]
LAYOUTS += [(2, 2, "fsdp"), (2, 1, "fsdp"), (4, 2, "fsdp")]
MODELS = {"vit": VIT, "resnet": RESNET}
CASES = [(layout, model) for layout in LAYOUTS[1:] for model in MODELS]
QUICK = ((2, 2, "ddp"), "vit")


def trained(
    folder: Path, layout: tuple[int, int, str], model: str, precision: str = "float32"
) -> dict[str, dict[str, Tensor]]:
    """Return each method's state, losses and gradient norms; all share one start of processes."""
    ranks, accumulate, how = layout
    case = f"{model}-{ranks}-{accumulate}-{how}-{precision}"
    methods = {**METHODS, **(OF_PATCHES if model == "vit" else {})}
    paths = {name: folder / f"{name}-{case}.pt" for name in methods}
    if not all(path.exists() for path in paths.values()):
        words: list[str] = []
        for name, path in paths.items():
            own = [f"objective.kind={name}", f"train.accumulate={accumulate}"]
            own += [f"train.parallel={how}", f"train.precision={precision}"]
            own += [*MODELS[model], *methods[name]]
            words += [*(["--"] if words else []), str(path), *SHARED, *own]
        for rank in run_ranks([sys.executable, str(WORKER), *words], ranks, timeout=200):
            assert rank.returncode == 0, rank.stderr
    return {name: torch.load(path, weights_only=True) for name, path in paths.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("on_ranks")


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        pytest.param(
            *case,
            marks=() if case == QUICK else pytest.mark.long,
            id="-".join(map(str, (*case[0], case[1]))),
        )
        for case in CASES
    ],
)
def test_the_step_is_that_of_one_process(
    folder: Path, layout: tuple[int, int, str], model: str
) -> None:
    expected, found = trained(folder, LAYOUTS[0], model), trained(folder, layout, model)
    for method, own in expected.items():
        other = found[method]
        assert own.keys() == other.keys()
        assert own["losses"].unique().numel() == 2
        assert (own["grad_norms"] > 1e-3).all()
        # A gradient that is zero in theory has the rounding of the largest.
        moments = [tensor.abs().max() for name, tensor in own.items() if "momentum_buffer" in name]
        largest = float(max(moments))
        for name, tensor in own.items():
            scale = largest if "momentum_buffer" in name else 0.1
            torch.testing.assert_close(
                other[name], tensor, rtol=2e-4, atol=2e-5 * scale, msg=lambda m, n=name: n + m
            )


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_the_loss_in_bfloat16_is_near_that_in_float32(folder: Path, model: str) -> None:
    plain = trained(folder, LAYOUTS[0], model)
    reduced = trained(folder, LAYOUTS[0], model, "bfloat16")
    for method in METHODS:
        own, other = (found[method]["losses"][0] for found in (plain, reduced))
        assert own != other
        torch.testing.assert_close(other, own, rtol=0.05, atol=0.01, msg=method)
