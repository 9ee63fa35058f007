"""Parts that do not belong to the target are refused, not taken in part."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from incubations import assembly_run, built, growth_run, hybrid_run, meta_run

from errors import refuses
from quadriga.contracts import WeightSource
from quadriga.modular.parts.sources import META, source_modules
from quadriga.weights.layouts.model_stages import digest, document, foreign_names


def source_of(config, path="runs/meta", objective=None):
    state = (objective or built(config)).state_dict()
    tensors = {name: tensor.clone() for name, tensor in state.items()}
    return WeightSource(path=Path(path), tensors=tensors, config=config.as_dict())


def file(path, stages, notes=None):
    return WeightSource(path=Path(path), tensors={}, config=None, stages=tuple(stages), notes=notes)


def file_of(config, path="meta.pth"):
    """Return a file in the published layout that does not say what its model is."""
    stages = document(foreign_names(built(config).state_dict(), config.model), (1, 1))
    return file(path, stages["model_stages"])


@pytest.mark.parametrize("make", [growth_run, hybrid_run])
def test_a_meta_model_with_more_tensors_is_another_model(make):
    how = "stacking" if make is growth_run else 0
    scaled = source_of(meta_run(model__layer_scale=0.1))
    with refuses("encoder.blocks.0.attention_residual.scale.factor", "meta"):
        built(make("runs/meta", how), [scaled])
    biased = file_of(meta_run())
    with refuses("encoder.blocks.0.attention.qkv.bias", "meta"):
        built(make("meta.pth", how, model__qkv_bias=False), [biased])
    built(make("runs/meta", how, model__layer_scale=0.2), [scaled])


def test_a_module_with_more_tensors_is_of_another_target():
    config = hybrid_run("runs/meta", 0, 1, model__layer_scale=0.1)
    meta = source_of(meta_run(model__layer_scale=0.1))
    modules = source_of(config, "runs/modules", built(config, [meta]))
    with refuses("modular.modules", "encoder.blocks.0.attention_residual.scale.factor"):
        built(assembly_run("runs/modules"), [modules])


def module_file(index, seed):
    """Return a module of two that says in which meta model it was trained."""
    config = hybrid_run("runs/meta", index)
    hybrid = built(config, [source_of(meta_run(seed=seed))]).state_dict()
    parts = [f"live.{s}." if s == index else f"meta.{s}." for s in (0, 1)]
    whole_names, blocks = {}, 0
    for begin in parts:
        own = {n.removeprefix(begin): t for n, t in hybrid.items() if n.startswith(begin)}
        numbers = sorted({int(n.split(".")[2]) for n in own if ".blocks." in n})
        for name, tensor in own.items():
            words = name.split(".")
            if words[1] == "blocks":
                words[2] = str(blocks + numbers.index(int(words[2])))
            whole_names[".".join(words)] = tensor
        blocks += len(numbers)
    cut = (2, 1) if index == 0 else (1, 2)
    stages = document(foreign_names(whole_names, config.model), cut)["model_stages"]
    meta = {n.removeprefix(META).partition(".")[2]: t for n, t in hybrid.items() if META in n}
    notes = {"index": index, "depths": [2, 2], "meta": digest(meta)}
    return file(f"{seed}_{index}.pth", stages, notes)


def test_two_files_without_a_stage_in_common_have_one_meta_model():
    first, second, other = module_file(0, 1), module_file(1, 1), module_file(1, 2)
    run = assembly_run("1_0.pth", "1_1.pth")
    built(run, [first, second])
    with refuses("modular.modules", "module 1"):
        built(run, [first, other])
    # A run and a file of it agree.
    config = hybrid_run("runs/meta", 1)
    same = source_of(config, "runs/1", built(config, [source_of(meta_run(seed=1))]))
    built(run, [first, same])
    assert source_modules(first, (2, 2))[0].meta[None] == source_modules(same, (2, 2))[0].meta[None]
    untold = dataclasses.replace(other, notes={"index": 1})
    built(run, [first, untold])


@pytest.mark.parametrize("index", [2, -1, "0", 1.0])
def test_a_file_that_names_no_stage_of_its_own_is_refused(index):
    wrong = dataclasses.replace(module_file(0, seed=1), notes={"index": index})
    with refuses("modular.modules", "2 stages", repr(index)):
        source_modules(wrong, (2, 2))
