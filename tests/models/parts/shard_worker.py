"""Fill modules that were sharded before they had memory, on every rank; compare with the whole."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from quadriga.models.parts.initialise import CHUNK, Filler, initialise
from quadriga.models.vit import ViTConfig

MESHES = {"fsdp": (4,), "hsdp": (2, 2)}


class Copies(nn.Module):
    """A module whose one parameter starts as a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(7, 3))

    def fill(self, filler: Filler) -> None:
        """Count the elements."""
        filler.copy("table", torch.arange(21.0).view(7, 3))


def made() -> nn.Sequential:
    """Return modules whose tensors have 1 to 60022 rows, most of them no multiple of the ranks."""
    model = ViTConfig(
        image_px=8, patch_px=4, width=20, depth=1, heads=2, mlp_ratio=0.5, positions="learned",
        registers=2, layer_scale=0.1,
    )  # fmt: skip
    return nn.Sequential(model.build(), nn.Embedding(60022, 3), nn.Conv2d(3, 5, 3), Copies())


@torch.no_grad()
def main() -> None:
    """Compare for every rule and mesh."""
    dist.init_process_group("gloo")
    for form, shape in MESHES.items():
        names = ("replicate", "shard")[-len(shape) :]
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        for rule in ("xavier_uniform", "normal", "truncated_normal"):
            whole = made()
            initialise(whole, 3, rule)
            with torch.device("meta"):
                parts = made()
            fully_shard(parts, mesh=mesh)
            initialise(parts, 3, rule)
            parts.to_empty(device="cpu")
            for tensor in parts.parameters():
                tensor.to_local().fill_(torch.nan)
            initialise(parts, 3, rule)
            for name, tensor in parts.state_dict().items():
                expected = whole.state_dict()[name]
                assert torch.equal(tensor.full_tensor(), expected), (form, rule, name)
        print("equal", form)
    # The last shard of one row in two is empty, and the table is cut within chunks.
    is_empty = any(tensor.to_local().numel() == 0 for tensor in parts.parameters())
    assert is_empty == (mesh.get_local_rank("shard") == 1)
    assert whole[1].weight.numel() > 5 * CHUNK
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
