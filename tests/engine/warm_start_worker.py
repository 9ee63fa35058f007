"""One rank of a warm start: the weights are those of the checkpoint, errors are everyone's."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from quadriga.distributed.process_group import process_group
from quadriga.engine.initial_weights import warm_start
from quadriga.engine.run_config import WarmStartConfig
from quadriga.errors import UserError
from quadriga.methods.mae import MAEConfig
from quadriga.models.vit import ViTConfig

MODEL = ViTConfig(image_px=16, patch_px=4, width=16, depth=1, heads=2)

with process_group("cpu") as env:
    method = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)
    objective, expected = method.build(MODEL), method.build(MODEL)
    objective.initialise(10 + env.rank)
    expected.initialise(1)
    warm_start(WarmStartConfig(path=sys.argv[1]), objective, env)
    pairs = zip(objective.state_dict().values(), expected.state_dict().values(), strict=True)
    print("equal" if all(torch.equal(one, other) for one, other in pairs) else "different")
    try:
        warm_start(WarmStartConfig(path=str(Path(sys.argv[1]).parent)), objective, env)
    except UserError as error:
        print("no checkpoint" if error.on_every_rank else f"only here: {error}")
