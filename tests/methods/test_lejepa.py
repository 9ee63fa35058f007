"""LeJEPA against the paper's algorithms, with torch's own layers, and against lightly."""

import math

import pytest
import torch
from lightly_reference import lightly_class
from torch import Tensor
from torch_heads import as_layers
from two_views import (
    RESNET,
    VIT,
    assert_same_gradients,
    at,
    gradients,
    multi_crop,
    shaken,
    two_views,
)

from quadriga import randomness
from quadriga.contracts import Batch
from quadriga.losses.sigreg import epps_pulley, slices
from quadriga.methods.lejepa import LeJEPA, LeJEPAConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

CONFIG = LeJEPAConfig(hidden_width=24, output_width=12, slices=40, gaussian_weight=0.3)


def made(model: ViTConfig | ResNetConfig = VIT) -> LeJEPA:
    objective = CONFIG.build(model)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    objective.before_step(at(7))
    return objective


def all_embeddings(objective: LeJEPA, batch: Batch) -> Tensor:
    """(views, images, features), as both references have them."""
    views = [objective.encoder.features(x) for x in batch["crops"].unbind(1)]
    if "local_crops" in batch:
        views += [objective.encoder.features(x) for x in batch["local_crops"].unbind(1)]
    stacked = torch.stack(views)
    layers = as_layers(objective.projector)
    return layers(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2])


def sigreg(x: Tensor, directions: Tensor, highest: float) -> Tensor:
    """Algorithm 1 with complex numbers, on both halves of the frequencies."""
    t = torch.linspace(-highest, highest, 33)
    exp_f = torch.exp(-0.5 * t**2)
    x_t = (x @ directions).unsqueeze(2) * t
    ecf = (1j * x_t).exp().mean(0)
    err = (ecf - exp_f).abs().square() * exp_f
    return torch.trapz(err, t, dim=1) * x.size(0)


def algorithm_2(objective: LeJEPA, a_emb: Tensor) -> Tensor:
    lambd, directions = 0.3, slices(7, 12, 40, torch.device("cpu"))
    centers = a_emb[:2].mean(0)
    sim = (centers - a_emb).square().mean()
    regularisation = torch.stack([sigreg(emb, directions, 3.0).mean() for emb in a_emb]).mean()
    return (1 - lambd) * sim + lambd * regularisation


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("local", [0, 3])
def test_loss_and_gradient_are_those_of_the_paper(
    model: ViTConfig | ResNetConfig, local: int
) -> None:
    objective = made(model)
    batch = multi_crop(local=local) if local else two_views()
    loss = objective(batch).value
    expected = algorithm_2(objective, all_embeddings(objective, batch))
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_loss_and_gradient_are_lightlys(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = lightly_class("lightly.loss.lejepa_loss:LeJEPALoss")(0.3, sigreg_num_vectors=40)
    objective, batch = made(), multi_crop()
    directions = slices(7, 12, 40, torch.device("cpu"))
    monkeypatch.setattr(reference.sigreg, "_generate_unit_vectors", lambda *_: directions)
    loss = objective(batch).value
    projections = all_embeddings(objective, batch)
    expected = reference(local_proj=projections[2:], global_proj=projections[:2])
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_another_implementation_has_no_1_minus_lambda_and_flattens_the_views() -> None:
    """stable-pretraining's, until its issue 413: the difference is asserted, not followed."""
    objective, batch = made(), two_views()
    z = all_embeddings(objective, batch)
    directions = slices(7, 12, 40, torch.device("cpu"))
    flat = sigreg(z.flatten(0, 1), directions, 3.0).mean()
    other = (z.mean(0) - z).square().mean() + 0.3 * flat
    assert abs(objective(batch).value - other) > 0.05 * other


def test_the_statistic_tells_normal_rows_from_others() -> None:
    source = randomness.generator(0, "sigreg")
    normal = torch.empty(2000, 1, 8).normal_(generator=source)
    directions = slices(0, 8, 64, torch.device("cpu"))

    def of(rows: Tensor) -> float:
        return float(epps_pulley(rows, directions, 17, 3.0, lambda sums: sums, len(rows)))

    # Its mean under normality, for any number of rows: the integral of (1 - exp(-t^2)) exp(-t^2/2).
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    assert of(normal) == pytest.approx(expected, rel=0.15)
    for other in (normal * 0, normal * 1.3, normal + 0.3, normal.sign()):
        assert of(other) > 4 * expected


def test_directions_are_those_of_the_step() -> None:
    device = torch.device("cpu")
    own = slices(3, 16, 500, device)
    assert torch.equal(own, slices(3, 16, 500, device))
    assert not torch.equal(own, slices(4, 16, 500, device))
    torch.testing.assert_close(own.norm(dim=0), torch.ones(500))
    assert (own @ own.T / 500 - torch.eye(16) / 16).abs().max() < 0.02
    objective, batch = made(), two_views()
    first = objective(batch).value
    objective.before_step(at(8))
    assert objective(batch).value != first


def test_constant_embeddings_are_outside_of_what_is_healthy() -> None:
    objective = made()
    with torch.no_grad():
        objective.projector.maps[-1].weight.zero_()
    metrics = objective(two_views()).metrics
    low, _ = objective.healthy["embedding_deviation"]
    assert metrics["embedding_deviation"][0] < low
    assert metrics["invariance"][0] == 0
