"""BYOL against the paper's pseudo-code, with torch's own layers, and against lightly."""

import math

import pytest
import torch
from lightly_reference import lightly_class
from torch import Tensor
from torch_heads import as_layers
from two_views import RESNET, VIT, assert_same_gradients, at, gradients, shaken, two_views

from quadriga.errors import UserError
from quadriga.methods.byol import BYOL, BYOLConfig
from quadriga.models.bert import BertConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

CONFIG = BYOLConfig(hidden_width=24, output_width=12)
MODELS = pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])


def made(model: ViTConfig | ResNetConfig) -> BYOL:
    objective = CONFIG.build(model)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    return objective


def outputs(objective: BYOL) -> list[tuple[Tensor, Tensor]]:
    """Return prediction and target for both orders of the views."""
    x1, x2 = two_views()["crops"].unbind(1)

    def prediction(x: Tensor) -> Tensor:
        projection = as_layers(objective.projector)(objective.encoder.features(x))
        return as_layers(objective.predictor)(projection)

    @torch.no_grad()
    def target(x: Tensor) -> Tensor:
        return as_layers(objective.teacher_projector)(objective.teacher_encoder.features(x))

    return [(prediction(x1), target(x2)), (prediction(x2), target(x1))]


def regression(q: Tensor, z: Tensor) -> Tensor:
    """``regression_loss`` of the paper's appendix J, without its factor of a half."""
    q, z = q / q.norm(dim=1, keepdim=True), z / z.norm(dim=1, keepdim=True)
    return (q - z).square().sum(dim=1).mean()


@MODELS
def test_loss_and_gradient_are_those_of_the_paper(model: ViTConfig | ResNetConfig) -> None:
    objective = made(model)
    loss = objective(two_views()).value
    expected = sum(regression(q, z) for q, z in outputs(objective))
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_loss_and_gradient_are_lightlys() -> None:
    """Its loss is the negative cosine; the paper's is ``2 - 2 cos``."""
    distance, objective = lightly_class("lightly.loss:NegativeCosineSimilarity")(), made(RESNET)
    loss = objective(two_views()).value
    expected = sum(2 + 2 * distance(q, z) for q, z in outputs(objective))
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_heads_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        objective = BYOLConfig().build(RESNET)
    for head, inputs in ((objective.projector, 16), (objective.predictor, 256)):
        assert [tuple(linear.weight.shape) for linear in head.maps] == [(4096, inputs), (256, 4096)]
        assert head.last_norm is None


@MODELS
def test_the_teacher_starts_as_a_copy_and_follows(model: ViTConfig | ResNetConfig) -> None:
    objective = made(model)
    objective.after_initial_weights()
    state = objective.state_dict()
    pairs = [(state[n], state[n.removeprefix("teacher_")]) for n in state if n.startswith("teach")]
    assert len(pairs) > 10
    assert all(torch.equal(teacher, student) for teacher, student in pairs)
    shaken(objective.encoder, "a step")
    shaken(objective.projector, "a step")
    for step in (0, 30, 100):
        momentum = 1 - 0.004 * (math.cos(math.pi * step / 100) + 1) / 2
        expected = [
            momentum * t + (1 - momentum) * s if t.is_floating_point() else s for t, s in pairs
        ]
        objective.before_step(at(step))
        output = objective(two_views())
        mean = output.metrics["teacher_momentum"]
        assert float(mean[0] / mean[1]) == pytest.approx(momentum)
        objective.after_step(at(step), {}, {})
        for (teacher, _), wanted in zip(pairs, expected, strict=True):
            torch.testing.assert_close(teacher, wanted, rtol=1e-5, atol=1e-7)


def test_no_gradient_reaches_the_teacher() -> None:
    objective = made(VIT)
    objective(two_views()).value.backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher"), name


def test_other_models_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.kind"):
        CONFIG.build(BertConfig(vocabulary_size=60))
    with pytest.raises(UserError, match=r"objective\.statistics_group"):
        CONFIG.override({"statistics_group": 4}).build(VIT)
