"""MoCo v1 and v2 against the paper's pseudo-code, and against lightly."""

import pytest
import torch
from lightly_reference import lightly_class
from torch import Tensor
from torch.nn import functional
from two_views import RESNET, VIT, assert_same_gradients, at, gradients, shaken, two_views

from errors import refuses
from parallel_worker import tiny_config
from quadriga.engine.dry_run import dry_run
from quadriga.engine.step.statistics import check_exchange
from quadriga.errors import UserError
from quadriga.methods.moco import MoCo, MoCoConfig, shuffled_within
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

CONFIG = MoCoConfig(queue=10, hidden_width=24, output_width=12)
V1 = MoCoConfig(queue=10, hidden_width=None, output_width=12, temperature=0.07)
MODELS = pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
VERSIONS = pytest.mark.parametrize("config", [CONFIG, V1], ids=["v2", "v1"])


def made(model: ViTConfig | ResNetConfig, config: MoCoConfig = CONFIG) -> MoCo:
    objective = config.build(model)
    objective.initialise_all(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    return objective


def head(objective: MoCo, rows: Tensor, of: str = "head") -> Tensor:
    maps = [layer for layer in getattr(objective, of) if hasattr(layer, "weight")]
    for number, layer in enumerate(maps):
        rows = functional.linear(rows, layer.weight, layer.bias)
        rows = rows if number == len(maps) - 1 else functional.relu(rows)
    return rows


def outputs(objective: MoCo, x_q: Tensor, x_k: Tensor) -> tuple[Tensor, Tensor]:
    k = head(objective, objective.teacher_encoder.features(x_k), "teacher_head").detach()
    return head(objective, objective.encoder.features(x_q)), k


def algorithm_1(objective: MoCo, x_q: Tensor, x_k: Tensor) -> Tensor:
    q, k = (functional.normalize(rows, dim=1) for rows in outputs(objective, x_q, x_k))
    queue = objective.queue.t()
    n, c = q.shape
    l_pos = torch.bmm(q.view(n, 1, c), k.view(n, c, 1))
    l_neg = torch.mm(q.view(n, c), queue)
    logits = torch.cat([l_pos[:, 0], l_neg], dim=1)
    labels = torch.zeros(n, dtype=torch.int64)
    return functional.cross_entropy(logits / objective.config.temperature, labels)


@MODELS
@VERSIONS
def test_loss_and_gradient_are_those_of_algorithm_1(
    model: ViTConfig | ResNetConfig, config: MoCoConfig
) -> None:
    objective, batch = made(model, config), two_views()
    loss = objective(batch).value
    expected = algorithm_1(objective, *batch["crops"].unbind(1))
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_loss_and_gradient_are_those_of_lightly() -> None:
    objective, batch = made(RESNET), two_views()
    theirs = lightly_class("lightly.loss:NTXentLoss")(temperature=0.2, memory_bank_size=(10, 12))
    theirs.memory_bank.bank = objective.queue.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.int64)
    loss = objective(batch).value
    expected = theirs(*outputs(objective, *batch["crops"].unbind(1)))
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_heads_are_those_of_the_papers() -> None:
    with torch.device("meta"):
        second = MoCoConfig().build(ResNetConfig())
        first = MoCoConfig(hidden_width=None).build(ResNetConfig())
    assert [tuple(p.shape) for p in second.head.parameters()] == [
        *((2048, 2048), (2048,)),
        *((128, 2048), (128,)),
    ]
    assert [tuple(p.shape) for p in first.head.parameters()] == [(128, 2048), (128,)]
    assert second.queue.shape == (65_536, 128)


def test_the_queue_starts_with_random_keys_of_length_one() -> None:
    objective = made(VIT)
    torch.testing.assert_close(objective.queue.norm(dim=1), torch.ones(10))
    cosines = objective.queue @ objective.queue.t() - torch.eye(10)
    assert cosines.abs().max() < 0.9
    again = made(VIT)
    assert torch.equal(again.queue, objective.queue)


def test_the_queue_has_the_newest_keys_first_in_slot_order() -> None:
    objective = made(VIT)
    before = objective.queue.clone()
    steps = [torch.full((4, 12), float(step)) + torch.arange(4)[:, None] / 10 for step in (1, 2)]
    for step, keys in enumerate(steps):
        objective.after_step(at(step), {}, {"keys": keys})
    assert torch.equal(objective.queue, torch.cat([steps[1], steps[0], before[:2]]))
    many = torch.arange(23 * 12.0).view(23, 12)
    objective.after_step(at(2), {}, {"keys": many})
    assert torch.equal(objective.queue, many[:10])


def test_a_steps_keys_are_the_momentum_encoders_of_the_second_view() -> None:
    objective, batch = made(RESNET), two_views()
    keys = objective(batch).rows["keys"]
    expected = functional.normalize(outputs(objective, *batch["crops"].unbind(1))[1], dim=1)
    torch.testing.assert_close(keys, expected)
    assert not keys.requires_grad


def test_keys_get_the_statistics_of_groups_that_a_draw_mixes() -> None:
    config = CONFIG.override({"statistics_group": 3, "shuffled_groups": 2})
    objective, batch = made(RESNET, config), two_views(12)
    for module in objective.modules():
        if hasattr(module, "set_groups"):
            module.set_groups(3, None)
    keys = objective(batch).rows["keys"]
    order = shuffled_within(6, batch["key"])
    groups = order.split(3)
    assert [sorted(order[i : i + 6].tolist()) for i in (0, 6)] == [[*range(6)], [*range(6, 12)]]
    assert not any(set(group.tolist()) in ({0, 1, 2}, {3, 4, 5}) for group in groups[:2])
    images = batch["crops"][:, 1]
    expected = torch.empty_like(keys)
    for group in groups:
        rows = head(objective, objective.teacher_encoder.features(images[group]), "teacher_head")
        expected[group] = functional.normalize(rows, dim=1).detach()
    torch.testing.assert_close(keys, expected)
    halves = [objective({n: t[i : i + 6] for n, t in batch.items()}).rows["keys"] for i in (0, 6)]
    torch.testing.assert_close(torch.cat(halves), keys)
    plain = made(RESNET, config.override({"shuffled_groups": 1}))
    assert plain.exchange_group is None


def test_samples_that_exchange_places_must_be_in_one_micro_batch() -> None:
    check_exchange(32, [[range(64)], [range(64, 128)]])
    words = ["recipe=swav_digits", "objective.kind=moco", "objective.statistics_group=16"]
    words += ["model.stem_width=2", "objective.shuffled_groups=2", "objective.queue=9"]
    with refuses("objective.shuffled_groups", "is 32", "train.batch_size"):
        dry_run(tiny_config([*words, "train.batch_size=64"]), 4)


def test_the_momentum_encoder_starts_as_a_copy_and_follows() -> None:
    objective = CONFIG.build(RESNET)
    objective.initialise_all(seed=1)
    pairs = [
        (teacher, student)
        for mine, its in (
            (objective.teacher_encoder, objective.encoder),
            (objective.teacher_head, objective.head),
        )
        for teacher, student in zip(mine.parameters(), its.parameters(), strict=True)
    ]
    assert all(torch.equal(teacher, student) for teacher, student in pairs)
    shaken(objective.encoder, "a step")
    shaken(objective.head, "a step")
    expected = [0.999 * t + 0.001 * s for t, s in pairs]
    objective.after_step(at(0), {}, {"keys": torch.zeros(2, 12)})
    for (teacher, _), wanted in zip(pairs, expected, strict=True):
        torch.testing.assert_close(teacher, wanted, rtol=1e-5, atol=1e-7)


def test_no_gradient_reaches_the_momentum_encoder() -> None:
    objective = made(RESNET)
    objective(two_views()).value.backward()
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher")


def test_accuracy_counts_the_keys_that_are_found() -> None:
    objective, batch = made(VIT), two_views()
    total, count = objective(batch).metrics["accuracy"]
    q, k = (functional.normalize(x, dim=1) for x in outputs(objective, *batch["crops"].unbind(1)))
    expected = (q * k).sum(dim=1) > (q @ objective.queue.t()).amax(dim=1)
    assert (total, count) == (expected.sum(), 6)
    with torch.no_grad():
        objective.queue[3] = q[2]
    assert objective(batch).metrics["accuracy"][0] == expected.sum() - expected[2].long()
    assert expected[2]


def test_one_view_and_groups_of_nothing_are_refused() -> None:
    batch = two_views()
    with pytest.raises(UserError, match=r"views\.crops=2"):
        made(VIT)({**batch, "crops": batch["crops"][:, :1]})
    grouped = CONFIG.override({"statistics_group": 4})
    with pytest.raises(UserError, match=r"objective\.statistics_group"):
        grouped.build(VIT)
    assert grouped.build(RESNET).exchange_group == 32


def test_features_are_the_encoders() -> None:
    objective, images = made(VIT).eval(), two_views()["crops"][:, 0]
    assert torch.equal(objective.features(images), objective.encoder.features(images))
