import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from errors import refuses
from quadriga.weights.files import read_tensors, write_tensors


def tensors() -> dict[str, Tensor]:
    return {"weight": torch.arange(12.0).view(3, 4), "bias": torch.ones(3, dtype=torch.bfloat16)}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_tensors_come_back_as_they_were(suffix: str, tmp_path: Path) -> None:
    # A view of a larger tensor, and one that is not contiguous: a file holds what they show.
    given = {**tensors(), "view": torch.arange(12.0).view(3, 4).T[1:]}
    write_tensors(given, tmp_path / "new" / f"weights{suffix}")
    found = read_tensors(tmp_path / "new" / f"weights{suffix}")
    assert sorted(found) == sorted(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"weights{suffix}"]


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("harmed",))


def test_damaged_and_harmful_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": tensors(), "args": Harmful()}, "objects.pth")
    write_tensors(tensors(), Path("whole.pth"))
    write_tensors(tensors(), Path("whole.safetensors"))
    for suffix in (".pth", ".safetensors"):
        content = Path(f"whole{suffix}").read_bytes()
        Path(f"cut{suffix}").write_bytes(content[: len(content) // 2])
    Path("text.pth").write_text("not weights")
    Path("empty.pth").touch()
    torch.save({"epoch": 3}, "nothing.pth")
    torch.save([torch.zeros(2)], "list.pth")
    for name, *fragments in (
        ("objects.pth", "Python objects"),
        ("text.pth", "damaged"),
        ("empty.pth", "torch"),
        ("cut.pth", "torch"),
        ("cut.safetensors", "safetensors"),
        ("nothing.pth", "no tensors", "epoch"),
        ("list.pth", "list"),
        ("absent.pth", "existing"),
        ("weights.npz", ".safetensors, .pth, .pt, .bin"),
    ):
        with refuses(name, *fragments):
            read_tensors(Path(name))
    assert not Path("harmed").exists()


def test_an_export_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with refuses(tmp_path / "folder" / "a.safetensors"):
        write_tensors(tensors(), tmp_path / "folder" / "a.safetensors")
    (tmp_path / "taken.safetensors").mkdir()
    with refuses(tmp_path / "taken.safetensors"):
        write_tensors(tensors(), tmp_path / "taken.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "taken.safetensors"]
