"""Files as those of the published CIFAR archives, small."""

import pickle
from typing import ClassVar

import numpy as np


class PickledByPython2(pickle._Pickler):
    """Writes what Python 2 wrote: its texts are bytes, in instructions of their own."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, value):
        data = value.encode("latin-1") if isinstance(value, str) else value
        if len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[bytes] = save_text
    dispatch[str] = save_text


def pickled(path, value, python=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        (PickledByPython2 if python == 2 else pickle.Pickler)(file, protocol=2).dump(value)


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)


NAMES_10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
FINE = [f"fine_{number}" for number in range(100)]
COARSE = [f"coarse_{number}" for number in range(20)]


def cifar_10(root, form, count=4, python=2):
    """Write the archive's folder below `root`; return images and labels of each split."""
    folder = root / {"bin": "cifar-10-batches-bin", "py": "cifar-10-batches-py"}[form]
    folder.mkdir(parents=True, exist_ok=True)
    found = {"train": [], "test": []}
    files = [("train", f"data_batch_{n}", n) for n in range(1, 6)] + [("test", "test_batch", 9)]
    for split, name, seed in files:
        pixels, labels = images(count, seed), [(seed + i) % 10 for i in range(count)]
        flat = pixels.reshape(count, -1)
        if form == "bin":
            records = np.concatenate([np.array(labels, np.uint8)[:, None], flat], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            entries = {"batch_label": name, "labels": labels, "data": flat, "filenames": FINE}
            pickled(folder / name, {k.encode(): v for k, v in entries.items()}, python)
        found[split].append((pixels, labels))
    if form == "bin":
        (folder / "batches.meta.txt").write_text("\n".join(NAMES_10) + "\n\n")
    else:
        names = [name.encode() for name in NAMES_10]
        meta = {b"num_cases_per_batch": 10000, b"label_names": names, b"num_vis": 3072}
        pickled(folder / "batches.meta", meta, python)
    return {
        split: (np.concatenate([p for p, _ in parts]), [i for _, part in parts for i in part])
        for split, parts in found.items()
    }


def cifar_100(root, form, count=6, python=2):
    """Write the archive's folder; return images, fine and coarse labels of each split."""
    folder = root / {"bin": "cifar-100-binary", "py": "cifar-100-python"}[form]
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for split, seed in (("train", 3), ("test", 4)):
        pixels = images(count, seed)
        fine, coarse = [(7 * seed + 13 * i) % 100 for i in range(count)], [i % 20 for i in range(6)]
        flat = pixels.reshape(count, -1)
        if form == "bin":
            records = np.concatenate([np.array([coarse, fine], np.uint8).T, flat], axis=1)
            (folder / f"{split}.bin").write_bytes(records.tobytes())
        else:
            entries = {"data": flat, "fine_labels": fine, "coarse_labels": coarse}
            pickled(folder / split, {k.encode(): v for k, v in entries.items()}, python)
        found[split] = (pixels, fine, coarse)
    if form == "bin":
        (folder / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
        (folder / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")
    else:
        pickled(folder / "meta", {b"fine_label_names": FINE, b"coarse_label_names": COARSE}, python)
    return found
