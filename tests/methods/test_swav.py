"""SwAV against the paper's pseudo-code, with torch's own layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
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
from quadriga.distributed.slots import alone
from quadriga.methods.swav import SwAV, SwAVConfig
from quadriga.models.resnet import ResNetConfig
from quadriga.models.vit import ViTConfig

CONFIG = SwAVConfig(prototypes=20, hidden_width=24, output_width=8)
QUEUED = CONFIG.override({"queue": 10, "queue_start_epoch": 2.0})
MODELS = pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])


def made(model: ViTConfig | ResNetConfig, config: SwAVConfig = CONFIG) -> SwAV:
    objective = config.build(model)
    objective.initialise(seed=1)
    for name, module in objective.named_children():
        shaken(module, name)
    return objective


def unit(name: str, *shape: int) -> Tensor:
    values = torch.empty(shape).normal_(generator=randomness.generator(0, name))
    return functional.normalize(values, dim=-1)


def sinkhorn(scores: Tensor, eps: float = 0.05, niters: int = 3) -> Tensor:
    """The paper's function (appendix A)."""
    q = torch.exp(scores / eps).T
    q = q / q.sum()
    k, b = q.shape
    r, c = torch.ones(k) / k, torch.ones(b) / b
    for _ in range(niters):
        u = q.sum(dim=1)
        q = q * (r / u).unsqueeze(1)
        q = q * (c / q.sum(dim=0)).unsqueeze(0)
    return (q / q.sum(dim=0, keepdim=True)).T


def pseudo_code(objective: SwAV, x_t: Tensor, x_s: Tensor, queue: Tensor | None = None) -> Tensor:
    projector = objective.projector
    first, norm, last = projector.maps[0], projector.norms[0], projector.maps[1]
    hidden = nn.BatchNorm1d(len(norm.weight))
    hidden.weight, hidden.bias = norm.weight, norm.bias
    outputs = torch.cat([objective.encoder.features(x) for x in (x_t, x_s)])
    outputs = functional.relu(hidden(functional.linear(outputs, first.weight)))
    z = functional.normalize(functional.linear(outputs, last.weight, last.bias), dim=1)
    c = functional.normalize(objective.prototypes.weight, dim=1).T
    scores_t, scores_s = torch.mm(z, c).chunk(2)
    with torch.no_grad():
        kept = [torch.mm(q, c) for q in (c.T[:0].expand(2, 0, -1) if queue is None else queue)]
        b = len(x_t)
        q_t = sinkhorn(torch.cat([kept[0], scores_t]))[-b:]
        q_s = sinkhorn(torch.cat([kept[1], scores_s]))[-b:]
    p_t = functional.log_softmax(scores_t / 0.1, dim=1)
    p_s = functional.log_softmax(scores_s / 0.1, dim=1)
    return -0.5 * (q_t * p_s + q_s * p_t).sum(dim=1).mean()


@MODELS
def test_loss_and_gradient_are_those_of_the_pseudo_code(model: ViTConfig | ResNetConfig) -> None:
    objective, batch = made(model), two_views()
    loss = objective(batch).value
    expected = pseudo_code(objective, *batch["crops"].unbind(1))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


@MODELS
def test_local_crops_predict_the_assignments_of_the_global_ones(
    model: ViTConfig | ResNetConfig,
) -> None:
    """The loop over crops of the reference implementation."""
    objective, batch = made(model), multi_crop()
    crops = [*batch["crops"].unbind(1), *batch["local_crops"].unbind(1)]
    outputs = torch.cat([objective.encoder.features(crop) for crop in crops])
    embeddings = functional.normalize(objective.projector(outputs, torch.clone), dim=1)
    scores = torch.mm(embeddings, functional.normalize(objective.prototypes.weight, dim=1).T)
    output = scores.chunk(len(crops))
    expected = torch.zeros(())
    for crop_id in (0, 1):
        q = sinkhorn(output[crop_id].detach())
        subloss = torch.zeros(())
        for v in [n for n in range(len(crops)) if n != crop_id]:
            x = output[v] / 0.1
            subloss = subloss - torch.mean(torch.sum(q * functional.log_softmax(x, dim=1), dim=1))
        expected = expected + subloss / (len(crops) - 1)
    expected = expected / 2
    loss = objective(batch).value
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(loss, objective), gradients(expected, objective))


def test_a_full_queue_takes_part_in_the_assignments() -> None:
    objective, batch = made(VIT, QUEUED), two_views()
    crops = batch["crops"].unbind(1)
    objective.queue.copy_(unit("queue", 2, 10, 8))
    objective.queued.fill_(9)
    torch.testing.assert_close(objective(batch).value, pseudo_code(objective, *crops))
    objective.queued.fill_(10)
    with_queue = pseudo_code(objective, *crops, objective.queue)
    torch.testing.assert_close(objective(batch).value, with_queue)
    assert abs(with_queue - pseudo_code(objective, *crops)) > 1e-4


def test_the_queue_has_the_newest_embeddings_first_in_slot_order() -> None:
    objective = made(VIT, QUEUED)
    steps = [unit(f"step {step}", 4, 2, 8) for step in range(4)]
    for step, embeddings in enumerate(steps):
        objective.before_step(at(20 + step))
        objective.after_step(at(20 + step), {}, {"embeddings": embeddings})
    expected = torch.cat([steps[3], steps[2], steps[1][:2]])
    assert torch.equal(objective.queue, expected.transpose(0, 1))
    assert int(objective.queued) == 16
    many = unit("many", 23, 2, 8)
    objective.after_step(at(30), {}, {"embeddings": many})
    assert torch.equal(objective.queue, many[:10].transpose(0, 1))


def test_the_queue_begins_at_its_epoch() -> None:
    objective, batch = made(VIT, QUEUED), two_views()
    objective.before_step(at(19))
    assert objective(batch).rows == {}
    objective.after_step(at(19), {}, {})
    assert not objective.queued.any()
    objective.before_step(at(20))
    kept = objective(batch).rows["embeddings"]
    assert kept.shape == (6, 2, 8)
    assert not kept.requires_grad
    rows = objective.embed(batch)
    both = objective.projector(torch.cat([rows["first"], rows["second"]]), torch.clone)
    expected = torch.stack(functional.normalize(both, dim=1).chunk(2), dim=1)
    torch.testing.assert_close(kept, expected.detach())
    assert "queue" not in dict(made(VIT).named_buffers())


def test_rows_of_micro_batches_make_the_loss_of_the_whole() -> None:
    objective, batch = made(VIT), two_views(7)
    parts = [objective.embed({n: t[i : i + 3] for n, t in batch.items()}) for i in range(0, 7, 3)]
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    torch.testing.assert_close(
        objective.combine(rows, {}, alone(7)).value, objective(batch).value, rtol=1e-5, atol=1e-5
    )


def test_prototypes_have_length_one() -> None:
    objective, batch = made(VIT), two_views()
    before = objective(batch).value
    torch.testing.assert_close(objective.prototypes().norm(dim=1), torch.ones(20))
    with torch.no_grad():
        objective.prototypes.weight.mul_(torch.arange(1, 21)[:, None])
    torch.testing.assert_close(objective(batch).value, before, rtol=1e-5, atol=1e-5)


def test_the_prototypes_leave_the_update_of_the_first_epoch() -> None:
    objective = made(VIT)
    frozen = []
    for step in (0, 9, 10):
        objective.before_step(at(step))
        names = [n for n, _ in objective.named_parameters() if n.startswith(objective.frozen_parts)]
        frozen.append(names)
    assert frozen == [["prototypes.weight"], ["prototypes.weight"], []]


def test_groups_of_samples_share_statistics_in_the_encoder() -> None:
    objective = made(RESNET, CONFIG.override({"statistics_group": 3}))
    assert objective.statistics_group == 3
    for module in objective.encoder.modules():
        if hasattr(module, "set_groups"):
            module.set_groups(3, None)
    batch = two_views(6)
    whole = objective.embed(batch)
    halves = [objective.embed({n: t[i : i + 3] for n, t in batch.items()}) for i in (0, 3)]
    for name, rows in whole.items():
        torch.testing.assert_close(rows, torch.cat([half[name] for half in halves]))


def test_features_are_the_encoders() -> None:
    objective, images = made(VIT).eval(), two_views()["crops"][:, 0]
    assert torch.equal(objective.features(images), objective.encoder.features(images))
