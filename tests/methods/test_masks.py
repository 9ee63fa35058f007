"""Masks over patches: what is promised of every one, and block-wise ones against BEiT's loop."""

import math
import random

import pytest
import torch

from quadriga.methods.parts.masks import (
    block_masks,
    mask_counts,
    masked_first,
    random_masks,
)

KEYS = torch.arange(400) * 7919 + 3
GRID = (6, 9)
SAMPLERS = pytest.mark.parametrize("sampler", [random_masks, block_masks])


def counts(ratio: float, keys: torch.Tensor = KEYS) -> torch.Tensor:
    return torch.full((len(keys),), int(ratio * 54))


@SAMPLERS
def test_masks_do_not_depend_on_the_batch(sampler: type) -> None:
    wanted = mask_counts(KEYS, 54, 0.5, (0.1, 0.5))
    whole = sampler(KEYS, GRID, wanted)
    parts = [sampler(KEYS[i : i + 37], GRID, wanted[i : i + 37]) for i in range(0, 400, 37)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(sampler(KEYS + 1, GRID, wanted), whole)
    assert sampler(KEYS[:0], GRID, wanted[:0]).shape == (0, 54)


@SAMPLERS
@pytest.mark.parametrize("ratio", [0.0, 0.02, 0.1, 0.5, 0.9, 1.0])
def test_never_more_than_the_count(sampler: type, ratio: float) -> None:
    found = sampler(KEYS, GRID, counts(ratio)).sum(dim=1)
    assert (found <= counts(ratio)).all()
    if sampler is random_masks:
        assert torch.equal(found, counts(ratio))
    if ratio == 0:
        assert not found.any()
    if ratio >= 0.5:  # of few patches, a block of four often leaves one that no block fits
        assert found.float().mean() > 0.9 * 54 * ratio


@pytest.mark.parametrize("grid", [(1, 1), (1, 8), (2, 2)])
def test_grids_without_room_for_a_block_have_few_masked(grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    full = torch.full((400,), patches)
    assert (block_masks(KEYS, grid, full).sum(dim=1) <= patches).all()
    assert random_masks(KEYS, grid, full).all()


def test_counts_have_the_probability_and_the_ratios() -> None:
    keys = torch.arange(20_000)
    found = mask_counts(keys, 100, 0.5, (0.1, 0.5))
    chosen = found[found > 0]
    assert len(chosen) / len(keys) == pytest.approx(0.5, abs=0.02)
    assert (chosen.min(), chosen.max()) == (10, 49)
    assert float(chosen.float().mean()) == pytest.approx(29.5, abs=0.3)
    assert (mask_counts(keys, 100, 1.0, (1.0, 1.0)) == 100).all()
    assert (mask_counts(keys, 100, 0.0, (1.0, 1.0)) == 0).all()
    assert (mask_counts(keys, 100, 1.0, (0.0, 0.0)) == 0).all()


def beit(count: int, draws: random.Random) -> torch.Tensor:
    """``MaskingGenerator`` of BEiT's, iBOT's and DINOv2's implementations."""
    height, width = GRID
    mask = torch.zeros(GRID, dtype=torch.bool)
    masked = 0
    while masked < count:
        delta = 0
        for _ in range(10):
            area = draws.uniform(4, count - masked)
            aspect = math.exp(draws.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < width and h < height:
                top, left = draws.randint(0, height - h), draws.randint(0, width - w)
                block = mask[top : top + h, left : left + w]
                if 0 < h * w - int(block.sum()) <= count - masked:
                    delta = h * w - int(block.sum())
                    block.fill_(True)
                    break
        if delta == 0:
            break
        masked += delta
    return mask.flatten()


def test_blocks_are_distributed_as_in_beits_loop() -> None:
    """Compared: the size of masks, how often each patch is masked, and how often neighbours are."""
    draws = random.Random(0)
    theirs = torch.stack([beit(27, draws) for _ in range(1500)]).view(-1, *GRID).float()
    keys = torch.arange(1500) * 104_729
    ours = block_masks(keys, GRID, torch.full((1500,), 27)).view(-1, *GRID).float()
    sizes = [float(masks.sum(dim=(1, 2)).mean()) for masks in (ours, theirs)]
    assert sizes[0] == pytest.approx(sizes[1], abs=0.1)
    torch.testing.assert_close(ours.mean(dim=0), theirs.mean(dim=0), rtol=0, atol=0.07)
    for masks in (ours, theirs):
        assert (masks[:, :, 1:] == masks[:, :, :-1]).float().mean() > 0.7
    neighbours = [float((m[:, 1:] * m[:, :-1]).mean()) for m in (ours, theirs)]
    assert neighbours[0] == pytest.approx(neighbours[1], abs=0.02)


def test_masked_first_has_the_masked_patches_in_order() -> None:
    masks = torch.tensor([[False, True, False, True], [False] * 4, [True] * 4])
    order, weights = masked_first(masks, 3)
    assert order.tolist() == [[1, 3, 0], [0, 1, 2], [0, 1, 2]]
    assert weights.tolist() == [[0.5, 0.5, 0.0], [0.0] * 3, [0.25] * 3]
    assert masked_first(masks, 0)[0].shape == (3, 0)
