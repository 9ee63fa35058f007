"""Barlow Twins against the paper's pseudo-code, with torch's own layers, and against lightly."""

import pytest
import torch
from lightly_reference import lightly_class
from torch import Tensor
from torch_heads import as_layers
from two_views import RESNET, VIT, assert_same_gradients, gradients, shaken, two_views

from quadriga.methods.barlow_twins import BarlowTwins, BarlowTwinsConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

CONFIG = BarlowTwinsConfig(hidden_width=24, output_width=12)


def made(model: ViTConfig | ResNetConfig, weight: float = 0.0051) -> BarlowTwins:
    objective = CONFIG.override({"redundancy_weight": weight}).build(model)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    return objective


def projections(objective: BarlowTwins) -> list[Tensor]:
    """Return the outputs of the projector's last map, before they are standardised."""
    layers = as_layers(objective.projector)[:-1]
    return [layers(objective.encoder.features(x)) for x in two_views()["crops"].unbind(1)]


def algorithm_1(z_a: Tensor, z_b: Tensor, lambda_: float) -> Tensor:
    """The paper's, with the deviation of the population and the offset of its implementation."""
    count, width = z_a.shape
    z_a_norm, z_b_norm = (
        (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z_a, z_b)
    )
    c = torch.mm(z_a_norm.T, z_b_norm) / count
    c_diff = (c - torch.eye(width)).pow(2)
    off_diagonal = ~torch.eye(width, dtype=torch.bool)
    c_diff = torch.where(off_diagonal, c_diff * lambda_, c_diff)
    return c_diff.sum()


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("weight", [0.0051, 1.0])
def test_loss_and_gradient_are_those_of_algorithm_1(
    model: ViTConfig | ResNetConfig, weight: float
) -> None:
    objective = made(model, weight)
    output = objective(two_views())
    expected = algorithm_1(*projections(objective), weight)
    torch.testing.assert_close(output.value, expected)
    assert_same_gradients(gradients(output.value, objective), gradients(expected, objective))
    invariance, redundancy = (output.metrics[name][0] for name in objective.metric_names)
    torch.testing.assert_close(invariance + weight * redundancy, expected.detach())


def test_loss_and_gradient_are_lightlys() -> None:
    """It standardises by itself, with torch's batch normalisation."""
    reference = lightly_class("lightly.loss:BarlowTwinsLoss")(lambda_param=0.0051)
    objective = made(RESNET)
    loss, expected = objective(two_views()).value, reference(*projections(objective))
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_the_projector_is_the_papers() -> None:
    with torch.device("meta"):
        projector = BarlowTwinsConfig().build(RESNET).projector
    assert [tuple(m.weight.shape) for m in projector.maps] == [(8192, 16), *[(8192, 8192)] * 2]
    assert projector.last_norm is not None
    assert projector.last_norm.weight is None
    assert not [m for m in projector.maps if m.bias is not None]
