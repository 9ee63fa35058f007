"""Profiles against counts that are made another way, and against damaged files."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

from errors import refuses
from pipeline_fakes import words_run
from plan_fakes import LINKS, made_profile
from quadriga import randomness
from quadriga.engine.build import build_on_meta
from quadriga.engine.meters.cost import measure
from quadriga.optim.muon import MuonConfig
from quadriga.optim.parts.groups import make_state
from quadriga.pipeline.planner.estimate import estimate_profile
from quadriga.pipeline.planner.measure import (
    LARGE,
    SMALL,
    link_of,
    measure_network,
    measure_profile,
    micro_batch_sizes,
)
from quadriga.pipeline.planner.profile import (
    SPECS,
    DeviceSpec,
    Profile,
    find_spec,
    forward,
    make_units,
    read_profile,
    save_profile,
    sizes,
)

CPU = torch.device("cpu")
ARITHMETIC = SPECS["v100-16gb"].override(
    {"kernel_seconds": 0.0, "memory_bandwidth": 1e24, "float32": 1.0, "product_efficiency": 1.0}
)
"""A device whose seconds are the operations of matrix products."""


def test_computed_seconds_are_the_operations_of_the_whole() -> None:
    config = words_run()
    profile = estimate_profile(config, ARITHMETIC, [3])
    whole = measure(
        build_on_meta(config), config.views.build("train").example(3, torch.device("meta"))
    )
    found = profile.at(3, "none")
    assert found is not None
    units = [found.input, *[found.block] * profile.blocks, found.head]
    assert sum(unit.forward for unit in units) == pytest.approx(whole.forward_flops)
    assert sum(u.forward + u.backward for u in units) == pytest.approx(whole.training_flops)
    again = profile.at(3, "full")
    assert again is not None
    # The last product's result is not needed once more, so it is not computed once more.
    half = found.block.forward / 2
    assert again.block.backward == pytest.approx(found.block.backward + half)


def test_sizes_are_those_of_the_whole() -> None:
    for optim in (None, MuonConfig()):
        config = words_run(optim)
        units = make_units(config, CPU, "none")
        parts, shared = sizes(units, config.optim)
        objective = build_on_meta(config).to_empty(device=CPU)
        named = list(objective.named_parameters())
        optimizer = config.optim.build(named)
        make_state(optimizer, [p for _, p in named])
        states = sum(
            value.nbytes
            for _, parameter in named
            for value in optimizer.state[parameter].values()
            if value.shape == parameter.shape
        )
        total = sum(p.nbytes for _, p in named)
        counts = [1, 4, 1]
        assert shared == objective.embeddings.weight.nbytes
        assert (
            sum(n * p.trainable_bytes for n, p in zip(counts, parts, strict=True)) == total + shared
        )
        rate = parts[0].state_bytes // parts[0].trainable_bytes
        held = sum(n * p.state_bytes for n, p in zip(counts, parts, strict=True))
        assert held == states + rate * shared


def test_kept_is_what_autograd_saves_and_the_output() -> None:
    config = words_run(model__dropout=0.2)
    units = make_units(config, CPU, "none")
    batch = config.views.build("train").example(3, CPU)
    hidden = torch.randn(3, 5, 8, requires_grad=True)
    apart = {t.untyped_storage().data_ptr() for t in [hidden, *units.block.parameters()]}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with randomness.micro_batch(0, 0, 0, 0):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = units.block(hidden, batch)
        saved[output.untyped_storage().data_ptr()] = output.untyped_storage().nbytes()
        kept = forward(units.block, hidden, batch, contextlib.nullcontext())[1]
    assert kept == sum(saved.values())


@pytest.fixture(scope="module")
def measured() -> Profile:
    return measure_profile(words_run(), CPU, LINKS, [1, 4], memory=2**30)


def test_measured_and_computed_agree_on_bytes(measured: Profile) -> None:
    computed = estimate_profile(words_run(), SPECS["h100"], [1, 4])
    assert measured.blocks == computed.blocks == 4
    for part in ("input", "block", "head", "shared_bytes"):
        assert getattr(measured, part) == getattr(computed, part)
    for one, other in zip(measured.measurements, computed.measurements, strict=True):
        assert (one.micro_batch, one.recompute) == (other.micro_batch, other.recompute)
        assert one.boundary_bytes == other.boundary_bytes
        assert one.batch_bytes == other.batch_bytes
        assert one.block.kept == other.block.kept
        assert one.input.kept == other.input.kept
    assert all(m.block.forward > 0 and m.block.backward > 0 for m in measured.measurements)
    assert measured.update_seconds > 0
    assert measured.facts.batches == "the data"


def test_threads_are_those_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    seen = []

    def stop(*arguments: object) -> None:
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr("quadriga.pipeline.planner.measure._measurements", stop)
    with pytest.raises(KeyboardInterrupt):
        measure_profile(words_run(), CPU, LINKS, [1], threads=before + 1)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_profile_round_trips_through_its_file(measured: Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(measured, path)
    assert read_profile(path, "words", "float32") == measured
    assert [file.name for file in tmp_path.iterdir()] == ["profile.json"]


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"version": 2}, ("version", "2", "1")),
        ({"measurements": []}, ("measurements", "empty")),
        ({"blocks": 0}, ("blocks", "at least 1", "0")),
        ({"spare": 1}, ("spare", "unknown")),
        ({"memory": "much"}, ("memory", "integer", "'much'")),
        ({"facts": {"recipe": "words"}}, ("facts.method", "required")),
    ],
)
def test_damaged_profiles_are_refused(
    change: dict, fragments: tuple[object, ...], tmp_path: Path
) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({**made_profile().as_dict(), **change}))
    with refuses(path, *fragments):
        read_profile(path, "words", "float32")


def test_profiles_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(made_profile(), path)
    with refuses(path, "other", "words"):
        read_profile(path, "other", "float32")
    with refuses(path, "precision bfloat16"):
        read_profile(path, "words", "bfloat16")
    for text in ("[1]", "{"):
        path.write_text(text)
        with refuses(path, "JSON"):
            read_profile(path, "words", "float32")
    with refuses(tmp_path / "missing.json"):
        read_profile(tmp_path / "missing.json", "words", "float32")
    with refuses(tmp_path / "no" / "folder.json"):
        save_profile(made_profile(), tmp_path / "no" / "folder.json")


def test_device_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(SPECS["h100"].override({"name": "mine", "bfloat16": None}).as_json())
    spec = find_spec(str(path))
    assert spec == DeviceSpec.from_dict(json.loads(path.read_text()))
    with refuses("train.precision", "mine", "float32, float16"):
        estimate_profile(words_run(train__precision="bfloat16"), spec, [1])
    with refuses("h10", "h100"):
        find_spec("h10")
    path.write_text('{"name": "mine"}')
    with refuses(path, "float32", "required"):
        find_spec(str(path))


def test_products_run_at_the_rate_of_their_type() -> None:
    spec = ARITHMETIC.override({"bfloat16": 8.0})
    plain, half = (
        estimate_profile(words_run(train__precision=precision), spec, [2]).at(2, "none")
        for precision in ("float32", "bfloat16")
    )
    assert plain is not None
    assert half is not None
    assert half.block.forward == pytest.approx(plain.block.forward / 8)
    assert half.block.backward == pytest.approx(plain.block.backward / 8)


def test_micro_batch_sizes_divide_the_batch() -> None:
    assert micro_batch_sizes(1024) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert micro_batch_sizes(24) == [1, 2, 4, 8, 24]
    assert micro_batch_sizes(7) == [1, 7]


def test_two_messages_give_a_link() -> None:
    link = link_of(0.5, 0.5 + (LARGE - SMALL) / 1000)
    assert link.bandwidth == pytest.approx(1000)
    assert link.latency == 0.5


def test_two_processes_exchange_messages() -> None:
    network = measure_network(CPU)
    assert network.within.bandwidth > 1e6
    assert 0 < network.within.latency < 1
    assert not network.overlaps
