"""VICReg against the paper's pseudo-code, with torch's own layers, and against lightly."""

import pytest
import torch
from lightly_reference import lightly_class
from torch import Tensor
from torch.nn import functional
from torch_heads import as_layers
from two_views import RESNET, VIT, assert_same_gradients, gradients, shaken, two_views

from quadriga.methods.vicreg import VICReg, VICRegConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

CONFIG = VICRegConfig(hidden_width=24, output_width=12)


def made(model: ViTConfig | ResNetConfig, **values: float) -> VICReg:
    objective = CONFIG.override(values).build(model)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    return objective


def embeddings(objective: VICReg) -> list[Tensor]:
    layers = as_layers(objective.projector)
    return [layers(objective.encoder.features(x)) for x in two_views()["crops"].unbind(1)]


def algorithm_1(z_a: Tensor, z_b: Tensor, lambda_: float, mu: float, nu: float) -> Tensor:
    """The paper's, with the means over both views of its implementation."""
    count, width = z_a.shape
    sim_loss = functional.mse_loss(z_a, z_b)
    std_z_a = torch.sqrt(z_a.var(dim=0) + 1e-04)
    std_z_b = torch.sqrt(z_b.var(dim=0) + 1e-04)
    std_loss = torch.mean(torch.relu(1 - std_z_a)) / 2 + torch.mean(torch.relu(1 - std_z_b)) / 2
    z_a, z_b = z_a - z_a.mean(dim=0), z_b - z_b.mean(dim=0)
    off_diagonal = ~torch.eye(width, dtype=torch.bool)
    cov_loss = sum(((z.T @ z) / (count - 1))[off_diagonal].pow(2).sum() / width for z in (z_a, z_b))
    return lambda_ * sim_loss + mu * std_loss + nu * cov_loss


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.5, 100.0)])
def test_loss_and_gradient_are_those_of_algorithm_1(
    model: ViTConfig | ResNetConfig, weights: tuple[float, float, float]
) -> None:
    names = ("invariance", "variance", "covariance")
    objective = made(model, **dict(zip((f"{n}_weight" for n in names), weights, strict=True)))
    output = objective(two_views())
    expected = algorithm_1(*embeddings(objective), *weights)
    torch.testing.assert_close(output.value, expected)
    assert_same_gradients(gradients(output.value, objective), gradients(expected, objective))
    parts = [weight * output.metrics[n][0] for n, weight in zip(names, weights, strict=True)]
    torch.testing.assert_close(sum(parts), expected.detach())
    assert all(part > 1e-3 for part in parts)


def test_loss_and_gradient_are_lightlys() -> None:
    reference = lightly_class("lightly.loss:VICRegLoss")()
    objective = made(RESNET)
    loss, expected = objective(two_views()).value, reference(*embeddings(objective))
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_a_feature_with_spread_enough_has_no_hinge() -> None:
    objective = made(VIT)
    with torch.no_grad():
        objective.projector.maps[-1].weight.mul_(100)
    assert objective(two_views()).metrics["variance"][0] == 0


def test_the_projector_is_the_papers() -> None:
    with torch.device("meta"):
        projector = VICRegConfig().build(RESNET).projector
    assert [tuple(m.weight.shape) for m in projector.maps] == [(8192, 16), *[(8192, 8192)] * 2]
    assert projector.last_norm is None
