"""Incubations through the whole engine: what is frozen stays, what is assembled is its parts."""

from __future__ import annotations

import json
from subprocess import CompletedProcess

import pytest
import torch
from incubations import (
    DEPTHS,
    assembly_run,
    batch,
    built,
    growth_run,
    hybrid_run,
    meta_run,
    train,
    whole,
)
from torch import Tensor

from errors import assert_refused, refuses
from quadriga.cli.entry import run
from quadriga.config.provenance import Resolved
from quadriga.engine.initial_weights import read_source
from quadriga.weights.layouts.model_stages import document, foreign_names
from tiny import assert_bit_equal, read_checkpoint, read_metrics


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A meta model, both modules trained apart, and both in one process."""
    folder = tmp_path_factory.mktemp("incubation")
    assert train(meta_run(seed=1), folder / "meta") == 0
    for live in ((0,), (1,), (0, 1)):
        name = "module_" + "_".join(map(str, live))
        assert train(hybrid_run(folder / "meta", *live), folder / name) == 0
    assert train(assembly_run(folder / "module_1", folder / "module_0"), folder / "whole") == 0
    return folder


def part(folder, name, begin, step=5) -> dict[str, Tensor]:
    tensors = read_checkpoint(folder / name, step)
    return {n.removeprefix(begin): t for n, t in tensors.items() if n.startswith(begin)}


def test_what_is_frozen_is_the_meta_model_bit_for_bit(runs):
    meta = part(runs, "meta", "objective.")
    for live in ("0", "1"):
        for stage in ("0", "1"):
            frozen = part(runs, f"module_{live}", f"objective.meta.{stage}.")
            for name, tensor in frozen.items():
                assert torch.equal(tensor, meta[name]), name
        trained = part(runs, f"module_{live}", "optimizer.")
        assert trained
        assert all(name.startswith(f"live.{live}.") for name in trained)


def test_two_modules_in_one_process_are_those_trained_apart(runs):
    together = part(runs, "module_0_1", "objective.live.") | part(
        runs, "module_0_1", "optimizer.live."
    )
    apart: dict[str, Tensor] = {}
    for live in ("0", "1"):
        apart |= part(runs, f"module_{live}", "objective.live.")
        apart |= part(runs, f"module_{live}", "optimizer.live.")
    assert_bit_equal(together, apart)
    alone = [read_metrics(runs / f"module_{live}") for live in "01"]
    for both, first, second in zip(read_metrics(runs / "module_0_1"), *alone, strict=True):
        assert both["module_0.loss"] == first["loss"]
        assert both["module_1.accuracy"] == second["accuracy"]
        # Clipped apart: the step's norm is that of both.
        assert both["grad_norm"] ** 2 == pytest.approx(
            first["grad_norm"] ** 2 + second["grad_norm"] ** 2, rel=1e-5
        )
        assert first["grad_norm"] > whole().optim.clip_norm


def test_the_assembled_model_is_its_modules_in_turn(runs):
    config = assembly_run(runs / "module_0_1")
    sources = [read_source(path, option) for option, path in config.modular.sources()]
    assembled = built(config, sources).eval()
    hidden = None
    for live in (0, 1):
        hybrid = built(hybrid_run(runs / "meta", live))
        own = part(runs, f"module_{live}", f"objective.live.{live}.")
        hybrid.live[str(live)].load_state_dict(own)
        with torch.no_grad():
            hidden = hybrid.eval().live[str(live)](hidden, batch())
    with torch.no_grad():
        assert torch.equal(assembled(batch()).only.total, hidden.only.total)
    again = built(
        assembly_run(runs / "module_1", runs / "module_0"),
        [read_source(runs / name, "x") for name in ("module_1", "module_0")],
    )
    assert_bit_equal(dict(assembled.state_dict()), dict(again.state_dict()))


def test_the_assembled_run_goes_on_as_an_ordinary_one(runs, tmp_path):
    assert "objective.encoder.blocks.3.mlp.output.weight" in read_checkpoint(runs / "whole", 5)
    # What it starts from is in its checkpoints: a resumed run needs its modules no more.
    config = assembly_run(
        runs / "module_0", runs / "module_1", checkpoint__every_steps=2, checkpoint__keep=3
    )
    assert train(config, tmp_path / "again") == 0
    path, folder = tmp_path / "again.json", tmp_path / "again" / "checkpoints"
    for step in (4, 5):
        for file in sorted((folder / f"step_{step:08d}").iterdir()):
            file.unlink()
        (folder / f"step_{step:08d}").rmdir()
    gone = config.override({"modular.modules": ["nowhere"]})
    path.write_text(Resolved.of(gone, "test").as_json())
    assert run(["train", str(path), "--work-dir", str(tmp_path / "again"), "--resume"]) == 0
    assert_bit_equal(read_checkpoint(tmp_path / "again", 5), read_checkpoint(runs / "whole", 5))


def test_files_in_the_published_layout_are_as_good_as_runs(runs, tmp_path):
    """A meta model and modules without a word on what they are: told by their depths."""
    meta = part(runs, "meta", "objective.")
    model = meta_run().model
    torch.save(document(foreign_names(meta, model), (1, 1)), tmp_path / "meta.pth")
    config = hybrid_run(tmp_path / "meta.pth", 0)
    assert train(config, tmp_path / "module_0") == 0
    assert_bit_equal(part(tmp_path, "module_0", "objective."), part(runs, "module_0", "objective."))
    for live, depths in ((0, (2, 1)), (1, (1, 2))):
        hybrid = {}
        for stage in (0, 1):
            begin = f"objective.{'live' if stage == live else 'meta'}.{stage}."
            shift = {(0, 0): 0, (1, 1): -1, (0, 1): 1, (1, 0): 0}[live, stage]
            for name, tensor in part(runs, f"module_{live}", begin).items():
                head, dot, rest = name.partition("blocks.")
                number, _, leaf = rest.partition(".")
                hybrid[f"{head}blocks.{int(number) + shift}.{leaf}" if dot else name] = tensor
        torch.save(
            {"model_stages": document(foreign_names(hybrid, model), depths)["model_stages"]},
            tmp_path / f"{1 - live}.pth",
        )
    assert train(assembly_run(tmp_path / "0.pth", tmp_path / "1.pth"), tmp_path / "whole") == 0
    assert_bit_equal(part(tmp_path, "whole", "objective."), part(runs, "whole", "objective."))


def refused(config, folder, capsys, *fragments):
    capsys.readouterr()
    code = train(config, folder)
    assert_refused(CompletedProcess("train", code, *capsys.readouterr()), *fragments)


def test_bad_input_is_one_clear_line(runs, tmp_path, capsys):
    def check(config, *fragments):
        refused(config, tmp_path / "bad", capsys, *fragments)

    def module(name):
        return runs / f"module_{name}"

    check(assembly_run(module(1)), "modular.modules", "2 places", "module 0", module(1))
    twice = assembly_run(module(0), module("0_1"))
    check(twice, "modular.modules", "both", module(0), module("0_1"), "module 0")
    check(assembly_run(module(0), depths=(4,)), "modular.depths", "two modules", "[4]")
    check(assembly_run(module(0), depths=(4, 0)), "modular.depths", "1 block", "[4, 0]")
    check(hybrid_run(runs / "meta", 0, depths=(2, 3)), "modular.depths", "model.depth=4", "[2, 3]")
    other_cut = assembly_run(module(0), module(1), depths=(3, 1))
    check(other_cut, "modular.depths", "[3, 1]", "module 0", "[2, 2]")
    heads = assembly_run(module(0), module(1), model__heads=4)
    check(heads, "model.heads=2", "model.heads is 4")
    width = hybrid_run(runs / "meta", 0, model__width=32)
    check(width, "model.width=16", "model.width is 32")
    classes = growth_run(runs / "meta", "stacking", objective__classes=12)
    check(classes, "objective.classes=10", "objective.classes is 12")
    check(assembly_run(runs / "meta"), "modular.modules", runs / "meta", "modular.kind=hybrid")
    check(hybrid_run(runs / "whole", 0), runs / "whole", "2 blocks", "modular.meta_depths")
    with refuses("live", "0 to 1", error=ValueError):
        hybrid_run("meta", 2)
    check(hybrid_run(runs / "nothing", 0), "modular.meta", runs / "nothing")
    half = hybrid_run(runs / "meta", 0, 1, train__precision="float16")
    check(half, "train.precision", "float32", "bfloat16", "2 modules")
    both = hybrid_run(runs / "meta", 0).override({"warm_start.path": str(runs / "meta")})
    check(both, "warm_start.path", "none", "modular.kind=hybrid")
    mae = hybrid_run(runs / "meta", 0).override({"objective": {"kind": "mae"}})
    check(mae, "modular", "none", "objective.kind=mae")


def test_a_module_of_another_meta_model_is_refused_by_name(runs, tmp_path, capsys):
    assert train(meta_run(seed=2), tmp_path / "meta") == 0
    assert train(hybrid_run(tmp_path / "meta", 1), tmp_path / "module_1") == 0
    run = assembly_run(runs / "module_0", tmp_path / "module_1")
    refused(run, tmp_path / "bad", capsys, "modular.modules", tmp_path / "module_1", "module 0")


def test_a_checkpoint_without_its_run_is_refused(runs, tmp_path, capsys):
    lone = tmp_path / "step_00000005"
    lone.mkdir()
    for file in (runs / "module_0" / "checkpoints" / "step_00000005").iterdir():
        (lone / file.name).write_bytes(file.read_bytes())
    run = assembly_run(lone, runs / "module_1")
    refused(run, tmp_path / "bad", capsys, "modular.modules", lone, "config.json")


def test_the_classes_are_those_of_the_data(tmp_path, capsys):
    config = whole(objective__classes="none", train__steps=1)
    assert train(config, tmp_path / "run") == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["config"]["objective"]["classes"] == 10
    assert saved["sources"]["objective.classes"] == "the training data"
    refused(whole(objective__classes=7), tmp_path / "bad", capsys, "objective.classes", "10", "7")
    assert sum(DEPTHS) == 4
