"""What `build` of every architecture returns."""

import pytest
import torch

from quadriga.config.base import construct, kinds
from quadriga.contracts import ModelConfig
from quadriga.models.parts.initialise import initialise

SMALL = {
    "bert": {"vocabulary_size": 60, "width": 16, "depth": 1, "heads": 2, "mlp_width": 32},
    "resnet": {"depth": 18, "stem_width": 4},
    "vit": {"image_px": 16, "patch_px": 4, "width": 16, "depth": 1, "heads": 2, "registers": 2},
}


@pytest.mark.parametrize("kind", kinds(ModelConfig))  # type: ignore[type-abstract]
def test_build_gives_the_initial_values_of_seed_0(kind: str, undefined_is_nan: None) -> None:
    config = construct(ModelConfig, {"kind": kind, **SMALL[kind]})  # type: ignore[type-abstract]
    with torch.device("meta"):
        expected = config.build()
    assert all(tensor.is_meta for tensor in expected.state_dict().values())
    expected.to_empty(device="cpu")
    initialise(expected, 0)
    built = config.build()
    for (name, tensor), value in zip(
        [*built.named_parameters(), *built.named_buffers()],
        [*expected.parameters(), *expected.buffers()],
        strict=True,
    ):
        assert torch.equal(tensor, value), name
