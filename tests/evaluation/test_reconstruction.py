import evaluation_fakes as fakes
import numpy as np
import pytest
import torch
from PIL import Image

from errors import refuses
from quadriga.distributed.environment import DistEnv
from quadriga.evaluation import reconstruction
from quadriga.evaluation.reconstruction import (
    FILE,
    GAP_PX,
    TITLE_PX,
    ReconstructionConfig,
    draw_grid,
    masked_error,
    pixel_range,
    to_pixels,
)


def test_pixels_come_back_from_the_normalised_image():
    pixels = fakes.images_of(5, 1)
    numbers = torch.zeros(5, dtype=torch.int64)
    batch = {"image": torch.from_numpy(pixels), "index": numbers, "key": numbers}
    normalised = fakes.Normalise().batch(batch)["image"]
    low, high = pixel_range(fakes.Normalise(), normalised)
    assert (to_pixels(normalised, low, high) == pixels.transpose(0, 2, 3, 1)).all()


def test_masked_error_is_the_mean_over_hidden_pixels():
    images = torch.from_numpy(fakes.images_of(3, 2)).float()
    hidden = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    hidden[:, :, 1, 2:] = True
    guess = images + 2.0
    squares, count = masked_error(images, images * ~hidden, torch.where(hidden, guess, images))
    assert count == 3 * 3 * 2
    assert squares / count == 4.0


def test_result_and_picture(tmp_path):
    context = fakes.context_of(tmp_path)
    result = ReconstructionConfig(images=3).build().run(context)
    rows = result.details["indices"]
    assert len(set(rows)) == 3
    numbers = torch.zeros(3, dtype=torch.int64)
    pixels = torch.from_numpy(context.data("test").images[rows])
    batch = {"image": pixels, "index": numbers, "key": numbers}
    left = context.transform.batch(batch)["image"][..., :2]
    expected = (2 * left.double()).square().mean().item()
    assert result.metrics["masked_mse"] == pytest.approx(expected)
    assert list(result.pictures) == [FILE]

    with Image.open(tmp_path / FILE) as opened:
        picture = np.asarray(opened)
    first = picture[TITLE_PX : TITLE_PX + 128, :128]
    original = context.data("test").images[rows[0]].transpose(1, 2, 0)
    assert (first[::32, ::32, :3] == original).all()
    assert (first[31::32, 31::32, :3] == original).all()
    assert not list(tmp_path.glob("*.tmp"))


def test_the_same_images_are_shown_again(tmp_path):
    run = ReconstructionConfig(images=4).build().run
    assert run(fakes.context_of(tmp_path)) == run(fakes.context_of(tmp_path))
    many = ReconstructionConfig(images=500).build().run(fakes.context_of(tmp_path))
    assert many.details["indices"] == list(range(23))


def test_only_rank_0_writes(tmp_path, monkeypatch):
    main = ReconstructionConfig(images=2).build().run(fakes.context_of(tmp_path))
    (tmp_path / FILE).unlink()
    monkeypatch.setattr(reconstruction, "from_main", lambda write, env: None)
    env = DistEnv(1, 2, 1, 2, torch.device("cpu"))
    result = ReconstructionConfig(images=2).build().run(fakes.context_of(tmp_path, env=env))
    assert result == main
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "panels"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_every_image_has_its_place(count, panels):
    colours = np.arange(1, count + 1, dtype=np.uint8)
    images = np.broadcast_to(colours[:, None, None, None], (count, 2, 2, 3)).copy()
    picture = np.asarray(draw_grid([("a", images), ("b", images)]))
    below = picture[TITLE_PX:]
    opaque = below[..., 3] == 255
    shown = below[..., 0][opaque]
    assert [(shown == c).sum() for c in colours] == [2 * 128 * 128] * count
    assert picture.shape[0] == TITLE_PX + -(-count // panels) * (128 + GAP_PX) - GAP_PX


def test_refusals(tmp_path):
    run = ReconstructionConfig().build().run
    with refuses("reconstruction", "Headless"):
        run(fakes.context_of(tmp_path, objective=fakes.Headless()))
    with refuses(tmp_path / "missing" / "reconstruction.png"):
        run(fakes.context_of(tmp_path / "missing"))
    empty = fakes.ArrayDataset(fakes.images_of(0, 0), np.zeros(0, int), 7)
    context = fakes.context_of(tmp_path, test=empty)
    with refuses("reconstruction", "at least 1"):
        run(context)
