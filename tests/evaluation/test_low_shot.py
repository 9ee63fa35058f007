import evaluation_fakes as fakes
import numpy as np
import pytest
import torch
from torch.nn import functional

from errors import refuses
from quadriga.evaluation.low_shot import LowShotConfig, drawn_rows, predict
from quadriga.evaluation.parts.features import feature_bank
from quadriga.randomness import fold


def fitted(train, labels, penalty):
    """The minimum of the documented loss, by torch."""
    train, labels = torch.from_numpy(train), torch.from_numpy(labels)
    weight = torch.zeros(train.shape[1], int(labels.max()) + 1, dtype=torch.float64)
    bias = torch.zeros(weight.shape[1], dtype=torch.float64)
    for tensor in (weight, bias):
        tensor.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=100, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        scores = train @ weight + bias
        value = functional.cross_entropy(scores, labels, reduction="sum")
        value = value + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return lambda test: (torch.from_numpy(test) @ weight + bias).argmax(1).numpy()


def test_accuracies_are_those_of_the_minimum_on_the_drawn_images(tmp_path):
    context = fakes.context_of(tmp_path)
    result = LowShotConfig(shots=(1, 4), draws=2, penalty=0.5).build().run(context)
    encoded = feature_bank(context, "low_shot").trained
    train, test = encoded.train.values.double(), encoded.test.values.double()
    mean, deviation = train.mean(0), train.std(0, correction=0)
    train, test = (((x - mean) / deviation).numpy() for x in (train, test))
    labels, truth = encoded.train.labels.numpy(), encoded.test.labels.numpy()
    for shots in (1, 4):
        right = []
        for draw in range(2):
            rows = drawn_rows(labels, shots, fold(context.seed, "low shot", draw))
            assert np.bincount(labels[rows]).tolist() == [shots] * 7
            right.append(np.mean(fitted(train[rows], labels[rows], 0.5)(test) == truth))
        assert result.metrics[f"top1_of_{shots}"] == pytest.approx(100 * np.mean(right))
        assert result.metrics[f"deviation_of_{shots}"] == pytest.approx(100 * np.std(right))
    # The random encoder scales the same pixels, which standardised features do not show.
    assert result.metrics["top1_of_4_random"] == result.metrics["top1_of_4"]


def test_draws_are_nested_and_differ():
    labels = np.random.default_rng(0).integers(0, 3, 60)
    few, more = (set(drawn_rows(labels, shots, 7).tolist()) for shots in (2, 5))
    assert few < more
    assert len(more) == 15
    assert more != set(drawn_rows(labels, 5, 8).tolist())


def test_classes_keep_their_numbers():
    train = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    assert predict(train, np.array([2, 5, 6]), 3 * train, 0.1).tolist() == [2, 5, 6]


def test_more_shots_than_images_of_a_class_are_refused(tmp_path):
    labels = np.repeat([0, 1, 3], [5, 3, 9])  # the others have no training image
    train = fakes.ArrayDataset(fakes.images_of(17, 1), labels, 7)
    context = fakes.context_of(tmp_path, train=train)
    with refuses("low_shot.shots", "4", "3", "lower"):
        LowShotConfig(shots=(1, 4)).build().run(context)
    assert "top1_of_3" in LowShotConfig(shots=(3,), draws=1).build().run(context).metrics
