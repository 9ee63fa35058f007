"""What every file of the methods' room must keep to; a new file is found by itself."""

import json
import math

import pytest
import torch

from errors import refuses
from quadriga import randomness
from quadriga.config.base import construct, kinds
from quadriga.contracts import (
    Batch,
    Encoder,
    LossOutput,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    PooledObjective,
)
from quadriga.engine.build import give_memory
from quadriga.errors import UserError
from quadriga.models.bert import BertConfig
from quadriga.models.vit import ViTConfig
from text_batches import text_batch

IMAGES = ViTConfig(image_px=16, patch_px=4, width=16, depth=2, heads=2)
TEXT = BertConfig(vocabulary_size=60, width=16, depth=2, heads=2, mlp_width=32, max_positions=16)
OWN = {
    "supervised": {"classes": 7},
    "moco": {"hidden_width": 32, "output_width": 8, "queue": 6},
    "moco_v3": {"hidden_width": 32, "output_width": 8},
    "dino": {"prototypes": 20, "hidden_width": 32, "bottleneck_width": 8},
    "byol": {"hidden_width": 32, "output_width": 8},
    "simsiam": {"hidden_width": 8, "output_width": 32},
    "barlow_twins": {"hidden_width": 32, "output_width": 8},
    "vicreg": {"hidden_width": 32, "output_width": 8},
    "simclr": {"hidden_width": 32, "output_width": 8},
    "swav": {"prototypes": 20, "hidden_width": 32, "output_width": 8, "queue": 6},
    "ibot": {"prototypes": 20, "hidden_width": 32, "bottleneck_width": 8, "shared_head": False},
    "dinov2": {"prototypes": 20, "hidden_width": 32, "bottleneck_width": 8},
    "simmim": {"mask_px": 8},
    "lejepa": {"hidden_width": 32, "output_width": 8, "slices": 16},
    "ijepa": {"predictor_width": 16, "predictor_depth": 2, "predictor_heads": 2},
}
"""What the methods need, and what makes them small."""
OF_CROPS = ("moco_v3", "dino", "swav", "simclr", "moco", "ibot", "dinov2")
OF_CROPS += ("byol", "simsiam", "barlow_twins", "vicreg", "lejepa")
"""Methods that see two views of each image."""
OF_TEXT = ("masked_lm", "sequence_classification")
"""Methods whose model is a BERT; all others see images."""

MIXTURES = {"mixture"}
"""What is put together from the others, and needs batches of its own."""

WITHOUT_LOSS = {"encoder"}
"""What is evaluated and not trained."""

KINDS = sorted({*kinds(ObjectiveConfig)} - MIXTURES - WITHOUT_LOSS)  # type: ignore[type-abstract]

pytestmark = pytest.mark.parametrize("kind", KINDS)


def config_of(kind: str) -> ObjectiveConfig:
    return construct(ObjectiveConfig, {"kind": kind, **OWN.get(kind, {})})  # type: ignore[type-abstract]


def model_of(kind: str) -> ModelConfig:
    return TEXT if kind in OF_TEXT else IMAGES


def made(kind: str) -> Objective:
    objective = config_of(kind).build(model_of(kind))
    with torch.no_grad():
        for tensor in objective.state_dict().values():
            tensor.fill_(math.nan if tensor.is_floating_point() else -1)
    objective.initialise(seed=1)
    return objective


def batch(kind: str, size: int = 4) -> Batch:
    if kind in OF_TEXT:
        return {**text_batch([9, 16, 5, 12][:size]), "label": torch.arange(size) % 2}
    source = randomness.generator(0, "contract")
    key = torch.arange(size)
    if kind in OF_CROPS:
        crops = torch.empty(size, 2, 3, 16, 16).normal_(generator=source)
        return {"crops": crops, "key": key, "index": key}
    image = torch.empty(size, 3, 16, 16).normal_(generator=source)
    return {"image": image, "key": key, "index": key, "label": key % 3}


def sum_of_terms(output: LossOutput) -> torch.Tensor:
    return torch.stack([term.weight * term.total for term in output.terms.values()]).sum()


def test_config_round_trips_through_json(kind: str) -> None:
    config = config_of(kind)
    again = construct(ObjectiveConfig, json.loads(config.as_json()))  # type: ignore[type-abstract]
    assert again == config
    assert config.kind() == kind


def test_build_gives_the_initial_values_of_seed_0(kind: str, undefined_is_nan: None) -> None:
    with torch.device("meta"):
        expected = config_of(kind).build(model_of(kind))
    assert all(tensor.is_meta for tensor in expected.state_dict().values())
    give_memory(expected, torch.device("cpu"), seed=0)
    built = config_of(kind).build(model_of(kind))
    pairs = zip(
        [*built.named_parameters(), *built.named_buffers()],
        [*expected.parameters(), *expected.buffers()],
        strict=True,
    )
    for (name, tensor), value in pairs:
        assert torch.equal(tensor, value), name


def test_nothing_is_left_as_it_was(kind: str) -> None:
    objective = made(kind)
    for name, tensor in [*objective.named_parameters(), *objective.named_buffers()]:
        assert tensor.isfinite().all(), name


def test_loss_is_finite_and_a_gradient_reaches_what_is_trained(kind: str) -> None:
    objective = made(kind)
    with randomness.micro_batch(seed=1, step=0, index=0, replica=0):
        output = objective(batch(kind))
    for term in output.terms.values():
        assert term.total.shape == ()
        assert term.total.isfinite()
        assert term.targets is None or term.targets > 0
    output.value.backward()
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
        else:
            assert parameter.grad is None, name


def test_a_batch_without_samples_has_no_loss_and_a_gradient_of_zero(kind: str) -> None:
    """What a rank of a mixture passes where others have samples of a task and it has none."""
    if isinstance(made(kind), PooledObjective):
        return  # a mixture refuses them
    objective, empty = made(kind), batch(kind, 0)
    with randomness.micro_batch(seed=1, step=0, index=0, replica=0):
        output = objective(empty)
    output.value.backward()
    for term in output.terms.values():
        assert term.total == 0
        assert term.targets is None or term.targets == 0
    with randomness.micro_batch(seed=1, step=0, index=0, replica=0):
        full = made(kind)
        full(batch(kind)).value.backward()
    for (name, parameter), other in zip(
        objective.named_parameters(), full.parameters(), strict=True
    ):
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or not parameter.grad.any(), name


def test_a_step_of_one_sample_is_finite(kind: str) -> None:
    """The engine counts the operations of a sample with such a step."""
    objective = made(kind)
    with randomness.micro_batch(seed=1, step=0, index=0, replica=0):
        loss = objective(batch(kind, 1)).value
    loss.backward()
    assert loss.isfinite()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_counts_are_known_from_the_batch_alone(kind: str) -> None:
    objective = made(kind)
    if isinstance(objective, PooledObjective):
        return  # a loss of the whole step brings its count, which may be 1 on each rank
    counts = objective.counts(batch(kind))
    with randomness.micro_batch(seed=1, step=0, index=0, replica=0):
        terms = objective(batch(kind)).terms
    assert counts.keys() == terms.keys() == set(objective.term_names)
    for name, term in terms.items():
        assert counts[name] == (1 if term.targets is None else term.targets)


def test_same_scope_same_loss(kind: str) -> None:
    def loss() -> torch.Tensor:
        with randomness.micro_batch(seed=1, step=0, index=0, replica=0):
            return made(kind)(batch(kind)).value

    assert torch.equal(loss(), loss())


def test_what_is_drawn_for_an_image_is_the_same_in_any_micro_batch(kind: str) -> None:
    if kind in OF_TEXT:
        return
    objective = config_of(kind).build(IMAGES.override({"drop_path": 0.5}))
    objective.initialise(seed=1)

    def seen(part: Batch) -> torch.Tensor:
        """What adds over micro-batches: the loss, or the rows that it is pooled from."""
        if isinstance(objective, PooledObjective):
            return torch.cat([rows.flatten(1) for rows in objective.embed(part).values()], dim=1)
        return sum_of_terms(objective(part))[None]

    whole = batch(kind, 8)
    expected = seen(whole)
    assert not torch.equal(seen({**whole, "key": whole["key"] + 99}), expected)
    for size in (1, 2, 5):
        parts = [{n: t[i : i + size] for n, t in whole.items()} for i in range(0, 8, size)]
        done = torch.cat([seen(part) for part in parts])
        done = done if isinstance(objective, PooledObjective) else done.sum(dim=0, keepdim=True)
        torch.testing.assert_close(done, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(objective.eval()(whole).value, objective(whole).value)


def test_dry_run_on_the_meta_device(kind: str) -> None:
    with torch.device("meta"):
        objective = config_of(kind).build(model_of(kind))
    objective.initialise(seed=1)
    with randomness.micro_batch(seed=1, step=0, index=0, replica=0):
        output = objective({name: tensor.to("meta") for name, tensor in batch(kind).items()})
    assert output.value.is_meta


def test_features_are_one_vector_per_image(kind: str) -> None:
    objective = made(kind).eval()
    if isinstance(objective, Encoder):
        images = batch("mae")["image"]
        features = objective.features(images)
        assert features.shape == (4, 16)
        torch.testing.assert_close(features[:1], objective.features(images[:1]))


def test_another_number_of_views_is_refused(kind: str) -> None:
    if kind in OF_TEXT:
        return
    other = batch("mae" if kind in OF_CROPS else OF_CROPS[0])
    with pytest.raises(UserError, match=r"set views\.crops="):
        made(kind)({**other, "label": other["key"] % 3})


def test_unknown_keys_are_refused(kind: str) -> None:
    with refuses("no_such_key", "unknown"):
        config_of(kind).override({"no_such_key": 1})
