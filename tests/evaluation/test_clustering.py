import itertools

import evaluation_fakes as fakes
import numpy as np
import pytest

from quadriga.evaluation.clustering import ClusteringConfig, agreement


def entropy(counts):
    shares = counts[counts > 0] / counts.sum()
    return -(shares * np.log(shares)).sum()


def test_agreement_equals_its_definitions():
    draw = np.random.default_rng(0)
    labels, clusters = draw.integers(0, 4, 60), draw.integers(0, 4, 60).astype(np.int32)
    clusters[:30] = (labels[:30] + 1) % 4
    table = np.zeros((4, 4))
    np.add.at(table, (labels, clusters), 1)
    found = agreement(labels, clusters)
    rows, columns = entropy(table.sum(1)), entropy(table.sum(0))
    shared = rows + columns - entropy(table.ravel())
    assert found["nmi"] == pytest.approx(2 * shared / (rows + columns))
    best = max(table[range(4), order].sum() for order in itertools.permutations(range(4)))
    assert found["accuracy"] == pytest.approx(100 * best / 60)

    def pairs(counts):
        return (counts * (counts - 1) / 2).sum()

    together, by_class, by_cluster = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = by_class * by_cluster / pairs(np.array([60]))
    expected = (together - chance) / ((by_class + by_cluster) / 2 - chance)
    assert found["adjusted_rand"] == pytest.approx(expected)


def test_classes_of_one_colour_are_found_and_noise_is_not(tmp_path):
    labels = np.arange(24) % 3
    images = np.zeros((24, 3, 4, 4), np.uint8)
    images[np.arange(24), labels] = 250 - np.arange(24)[:, None, None]
    test = fakes.ArrayDataset(images, labels, 7)
    result = ClusteringConfig(restarts=3).build().run(fakes.context_of(tmp_path, test=test))
    assert result.details == {"restarts": 3, "images": 24, "clusters": 3}
    for name, best in (("nmi", 1), ("adjusted_rand", 1), ("accuracy", 100)):
        assert result.metrics[name] == pytest.approx(best)
    noise = ClusteringConfig(restarts=1).build().run(fakes.context_of(tmp_path))
    assert noise.metrics["adjusted_rand"] < 0.3
    again = ClusteringConfig(restarts=1).build().run(fakes.context_of(tmp_path))
    assert again.metrics == noise.metrics


def test_an_encoder_that_has_collapsed_is_measured(tmp_path):
    test = fakes.ArrayDataset(np.full((6, 3, 4, 4), 7, np.uint8), np.array([0, 0, 0, 0, 1, 1]), 7)
    result = ClusteringConfig().build().run(fakes.context_of(tmp_path, test=test))
    assert result.metrics["nmi"] == 0
    assert result.metrics["accuracy"] == pytest.approx(100 * 4 / 6)
