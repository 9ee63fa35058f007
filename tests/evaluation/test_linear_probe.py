import evaluation_fakes as fakes
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from errors import refuses
from quadriga.distributed.collectives import slice_of
from quadriga.evaluation.linear_probe import (
    EPSILON,
    MOMENTUM,
    LinearProbeConfig,
    cosine,
    fit_heads,
    head_hits,
    split_holdout,
    statistics_of,
)
from quadriga.evaluation.parts.features import feature_bank
from quadriga.randomness import fold, shuffled


def toy(samples=37, width=6, classes=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, width, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, classes, (samples,), generator=draw)
    return features, labels


def reference_head(features, labels, classes, rate, epochs, batch_size, key):
    """The same training by autograd and torch.optim.SGD, one head at a time."""
    layer = torch.nn.Linear(features.shape[1], classes, dtype=features.dtype)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=MOMENTUM)
    samples = len(features)
    steps = -(-samples // batch_size)
    for epoch in range(epochs):
        order = torch.from_numpy(shuffled(np.arange(samples), samples, fold(key, epoch)))
        for step in range(steps):
            rows = order[list(slice_of(samples, step, steps))]
            optimizer.param_groups[0]["lr"] = rate * cosine(epoch * steps + step, epochs * steps)
            optimizer.zero_grad()
            functional.cross_entropy(layer(features[rows]), labels[rows]).backward()
            optimizer.step()
    return layer


def test_heads_side_by_side_equal_heads_trained_alone_by_autograd():
    features, labels = toy()
    rates = (0.01, 0.3, 2.0)
    heads = fit_heads(
        features, labels, classes=4, learning_rates=rates, epochs=5, batch_size=8, key=9
    )
    scores = heads.scores(features)
    for i, rate in enumerate(rates):
        alone = reference_head(features, labels, 4, rate, 5, 8, 9)
        torch.testing.assert_close(scores[:, i], alone(features), rtol=1e-9, atol=1e-11)


def test_statistics_are_those_of_batch_norm():
    features, _ = toy()
    layer = torch.nn.BatchNorm1d(6, affine=False, eps=EPSILON, dtype=torch.float64)
    mean, scale = statistics_of(features)
    torch.testing.assert_close((features - mean) * scale, layer(features))


@pytest.mark.parametrize(("samples", "share", "count"), [(2, 0.9, 1), (10, 0.01, 1), (50, 0.1, 5)])
def test_holdout_cuts_the_samples_in_two(samples, share, count):
    kept, held = split_holdout(samples, share, key=4)
    assert len(held) == count
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(samples))
    assert not torch.equal(held, split_holdout(samples, share, key=5)[1]) or samples < 50


def test_diverged_heads_never_win():
    features, labels = toy()
    heads = fit_heads(
        features.float(),
        labels,
        classes=4,
        learning_rates=(0.1, 1e38),
        epochs=3,
        batch_size=8,
        key=1,
    )
    hits = head_hits(heads, features.float(), labels, (1,))[:, 0]
    assert hits[0] > 0
    assert hits[1] == 0


def digits_context(tmp_path, classes=10):
    digits = load_digits()
    pixels = np.repeat(digits.images[:, None] * 15, 3, axis=1).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    pixels, labels = pixels[order], digits.target[order]
    train = fakes.ArrayDataset(pixels[:1400], labels[:1400], classes)
    test = fakes.ArrayDataset(pixels[1400:], labels[1400:], classes)
    return fakes.context_of(tmp_path, train=train, test=test)


def test_accuracy_on_digits_is_within_a_point_of_logistic_regression(tmp_path):
    context = digits_context(tmp_path)
    result = LinearProbeConfig(batch_size=128, epochs=40).build().run(context)
    encoded = feature_bank(context, "linear_probe").trained
    scaler = StandardScaler().fit(encoded.train.values.numpy())
    oracle = LogisticRegression(max_iter=2000, C=1.0)
    oracle.fit(scaler.transform(encoded.train.values.numpy()), encoded.train.labels.numpy())
    expected = 100 * oracle.score(
        scaler.transform(encoded.test.values.numpy()), encoded.test.labels.numpy()
    )
    assert abs(result.metrics["top1"] - expected) <= 1.0
    assert result.metrics["top5"] > result.metrics["top1"]
    # Standardised, the scaled pixels of the other encoder are the same features up to epsilon.
    assert abs(result.metrics["top1_random"] - result.metrics["top1"]) <= 1.0
    assert result.details["learning_rate"] in result.details["learning_rates"]
    assert (result.details["train_samples"], result.details["test_samples"]) == (1400, 397)


def test_probe_is_deterministic_and_follows_the_seed(tmp_path):
    config = LinearProbeConfig(epochs=3, batch_size=16)
    runs = [config.build().run(fakes.context_of(tmp_path, seed=seed)) for seed in (3, 3)]
    assert runs[0] == runs[1]
    features, labels = toy()
    common = {"classes": 4, "learning_rates": (0.1,), "epochs": 2, "batch_size": 8}
    one, same, other = (fit_heads(features, labels, key=key, **common) for key in (1, 1, 2))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)


def test_learning_rate_is_never_chosen_on_the_test_split(tmp_path):
    # With other test labels the choice stays the same, the accuracy does not.
    context = fakes.context_of(tmp_path)
    tests = context.data("test")
    flipped = fakes.ArrayDataset(tests.images, (tests.label + 1) % 7, 7)
    config = LinearProbeConfig(epochs=5, batch_size=16)
    first = config.build().run(context)
    second = config.build().run(fakes.context_of(tmp_path, test=flipped))
    for name in ("learning_rate", "learning_rate_random"):
        assert first.details[name] == second.details[name]
    assert first.metrics != second.metrics


def test_progress_reaches_the_total(tmp_path):
    told = []
    context = fakes.context_of(tmp_path, report_progress=lambda *what: told.append(what))
    LinearProbeConfig(epochs=2, batch_size=16).build().run(context)
    assert ("linear probe", 4, 4) in told
    assert told[-1] == ("linear probe, random encoder", 4, 4)


def test_refusals(tmp_path):
    one = fakes.ArrayDataset(fakes.images_of(1, 0), np.zeros(1, int), 7)
    with refuses("linear_probe", "at least 2"):
        LinearProbeConfig().build().run(fakes.context_of(tmp_path, train=one))
    with refuses("learning_rates.1", "above 0.0", "-1.0"):
        LinearProbeConfig.from_dict({"learning_rates": [0.1, -1.0]})
    assert LinearProbeConfig().override({"learning_rates": "0.5,1"}).learning_rates == (0.5, 1.0)
