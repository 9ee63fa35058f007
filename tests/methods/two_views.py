"""Batches of two views of each image, tiny encoders, and what teachers are compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadriga import randomness
from quadriga.contracts import Batch, Objective, Progress
from quadriga.models.parts.heads import DINOHead, Prototypes
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

VIT = ViTConfig(image_px=16, patch_px=4, width=24, depth=2, heads=2)
RESNET = ResNetConfig(image_px=16, depth=18, stem_width=2, stem="small")


def two_views(size: int = 6) -> Batch:
    source = randomness.generator(0, "two views")
    index = torch.arange(size)
    crops = torch.empty(size, 2, 3, 16, 16).normal_(generator=source)
    return {"crops": crops, "index": index, "key": index * 31 + 7}


def multi_crop(size: int = 6, local: int = 3) -> Batch:
    """Two global crops of the models' size, and smaller local ones."""
    source = randomness.generator(0, "local crops")
    local_crops = torch.empty(size, local, 3, 8, 8).normal_(generator=source)
    return {**two_views(size), "local_crops": local_crops}


def at(step: int, total_steps: int = 100, batch_size: int = 10) -> Progress:
    """Ten steps of an epoch by default."""
    return Progress(step, total_steps, batch_size, dataset_size=100)


def shaken(module: nn.Module, name: str) -> None:
    """Change every parameter a little, so that a teacher is not its student, nor a norm trivial."""
    source = randomness.generator(1, name)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.05, generator=source))


def scores(head: DINOHead, prototypes: Prototypes, rows: Tensor) -> Tensor:
    """``DINOHead.forward`` of the reference implementation, with ``norm_last_layer``."""
    for number, linear in enumerate(head.maps):
        rows = functional.linear(rows, linear.weight, linear.bias)
        rows = nn.GELU()(rows) if number < 2 else rows
    direction = prototypes.weight
    return functional.normalize(rows, dim=-1) @ (direction / direction.norm(dim=1)[:, None]).T


def trained(objective: Objective) -> dict[str, nn.Parameter]:
    return {name: p for name, p in objective.named_parameters() if p.requires_grad}


def gradients(loss: Tensor, objective: Objective) -> dict[str, Tensor]:
    parameters = trained(objective)
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def assert_same_gradients(own: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Relative to the largest: offsets before a normalisation have none but rounding."""
    assert own.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0
    for name, gradient in own.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-4, atol=1e-5 * largest, msg=lambda m, n=name: n + m
        )
