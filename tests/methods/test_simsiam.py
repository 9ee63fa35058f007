"""SimSiam against the paper's pseudo-code, with torch's own layers, and against lightly."""

import pytest
import torch
from lightly_reference import lightly_class
from torch import Tensor
from torch.nn import functional
from torch_heads import as_layers
from two_views import RESNET, VIT, assert_same_gradients, gradients, shaken, two_views

from quadriga.distributed.slots import alone
from quadriga.methods.simsiam import SimSiam, SimSiamConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

CONFIG = SimSiamConfig(output_width=24, hidden_width=6)


def made(model: ViTConfig | ResNetConfig) -> SimSiam:
    objective = CONFIG.build(model)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    return objective


def outputs(objective: SimSiam) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return ``z1, z2`` and ``p1, p2`` of algorithm 1."""
    f = [
        as_layers(objective.projector)(objective.encoder.features(x))
        for x in two_views()["crops"].unbind(1)
    ]
    return (f[0], f[1]), tuple(as_layers(objective.predictor)(z) for z in f)


def distance(p: Tensor, z: Tensor) -> Tensor:
    """``D`` of algorithm 1, line by line."""
    z = z.detach()
    p = functional.normalize(p, dim=1)
    z = functional.normalize(z, dim=1)
    return -(p * z).sum(dim=1).mean()


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
def test_loss_and_gradient_are_those_of_algorithm_1(model: ViTConfig | ResNetConfig) -> None:
    objective = made(model)
    loss = objective(two_views()).value
    (z1, z2), (p1, p2) = outputs(objective)
    expected = distance(p1, z2) / 2 + distance(p2, z1) / 2
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_loss_and_gradient_are_lightlys() -> None:
    cosine = lightly_class("lightly.loss:NegativeCosineSimilarity")()
    objective = made(RESNET)
    loss = objective(two_views()).value
    (z1, z2), (p1, p2) = outputs(objective)
    expected = 0.5 * (cosine(p1, z2.detach()) + cosine(p2, z1.detach()))
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_heads_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        objective = SimSiamConfig().build(RESNET)
    shapes = [
        [tuple(linear.weight.shape) for linear in head.maps]
        for head in (objective.projector, objective.predictor)
    ]
    assert shapes == [[(2048, 16), (2048, 2048), (2048, 2048)], [(512, 2048), (2048, 512)]]
    assert objective.projector.last_norm is not None
    assert objective.projector.last_norm.weight is None
    assert objective.predictor.last_norm is None
    assert objective.predictor.maps[-1].bias is not None


@pytest.mark.parametrize("collapsed", [False, True])
def test_the_deviation_tells_a_collapse(collapsed: bool) -> None:
    objective = made(RESNET).eval()
    rows = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    rows = rows[:1].expand(64, -1) if collapsed else rows
    sums = objective.combine({"first": rows, "second": rows}, {}, alone(64)).metrics[
        "embedding_deviation"
    ]
    unit = functional.normalize(as_layers(objective.projector).eval()(rows), dim=1)
    expected = unit.var(dim=0, correction=0).sum().sqrt()
    torch.testing.assert_close(sums[0] / sums[1], expected)
    assert bool(expected < 1e-3) == collapsed
