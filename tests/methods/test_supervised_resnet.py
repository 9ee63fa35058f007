"""A ResNet that is trained with labels: the loss by torch's own, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from quadriga.contracts import Splittable
from quadriga.errors import UserError
from quadriga.methods.supervised import SupervisedConfig
from quadriga.models.resnet import ResNetConfig

MODEL = ResNetConfig(image_px=16, depth=18, stem_width=4, stem="small")


def batch():
    key = torch.arange(6)
    source = torch.Generator().manual_seed(3)
    image = torch.randn(6, 3, 16, 16, generator=source)
    return {"image": image, "key": key, "index": key, "label": key % 4}


@pytest.mark.parametrize("is_training", [True, False])
def test_the_loss_is_torchs_cross_entropy_of_a_linear_map_of_the_means(is_training):
    objective = SupervisedConfig(classes=7).build(MODEL).train(is_training)
    found = objective(batch())
    means = objective.encoder(batch()["image"]).mean(dim=(2, 3))
    scores = means @ objective.head.weight.t() + objective.head.bias
    smoothing = 0.1 if is_training else 0.0
    expected = functional.cross_entropy(
        scores, batch()["label"], reduction="sum", label_smoothing=smoothing
    )
    torch.testing.assert_close(found.value * 6, expected, rtol=1e-5, atol=1e-5)
    hits = (scores.argmax(dim=1) == batch()["label"]).sum()
    assert found.metrics["accuracy"][0] == hits


def test_it_is_not_cut_and_starts_branches_at_zero_by_the_models_own_option():
    assert not isinstance(SupervisedConfig(classes=7).build(MODEL), Splittable)
    with pytest.raises(UserError, match="zero_init_residual"):
        SupervisedConfig(classes=7, zero_residual=True).build(MODEL)
