"""Tiny incubations for tests: a target of four blocks in two modules, on the digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quadriga.cli.entry import run
from quadriga.config.provenance import Resolved
from quadriga.data.images.digits import DigitsConfig
from quadriga.data.views.crops import ImageViewsConfig
from quadriga.engine.build import build_objective
from quadriga.engine.run_config import (
    CheckpointConfig,
    LoaderConfig,
    LogConfig,
    RunConfig,
    TrainConfig,
)
from quadriga.methods.supervised import SupervisedConfig
from quadriga.models.vit import ViTConfig
from quadriga.modular.assembly import AssemblyConfig
from quadriga.modular.growth import GrowthConfig
from quadriga.modular.hybrid import HybridConfig
from quadriga.optim.adam import AdamWConfig
from quadriga.schedules.curves import WarmupCosineConfig

DEPTHS = (2, 2)


def whole(steps: int = 5, **values: Any) -> RunConfig:
    """Return the target's run from random values, with some overridden (``model__width=8``)."""
    config = RunConfig(
        name="whole",
        model=ViTConfig(
            image_px=16,
            patch_px=8,
            width=16,
            depth=sum(DEPTHS),
            heads=2,
            positions="learned",
            drop_path=0.3,
        ),
        objective=SupervisedConfig(classes=10),
        data=DigitsConfig(image_px=16),
        views=ImageViewsConfig(image_px=16, test_crop_fraction=1.0),
        optim=AdamWConfig(lr=3e-3, lr_batch=8, weight_decay=0.05, clip_norm=0.2, layer_decay=0.8),
        schedule=WarmupCosineConfig(),
        train=TrainConfig(steps=steps, batch_size=8, device="cpu"),
        loader=LoaderConfig(workers=0),
        log=LogConfig(every_steps=1, loggers=()),
        checkpoint=CheckpointConfig(asynchronous=False),
    )
    return config.override({name.replace("__", "."): value for name, value in values.items()})


def meta_run(**values: Any) -> RunConfig:
    """Return the meta model's run: a block for each module."""
    return whole(**values).override({"name": "meta", "model.depth": 2, "model.drop_path": 0.0})


def hybrid_run(meta: Path | str, *live: int, **values: Any) -> RunConfig:
    """Return the run of some modules."""
    own = {name: values.pop(name) for name in list(values) if name in HybridConfig.model_fields}
    modular = HybridConfig(depths=own.pop("depths", DEPTHS), live=live, meta=str(meta), **own)
    return whole(**values).override({"name": "module", "modular": modular.as_dict()})


def assembly_run(
    *modules: Path | str, depths: tuple[int, ...] = DEPTHS, **values: Any
) -> RunConfig:
    """Return the run of the assembled target."""
    modular = AssemblyConfig(depths=depths, modules=tuple(map(str, modules)))
    return whole(**values).override({"name": "assembled", "modular": modular.as_dict()})


def growth_run(meta: Path | str, how: str, **values: Any) -> RunConfig:
    """Return the run of the whole target grown out of the meta model."""
    modular = GrowthConfig.from_dict({"depths": DEPTHS, "meta": str(meta), "how": how})
    return whole(**values).override({"name": "grown", "modular": modular.as_dict()})


def train(config: RunConfig, work_dir: Path) -> int:
    """Train in this process; return the exit code."""
    work_dir.parent.mkdir(parents=True, exist_ok=True)
    path = work_dir.with_name(f"{work_dir.name}.json")
    path.write_text(Resolved.of(config, "test").as_json())
    return run(["train", str(path), "--work-dir", str(work_dir)])


def built(config: RunConfig, filled_from: list[Any] | None = None) -> Any:
    """Return the objective of a run at step 0, filled from sources where there are any."""
    objective = build_objective(config, torch.device("cpu"), config.seed)
    if config.modular is not None and filled_from is not None:
        config.modular.fill(objective, config.objective, config.model, filled_from)
    return objective


def batch(size: int = 6) -> dict[str, Tensor]:
    """Return images with labels, mixed ones too."""
    source = torch.Generator().manual_seed(0)
    index = torch.arange(size)
    return {
        "image": torch.randn(size, 3, 16, 16, generator=source),
        "label": index % 10,
        "mixed_label": (index + 3) % 10,
        "share": torch.rand(size, generator=source),
        "index": index,
        "key": index,
    }
