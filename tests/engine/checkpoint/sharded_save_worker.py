"""One rank of a run that holds shards of its state, as FSDP does: it saves a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from quadriga.distributed.process_group import process_group
from quadriga.engine.checkpoint.store import CheckpointStore
from quadriga.engine.run_config import CheckpointConfig
from quadriga.methods.mae import MAEConfig
from quadriga.models.vit import ViTConfig
from trained_executor import Trained

MODEL = ViTConfig(image_px=16, patch_px=4, width=16, depth=1, heads=2)


class Sharded(Trained):
    """The same state, its tensors cut along dimension 0."""

    def state_dict(self) -> dict[str, Any]:
        mesh = init_device_mesh("cpu", (2,))
        return {
            name: distribute_tensor(tensor.detach(), mesh, [Shard(0)]) if tensor.dim() else tensor
            for name, tensor in super().state_dict().items()
        }


with process_group("cpu") as env, torch.no_grad():
    method = MAEConfig(decoder_width=8, decoder_depth=1, decoder_heads=2)
    objective = method.build(MODEL)
    objective.initialise(1)
    with CheckpointStore(Path(sys.argv[1]), env, CheckpointConfig(), "h") as store:
        store.save(5, Sharded(objective))
