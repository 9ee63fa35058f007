"""Layer numbers from names, learning rates by rule, and groups that are merged and whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from errors import refuses
from quadriga.methods.mae import MAEConfig
from quadriga.models.vit import ViTConfig
from quadriga.optim.parts.groups import decay_groups, is_exempt, layer_ids, lr_scales_of

NO_DECAY = ("norm", "bias", "token")

NAMES = st.builds(
    "{}{}".format,
    st.sampled_from(["encoder.", "encoder.blocks.0.", "encoder.blocks.1.", "encoder.blocks.12."]),
    st.sampled_from(["class_token", "patch_projection.weight", "norm.weight", "mlp.bias", "mlp.w"]),
)


def test_layers_of_a_vit_with_a_head() -> None:
    model = ViTConfig(image_px=16, patch_px=4, width=8, depth=3, heads=2).build()
    names = [name for name, _ in nn.ModuleDict({"encoder": model}).named_parameters()]
    names += ["head.weight", "head.bias"]
    ids, layers = layer_ids(names)
    assert layers == 3
    for name, layer in zip(names, ids, strict=True):
        if ".blocks." in name:
            assert layer == int(name.split(".blocks.")[1].split(".")[0]) + 1, name
        elif name.startswith(("head", "encoder.norm")):
            assert layer == 4, name
        else:
            assert layer == 0, name


def test_a_decoder_with_blocks_of_its_own_is_the_head() -> None:
    model = ViTConfig(image_px=16, patch_px=4, width=8, depth=2, heads=2)
    objective = MAEConfig(decoder_width=8, decoder_depth=3, decoder_heads=2).build(model)
    names = [name for name, _ in objective.named_parameters()]
    ids, layers = layer_ids(names)
    assert layers == 2
    for name, layer in zip(names, ids, strict=True):
        if name.startswith("decoder."):
            assert layer == 3, name
        elif "patch_projection" in name or "class_token" in name:
            assert layer == 0, name
    assert {layer for name, layer in zip(names, ids, strict=True) if "encoder" in name} == {
        0,
        1,
        2,
        3,
    }


def test_embeddings_beside_the_stack_are_layer_zero() -> None:
    names = ["embeddings.word.weight", "trunk.blocks.0.w", "trunk.blocks.1.w", "pooler.weight"]
    assert layer_ids(names) == ([0, 1, 2, 3], 2)


def test_layer_decay_is_the_reference_formula() -> None:
    names = ["class_token", "blocks.0.w", "blocks.10.w", "blocks.11.w", "norm.weight", "head.w"]
    found = lr_scales_of(names, 0.65, {})
    # lr_i = lr d^(L + 1 - i), with L = 12 blocks.
    assert found == pytest.approx([0.65**13, 0.65**12, 0.65**2, 0.65, 1.0, 1.0], rel=1e-15)


def test_factors_of_several_parts_multiply() -> None:
    found = lr_scales_of(
        ["head.w", "head.bias", "body.bias", "body.w"], 1.0, {"head": 10.0, "bias": 2.0}
    )
    assert found == [10, 20, 2, 1]


def test_layer_decay_without_blocks_is_refused() -> None:
    with refuses("optim.layer_decay", "1", "blocks"):
        lr_scales_of(["stem.weight", "head.weight"], 0.9, {})


@given(
    parameters=st.lists(
        st.tuples(NAMES, st.sampled_from([(2,), (2, 3)]), st.booleans()),
        unique_by=lambda p: p[0],
        max_size=12,
    ),
    decay=st.sampled_from([0.0, 0.1]),
    layer_decay=st.sampled_from([1.0, 0.5]),
    marked=st.booleans(),
)
def test_groups_are_whole_right_and_as_few_as_can_be(
    parameters: list[tuple[str, tuple[int, ...], bool]],
    decay: float,
    layer_decay: float,
    marked: bool,
) -> None:
    anchor = ("encoder.blocks.2.anchor", (2, 3), True)
    named = [
        (name, nn.Parameter(torch.zeros(shape), requires_grad=trained))
        for name, shape, trained in [*parameters, anchor]
    ]

    def settings(name: str, parameter: nn.Parameter) -> dict[str, object]:
        return {"marked": parameter.ndim == 2, "lr_scale": 3.0} if marked else {}

    factors = {"blocks": 0.25}
    groups = decay_groups(named, decay, NO_DECAY, layer_decay, factors, settings)
    trained = [(name, p) for name, p in named if p.requires_grad]
    scales = dict(
        zip(
            [name for name, _ in trained],
            lr_scales_of([name for name, _ in trained], layer_decay, factors),
            strict=True,
        )
    )
    name_of = {id(p): name for name, p in named}
    seen = [id(p) for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for _, p in trained)
    keys = []
    for group in groups:
        keys.append((group["weight_decay"], group["lr_scale"], group.get("marked")))
        for parameter in group["params"]:
            name = name_of[id(parameter)]
            assert group["lr_scale"] == scales[name] * (3.0 if marked else 1.0)
            expected = 0.0 if is_exempt(name, parameter, NO_DECAY) else decay
            assert group["weight_decay"] == expected
            assert group.get("marked") == (parameter.ndim == 2 if marked else None)
    assert len(set(keys)) == len(keys)
    assert all(group["params"] for group in groups)


def test_vectors_decay_only_where_it_is_said() -> None:
    named = [
        (name, nn.Parameter(torch.zeros(shape)))
        for name, shape in (("body.weight", (2, 3)), ("body.gain", (2,)), ("body.norm", (2,)))
    ]
    for decay_vectors, expected in ((False, [0.1, 0.0, 0.0]), (True, [0.1, 0.1, 0.0])):
        groups = decay_groups(named, 0.1, ("norm",), decay_vectors=decay_vectors)
        found = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert [found[id(p)] for _, p in named] == expected
