import evaluation_fakes as fakes
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from errors import refuses
from quadriga.evaluation import retrieval
from quadriga.evaluation.parts.features import feature_bank
from quadriga.evaluation.retrieval import RetrievalConfig


def test_recall_and_precision_equal_a_loop_and_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "SIMILARITIES", 100)  # chunks of 4 of the 23 images
    context = fakes.context_of(tmp_path)
    result = RetrievalConfig(ranks=(1, 3)).build().run(context)
    features = feature_bank(context, "retrieval").trained.test
    vectors, labels = features.values.double().numpy(), features.labels.numpy()
    recalls, precisions = {1: [], 3: []}, []
    for i, label in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        right = labels[others] == label
        if not right.any():
            continue
        norms = np.linalg.norm(vectors[others], axis=1) * np.linalg.norm(vectors[i])
        cosine = vectors[others] @ vectors[i] / norms
        nearest = np.argsort(-cosine)
        precisions.append(average_precision_score(right, cosine))
        for rank, found in recalls.items():
            found.append(right[nearest[:rank]].any())
    assert result.details["queries"] == len(precisions)
    assert result.metrics["mean_average_precision"] == pytest.approx(100 * np.mean(precisions))
    for rank, found in recalls.items():
        assert result.metrics[f"recall_{rank}"] == pytest.approx(100 * np.mean(found))
    # The random encoder scales the same pixels, which a cosine does not see.
    assert result.metrics["recall_1_random"] == result.metrics["recall_1"]


def test_an_image_that_is_alone_in_its_class_asks_nothing(tmp_path):
    images = np.stack([np.full((3, 4, 4), value, np.uint8) for value in (0, 10, 255)])
    images[2, 0] = 0
    test = fakes.ArrayDataset(images, np.array([0, 0, 1]), 7)
    result = RetrievalConfig(ranks=(1,)).build().run(fakes.context_of(tmp_path, test=test))
    assert result.details["queries"] == 2
    assert result.metrics["recall_1"] == 100
    alone = fakes.ArrayDataset(fakes.images_of(7, 1), np.arange(7), 7)
    with refuses("retrieval", "1"):
        RetrievalConfig().build().run(fakes.context_of(tmp_path, test=alone))


def test_average_precision_by_hand():
    right = torch.tensor([[True, False, True], [False, False, True]])
    found = retrieval.average_precision(right)
    assert found.tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 3])
