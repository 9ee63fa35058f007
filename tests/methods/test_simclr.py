"""SimCLR against the paper's pseudo-code with torch's own layers, and against lightly."""

import math

import pytest
import torch
from lightly_reference import lightly_class
from torch import Tensor, nn
from torch.nn import functional
from two_views import RESNET, VIT, assert_same_gradients, gradients, shaken, two_views

from quadriga.distributed.slots import alone
from quadriga.errors import UserError
from quadriga.methods.simclr import SimCLR, SimCLRConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

CONFIG = SimCLRConfig(hidden_width=24, output_width=12)
MODELS = pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
DECOUPLED = pytest.mark.parametrize("decoupled", [False, True], ids=["ntxent", "dcl"])


def made(model: ViTConfig | ResNetConfig, config: SimCLRConfig = CONFIG) -> SimCLR:
    objective = config.build(model)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    return objective


def projected(objective: SimCLR, *views: Tensor) -> tuple[Tensor, ...]:
    """Encode each view, and project all of them with torch's own layers."""
    projector = objective.projector
    first, norm, last = projector.maps[0], projector.norms[0], projector.maps[1]
    hidden, output = nn.BatchNorm1d(24), nn.BatchNorm1d(12, affine=False)
    hidden.weight, hidden.bias = norm.weight, norm.bias
    rows = torch.cat([objective.encoder.features(view) for view in views])
    rows = functional.relu(hidden(functional.linear(rows, first.weight)))
    return output(functional.linear(rows, last.weight)).chunk(len(views))


def algorithm_1(first: Tensor, second: Tensor, tau: float, decoupled: bool) -> Tensor:
    """Algorithm 1 of the paper, with z[2k - 1] and z[2k] of image k; eq. 6 of DCL."""
    z = torch.stack([first, second], dim=1).flatten(0, 1)
    norms = z.norm(dim=1)
    s = [[z[i] @ z[j] / (norms[i] * norms[j]) for j in range(len(z))] for i in range(len(z))]

    def loss(i: int, j: int) -> Tensor:
        left_out = {i, j} if decoupled else {i}
        others = [torch.exp(s[i][k] / tau) for k in range(len(z)) if k not in left_out]
        return -torch.log(torch.exp(s[i][j] / tau) / torch.stack(others).sum())

    n = len(first)
    pairs = [loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(n)]
    return torch.stack(pairs).sum() / (2 * n)


@MODELS
@DECOUPLED
def test_loss_and_gradient_are_those_of_algorithm_1(
    model: ViTConfig | ResNetConfig, decoupled: bool
) -> None:
    objective = made(model, CONFIG.override({"temperature": 0.5, "decoupled": decoupled}))
    batch = two_views()
    loss = objective(batch).value
    expected = algorithm_1(*projected(objective, *batch["crops"].unbind(1)), 0.5, decoupled)
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


@DECOUPLED
def test_loss_and_gradient_are_those_of_lightly(decoupled: bool) -> None:
    theirs = lightly_class(f"lightly.loss:{'DCLLoss' if decoupled else 'NTXentLoss'}")
    objective, batch = made(RESNET, CONFIG.override({"decoupled": decoupled})), two_views()
    loss = objective(batch).value
    expected = theirs(temperature=0.1)(*projected(objective, *batch["crops"].unbind(1)))
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_the_widths_are_the_papers() -> None:
    with torch.device("meta"):
        objective = SimCLRConfig().build(ResNetConfig())
    shapes = [tuple(linear.weight.shape) for linear in objective.projector.maps]
    assert shapes == [(2048, 2048), (128, 2048)]


def test_rows_of_micro_batches_make_the_loss_of_the_whole() -> None:
    objective, batch = made(VIT), two_views(7)
    parts = [objective.embed({n: t[i : i + 3] for n, t in batch.items()}) for i in range(0, 7, 3)]
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    found = objective.combine(rows, {}, alone(7)).value
    torch.testing.assert_close(found, objective(batch).value)


def test_accuracy_counts_the_views_that_are_found() -> None:
    objective = made(VIT)
    objective.projector = Same()  # type: ignore[assignment]
    rows = torch.eye(6, 16)
    for others, hits in ((rows, 6), (rows + 1e-3 * rows[[1, 0, 2, 3, 4, 5]], 6)):
        found = objective.combine({"first": rows, "second": others}, {}, alone(6)).metrics
        assert found["accuracy"] == (hits, 6)
    turned = {"first": rows, "second": rows[[1, 0, 2, 3, 4, 5]]}
    assert objective.combine(turned, {}, alone(6)).metrics["accuracy"] == (4, 6)


class Same(nn.Module):
    def forward(self, rows: Tensor, reduce: object) -> Tensor:
        return rows


def test_equal_views_of_unlike_images_have_the_loss_that_the_cosines_give() -> None:
    """DCL has one logarithm over the negatives of both views; lightly once added two (#1827)."""
    for decoupled in (False, True):
        objective = made(VIT, CONFIG.override({"temperature": 0.5, "decoupled": decoupled}))
        objective.projector = Same()  # type: ignore[assignment]
        rows = {"first": torch.eye(6, 16), "second": torch.eye(6, 16)}
        others = 10.0 if decoupled else 10.0 + math.exp(2)
        loss = float(objective.combine(rows, {}, alone(6)).value)
        assert loss == pytest.approx(math.log(others) - 2, rel=1e-6)


@DECOUPLED
def test_an_image_alone_has_no_loss_and_no_gradient(decoupled: bool) -> None:
    objective = made(RESNET, CONFIG.override({"decoupled": decoupled}))
    loss = objective(two_views(1)).value
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients(loss, objective).values())


def test_features_are_the_encoders() -> None:
    objective, images = made(VIT).eval(), two_views()["crops"][:, 0]
    assert torch.equal(objective.features(images), objective.encoder.features(images))


def test_groups_of_nothing_are_refused() -> None:
    grouped = CONFIG.override({"statistics_group": 4})
    with pytest.raises(UserError, match=r"objective\.statistics_group"):
        grouped.build(VIT)
    assert grouped.build(RESNET).statistics_group == 4
