import dataclasses

import evaluation_fakes as fakes
import numpy as np
import pytest
import torch

from errors import refuses
from quadriga.distributed.environment import DistEnv
from quadriga.evaluation.parts import features
from quadriga.evaluation.parts.features import evaluation_mode, extract, feature_bank


def expected_values(dataset, rows=slice(None)):
    batch = fakes.Normalise().batch({"image": torch.from_numpy(dataset.images[rows])})
    return batch["image"].flatten(1)


def test_features_are_those_of_every_sample_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CPU_BATCH", 8)
    context = fakes.context_of(tmp_path)
    bank = feature_bank(context, "knn")
    for split, dataset in (("train", context.data("train")), ("test", context.data("test"))):
        trained, random = getattr(bank.trained, split), getattr(bank.random, split)
        assert torch.equal(trained.values, expected_values(dataset))
        assert torch.equal(random.values, expected_values(dataset) * 0.5)
        assert torch.equal(trained.labels, torch.from_numpy(dataset.label))
    assert trained.values.dtype == torch.float32
    assert not trained.values.is_inference()
    assert bank.classes == 7


def test_images_are_read_once_for_both_encoders_and_all_protocols(tmp_path):
    context = fakes.context_of(tmp_path)
    assert feature_bank(context, "knn") is feature_bank(context, "linear_probe")
    for split in ("train", "test"):
        assert context.data(split).reads == len(context.data(split))


@pytest.mark.parametrize("samples", [2, 11])
def test_shares_of_the_ranks_add_up_to_the_whole(tmp_path, monkeypatch, samples):
    images = fakes.images_of(samples, 5)
    dataset = fakes.ArrayDataset(images, np.arange(samples) % 7, 7)
    context = fakes.context_of(tmp_path)
    encoders = [fakes.PixelEncoder().eval(), fakes.PixelEncoder(3.0).eval()]
    single = extract(encoders, dataset, context, "")

    # What each rank hands to the sum, in the order labels, seen, values; `seen` comes back full,
    # as from the other ranks.
    buffers: list[list[torch.Tensor]] = []

    def capture(tensor, env):
        buffers[-1].append(tensor.clone())
        return tensor.copy_(torch.ones_like(tensor)) if len(buffers[-1]) == 2 else tensor

    monkeypatch.setattr(features, "all_reduce_sum", capture)
    monkeypatch.setattr(features, "all_gather_values", lambda value, env: [value, [48, 48], []])
    for rank in range(3):
        buffers.append([])
        env = DistEnv(rank, 3, rank, 3, torch.device("cpu"))
        extract(encoders, dataset, dataclasses.replace(context, env=env), "")
    labels, seen, first, second = (sum(parts) for parts in zip(*buffers, strict=True))
    assert torch.equal(seen, torch.ones(samples, dtype=torch.int64))
    assert torch.equal(labels, single[0].labels)
    assert torch.equal(first, single[0].values)
    assert torch.equal(second, single[1].values)


def test_unreadable_samples_are_left_out(tmp_path):
    images = fakes.images_of(9, 5)
    dataset = fakes.ArrayDataset(images, np.arange(9) % 7, 7, unreadable=[0, 4])
    found = extract([fakes.PixelEncoder().eval()], dataset, fakes.context_of(tmp_path), "")[0]
    rows = [1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(found.values, expected_values(dataset, rows))
    assert found.labels.tolist() == [row % 7 for row in rows]


def test_modes_of_the_parts_come_back():
    module = fakes.PixelEncoder().train()
    module.part.eval()
    with evaluation_mode(module):
        assert not module.training
    assert module.training
    assert not module.part.training


def test_progress_reaches_the_total(tmp_path):
    told = []
    context = fakes.context_of(tmp_path, report_progress=lambda *what: told.append(what))
    feature_bank(context, "knn")
    assert ("features of the training images", 60, 60) in told
    assert told[-1] == ("features of the test images", 23, 23)


def without_labels() -> fakes.ArrayDataset:
    return fakes.ArrayDataset(fakes.images_of(4, 0), np.zeros(4, int), 0)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"objective": fakes.Headless()}, ("knn", "encoder", "Headless")),
        ({"train": without_labels()}, ("knn", "labelled training")),
        ({"test": without_labels()}, ("knn", "labelled test")),
        (
            {"train": fakes.ArrayDataset(fakes.images_of(4, 0), np.zeros(4, int), 3)},
            ("knn", "classes", "7", "3"),
        ),
    ],
)
def test_refusals(tmp_path, changes, fragments):
    with refuses(*fragments):
        feature_bank(fakes.context_of(tmp_path, **changes), "knn")


def test_empty_split_is_refused(tmp_path):
    empty = fakes.ArrayDataset(fakes.images_of(0, 0), np.zeros(0, int), 7)
    context = fakes.context_of(tmp_path, test=empty)
    with refuses("knn", "test images", "empty"):
        feature_bank(context, "knn")


def test_a_random_encoder_is_computed_once_a_run(tmp_path):
    """Later evaluations of a run give the same features without making the encoder again."""
    made, kept = [], {}

    def fresh():
        made.append(1)
        return fakes.PixelEncoder(0.5)

    banks = [
        feature_bank(fakes.context_of(tmp_path, fresh=fresh, kept=kept), "knn") for _ in range(2)
    ]
    assert len(made) == 1
    assert banks[1].random is banks[0].random
    assert torch.equal(banks[1].random.test.values, banks[0].random.test.values)
    assert banks[1].trained is not banks[0].trained
