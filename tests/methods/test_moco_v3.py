"""MoCo v3 against the paper's pseudo-code, with torch's own layers."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_heads import as_layers
from two_views import RESNET, VIT, assert_same_gradients, at, gradients, shaken, trained, two_views

from quadriga.distributed.slots import alone
from quadriga.errors import UserError
from quadriga.methods.moco_v3 import MoCoV3, MoCoV3Config
from quadriga.models.bert import BertConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

CONFIG = MoCoV3Config(hidden_width=24, output_width=12)
MODELS = pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])


def made(model: ViTConfig | ResNetConfig, config: MoCoV3Config = CONFIG) -> MoCoV3:
    objective = config.build(model)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    return objective


def algorithm_1(objective: MoCoV3, x1: Tensor, x2: Tensor, tau: float) -> Tensor:
    def f_q(x: Tensor) -> Tensor:
        rows = as_layers(objective.projector)(objective.encoder.features(x))
        return as_layers(objective.predictor)(rows)

    def f_k(x: Tensor) -> Tensor:
        return as_layers(objective.teacher_projector)(objective.teacher_encoder.features(x))

    def ctr(q: Tensor, k: Tensor) -> Tensor:
        q, k = functional.normalize(q, dim=1), functional.normalize(k, dim=1)
        logits = torch.mm(q, k.t())
        labels = torch.arange(len(q))
        return 2 * tau * functional.cross_entropy(logits / tau, labels)

    q1, q2 = f_q(x1), f_q(x2)
    k1, k2 = f_k(x1), f_k(x2)
    return ctr(q1, k2) + ctr(q2, k1)


@MODELS
@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_loss_and_gradient_are_those_of_algorithm_1(
    model: ViTConfig | ResNetConfig, tau: float
) -> None:
    objective = made(model, CONFIG.override({"temperature": tau}))
    batch = two_views()
    loss = objective(batch).value
    expected = algorithm_1(objective, *batch["crops"].unbind(1), tau)
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_heads_are_those_of_the_reference() -> None:
    vit, resnet = MoCoV3Config().build(VIT), MoCoV3Config().build(RESNET)
    shapes = {
        name: [tuple(linear.weight.shape) for linear in getattr(objective, part).maps]
        for name, objective, part in (
            ("vit projector", vit, "projector"),
            ("vit predictor", vit, "predictor"),
            ("resnet projector", resnet, "projector"),
            ("resnet predictor", resnet, "predictor"),
        )
    }
    assert shapes == {
        "vit projector": [(4096, 24), (4096, 4096), (256, 4096)],
        "vit predictor": [(4096, 256), (256, 4096)],
        "resnet projector": [(4096, 16), (256, 4096)],
        "resnet predictor": [(4096, 256), (256, 4096)],
    }
    assert all(head.last_norm for head in (vit.projector, vit.predictor, resnet.projector))
    assert resnet.predictor.last_norm is None


def test_rows_of_micro_batches_make_the_loss_of_the_whole() -> None:
    objective, batch = made(VIT), two_views(7)
    parts = [{n: t[i : i + 3] for n, t in batch.items()} for i in range(0, 7, 3)]
    rows, targets = (
        {name: torch.cat([part[name] for part in given]) for name in given[0]}
        for given in (list(map(objective.embed, parts)), list(map(objective.targets, parts)))
    )
    output = objective.combine(rows, targets, alone(7))
    torch.testing.assert_close(output.value, objective(batch).value)


def test_accuracy_counts_the_images_that_are_found() -> None:
    objective = made(VIT)
    objective.predictor = objective.projector = Same()  # type: ignore[assignment]
    objective.teacher_projector = Same()  # type: ignore[assignment]
    rows = torch.eye(6, 16)
    swapped = rows[[1, 0, 2, 3, 4, 5]]
    for targets, hits in ((rows, 6), (swapped, 4)):
        given = {"first": targets, "second": targets}
        found = objective.combine({"first": rows, "second": rows}, given, alone(6)).metrics
        assert found["accuracy"] == (hits, 6)


class Same(nn.Module):
    def forward(self, rows: Tensor, reduce: object) -> Tensor:
        return rows


def test_the_projection_of_patches_is_out_of_the_update() -> None:
    assert not [name for name in trained(made(VIT)) if "patch_projection" in name]
    free = made(VIT, CONFIG.override({"freeze_patches": False}))
    assert [name for name in trained(free) if "patch_projection" in name]


@MODELS
def test_the_teacher_starts_as_a_copy_and_follows(model: ViTConfig | ResNetConfig) -> None:
    objective = made(model)
    objective.after_initial_weights()
    pairs = [
        (teacher, student)
        for mine, its in (
            (objective.teacher_encoder, objective.encoder),
            (objective.teacher_projector, objective.projector),
        )
        for (_, teacher), (_, student) in zip(
            mine.state_dict().items(), its.state_dict().items(), strict=True
        )
    ]
    assert all(torch.equal(teacher, student) for teacher, student in pairs)
    assert all(teacher.data_ptr() != student.data_ptr() for teacher, student in pairs)
    shaken(objective.encoder, "a step")
    shaken(objective.projector, "a step")
    for name, buffer in objective.named_buffers():  # as batch normalisation leaves them
        if not name.startswith("teacher") and "running" in name:
            buffer.add_(0.5)
    for step in (0, 30, 100):
        momentum = 1 - 0.01 * (math.cos(math.pi * step / 100) + 1) / 2
        expected = [
            momentum * t + (1 - momentum) * s if t.is_floating_point() else s for t, s in pairs
        ]
        objective.before_step(at(step))
        objective.after_step(at(step), {}, {})
        for (teacher, _), wanted in zip(pairs, expected, strict=True):
            torch.testing.assert_close(teacher, wanted, rtol=1e-5, atol=1e-7)


@MODELS
def test_no_gradient_reaches_the_teacher(model: ViTConfig | ResNetConfig) -> None:
    objective = made(model)
    objective(two_views()).value.backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == (name.startswith("teacher") or "patch_proj" in name)


def test_the_teacher_never_drops() -> None:
    objective = made(VIT.override({"drop_path": 0.9, "dropout": 0.5})).train()
    batch = two_views()
    drawn = objective.targets(batch)
    expected = objective.eval().targets(batch)
    for name, rows in drawn.items():
        assert torch.equal(rows, expected[name])


def test_the_teachers_normalisation_is_that_of_the_batch() -> None:
    objective, batch = made(RESNET), two_views()
    before = objective.targets(batch)["first"]
    for name, buffer in objective.named_buffers():
        if "running" in name:
            buffer.fill_(3.0)
    assert torch.equal(objective.train().targets(batch)["first"], before)
    assert not torch.equal(objective.eval().targets(batch)["first"], before)
    kept = {name for name, m in objective.named_modules() if getattr(m, "keeps_tally", False)}
    assert kept
    assert not [name for name in kept if name.startswith("teacher")]


def test_features_are_the_students() -> None:
    objective, batch = made(VIT).eval(), two_views()
    images = batch["crops"][:, 0]
    assert torch.equal(objective.features(images), objective.encoder.features(images))


def test_one_view_is_refused() -> None:
    batch = two_views()
    for crops in (batch["crops"][:, :1], batch["crops"].repeat(1, 2, 1, 1, 1)):
        with pytest.raises(UserError, match=r"views\.crops=2"):
            made(VIT)({**batch, "crops": crops})
    image = {"image": batch["crops"][:, 0], "key": batch["key"], "index": batch["index"]}
    with pytest.raises(UserError, match="held_out"):
        made(VIT)(image)


def test_other_models_and_groups_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.kind"):
        CONFIG.build(BertConfig(vocabulary_size=60))
    grouped = CONFIG.override({"statistics_group": 4})
    with pytest.raises(UserError, match=r"objective\.statistics_group"):
        grouped.build(VIT)
    assert grouped.build(RESNET).statistics_group == 4
