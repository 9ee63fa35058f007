import math

import evaluation_fakes as fakes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional

from errors import refuses
from quadriga.evaluation import knn
from quadriga.evaluation.knn import KNNConfig, nearest_neighbours, votes
from quadriga.evaluation.parts.features import feature_bank, percentages, reported_ranks, top_hits


def brute_force(train, labels, queries, classes, neighbours, temperature):
    """Scores of each class in plain Python, -inf without a vote."""
    scores = np.full((len(queries), classes), -np.inf)
    for row, query in enumerate(queries):
        cosine = [
            float(np.dot(query, other) / np.linalg.norm(query) / np.linalg.norm(other))
            for other in train
        ]
        for i in sorted(range(len(train)), key=lambda i: -cosine[i])[:neighbours]:
            vote = math.exp(cosine[i] / temperature)
            scores[row, labels[i]] = vote + max(scores[row, labels[i]], 0.0)
    return scores


def accuracy(scores, labels, rank):
    order = np.argsort(-scores, axis=1, kind="stable")[:, :rank]
    hit = [
        label in found and np.isfinite(row[label])
        for row, found, label in zip(scores, order, labels, strict=True)
    ]
    return 100.0 * float(np.mean(hit))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    neighbours=st.integers(1, 12),
    chunk=st.integers(1, 40),
    temperature=st.sampled_from([0.05, 0.07, 1.0]),
)
def test_votes_are_those_of_brute_force(seed, neighbours, chunk, temperature):
    draw = np.random.default_rng(seed)
    train, queries = draw.normal(size=(30, 5)), draw.normal(size=(7, 5))
    labels = draw.integers(0, 6, 30)
    expected = brute_force(train, labels, queries, 6, neighbours, temperature)

    unit = [functional.normalize(torch.from_numpy(x), dim=1) for x in (queries, train)]
    similarity, index = nearest_neighbours(*unit, neighbours, chunk)
    scores = votes(similarity, torch.from_numpy(labels)[index], 6, temperature).numpy()
    voted = np.isfinite(expected)
    assert (np.isfinite(scores) == voted).all()
    # Ours are relative to the nearest neighbour: one factor per query.
    factor = np.exp(similarity[:, :1].numpy() / temperature)
    np.testing.assert_allclose((scores * factor)[voted], expected[voted], rtol=1e-9)


def test_accuracy_equals_brute_force_and_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setattr(knn, "QUERY_CHUNK", 5)
    context = fakes.context_of(tmp_path)
    result = KNNConfig(neighbours=9, temperature=0.2).build().run(context)
    encoded = feature_bank(context, "knn").trained
    train, labels = encoded.train.values.double().numpy(), encoded.train.labels.numpy()
    queries, truth = encoded.test.values.double().numpy(), encoded.test.labels.numpy()
    scores = brute_force(train, labels, queries, 7, 9, 0.2)
    assert result.metrics["top1"] == pytest.approx(accuracy(scores, truth, 1))
    assert result.metrics["top5"] == pytest.approx(accuracy(scores, truth, 5))
    # The random encoder scales the same pixels, which a cosine does not see.
    assert result.metrics["top1_random"] == result.metrics["top1"]

    oracle = KNeighborsClassifier(
        9, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / 0.2)
    )
    expected = 100.0 * oracle.fit(train, labels).score(queries, truth)
    assert result.metrics["top1"] == pytest.approx(expected)


def test_a_low_temperature_does_not_overflow():
    similarity = torch.tensor([[1.0, 0.5]])
    scores = votes(similarity, torch.tensor([[2, 0]]), 3, 1e-3)
    assert scores[0].tolist() == [0.0, -math.inf, 1.0]


def test_top5_only_above_five_classes():
    assert reported_ranks(5) == (1,)
    assert reported_ranks(6) == (1, 5)


def test_top_hits_count_a_class_without_a_score_as_missed():
    scores = torch.tensor([[0.1, 0.9, -torch.inf], [torch.nan, torch.nan, torch.nan]])
    assert top_hits(scores, torch.tensor([2, 0]), (1, 3)).tolist() == [0, 0]
    assert top_hits(scores[:1], torch.tensor([0]), (1, 3)).tolist() == [0, 1]
    assert percentages(torch.tensor([1, 3]), 4, (1, 5)) == {"top1": 25.0, "top5": 75.0}


def test_more_neighbours_than_samples_are_refused(tmp_path):
    evaluator = KNNConfig(neighbours=61).build()
    with refuses("knn.neighbours", "60", "61", "lower"):
        evaluator.run(fakes.context_of(tmp_path))
