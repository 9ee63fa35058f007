"""A data set, a transform and objectives small enough to check by hand."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from quadriga.contracts import (
    Batch,
    Dataset,
    EvaluationContext,
    LossOutput,
    Objective,
    Transform,
    UnreadableSample,
)
from quadriga.distributed.environment import SINGLE


class ArrayDataset(Dataset):
    def __init__(self, images, labels, classes, unreadable=()):
        self.images, self.label, self.unreadable = images, labels, set(unreadable)
        self.classes = tuple(str(i) for i in range(classes))
        self.reads = 0

    def __len__(self):
        return len(self.images)

    def read(self, index):
        if index in self.unreadable:
            raise UnreadableSample(f"sample {index} is damaged")
        self.reads += 1
        return self.images[index], self.label[index]

    def name(self, index):
        return f"sample {index}"


class Normalise(Transform):
    """(x / 255 - mean) / std, another mean and std for each colour."""

    mean = torch.tensor([0.2, 0.4, 0.6])[:, None, None]
    std = torch.tensor([0.5, 0.25, 0.125])[:, None, None]

    def sample(self, record, key):
        image, label = record
        return {"image": image, "label": np.int64(label)}

    def batch(self, batch: Batch) -> Batch:
        image = (batch["image"].float() / 255 - self.mean) / self.std
        return {**batch, "image": image}

    def example(self, size, device):
        raise RuntimeError("not used")


class PixelEncoder(Objective):
    """Its features are the pixels, scaled; its reconstruction is the negative image."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.part = nn.Dropout(0.5)

    def forward(self, batch):
        return LossOutput.of(self.scale.sum(), None, {})

    def initialise(self, seed):
        nn.init.ones_(self.scale)

    def features(self, images):
        return self.part(images.flatten(1) * self.scale)

    def reconstruct(self, batch):
        images = batch["image"]
        hidden = torch.zeros_like(images, dtype=torch.bool)
        hidden[..., : images.shape[-1] // 2] = True
        combined = torch.where(hidden, -images, images)
        return images * ~hidden, -images, combined


class Headless(Objective):
    """An objective without an encoder."""

    def forward(self, batch):
        return LossOutput.of(torch.zeros(()), None, {})

    def initialise(self, seed):
        return None


def images_of(count, seed, size=4):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def context_of(tmp_path: Path, train=None, test=None, objective=None, **changes):
    def labelled(count, seed):
        labels = np.random.default_rng(seed + 1).integers(0, 7, count)
        return ArrayDataset(images_of(count, seed), labels, 7)

    data = {
        "train": labelled(60, 1) if train is None else train,
        "test": labelled(23, 2) if test is None else test,
    }
    values = {
        "objective": objective or PixelEncoder(),
        "fresh": lambda: PixelEncoder(0.5),
        "data": data.__getitem__,
        "transform": Normalise(),
        "env": SINGLE,
        "seed": 3,
        "output": tmp_path,
        **changes,
    }
    return EvaluationContext(**values)
