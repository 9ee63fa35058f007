"""A small data set and a loader with defaults, for the tests of the loader."""

from typing import Any

import torch

from pictures import encoded, noise
from quadriga.contracts import Dataset, Share
from quadriga.data.images.record import ImageRecord
from quadriga.data.reading.loader import Loader
from quadriga.data.reading.stream import PlainStream
from quadriga.data.views.crops import ImageViewsConfig

BATCH, STEPS = 12, 4


class Images(Dataset):
    """Small JPEGs in memory; some are damaged."""

    def __init__(self, count=10, damaged=()):
        self.files = [encoded(noise(14, 15, seed=i)) for i in range(count)]
        for i in damaged:
            self.files[i] = self.files[i][:200]

    def __len__(self):
        return len(self.files)

    def read(self, index):
        return ImageRecord(self.files[index], index % 3, self.name(index))

    def name(self, index):
        return f"image {index}"


VIEW = ImageViewsConfig(image_px=6).build("train")


def loader_of(dataset=None, transform=VIEW, **options):
    defaults: dict[str, Any] = {
        "share": Share(),
        "device": torch.device("cpu"),
        "workers": 0,
        "prefetch": 2,
        "max_unreadable_fraction": 1.0,
        "warn": lambda message: None,
    }
    dataset, settings = dataset or Images(), {**defaults, **options}
    batch_size, accumulate = settings.pop("batch_size", BATCH), settings.pop("accumulate", 1)
    ranks = settings["share"].of
    stream = PlainStream(3, len(dataset), batch_size, ranks, accumulate)
    return Loader(dataset, transform, stream, **settings)


def joined(batches):
    batches = list(batches)
    return {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
