"""Datasets, transforms, sampling and the loader: from disk to a batch, by index."""
