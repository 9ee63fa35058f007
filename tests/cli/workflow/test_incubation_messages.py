"""What is wrong with an incubation is told before any of its runs starts."""

from __future__ import annotations

import pytest

from errors import assert_command_refused, refuses
from quadriga.methods.supervised import SupervisedConfig
from quadriga.models.vit import ViTConfig
from quadriga.modular.assembly import AssemblyConfig
from quadriga.modular.hybrid import HybridConfig

NAME = "deep_incubation_digits"
MODULES = "finetune:modular.modules="


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["modules=1"], ("modules", "2 or more", "is 1")),
        (["modules=-1"], ("modules", "2 or more", "-1")),
        (["modules_per_run=0"], ("modules_per_run", "1 or more", "is 0")),
        (["initialise=inherits"], ("initialise", "inherits", "inherit")),
        (
            ["module_1:modular.depths=[2,0,2,4]"],
            ("module_1", "modular.depths", "1 block", "[2, 0, 2, 4]"),
        ),
        (["meta:model.depth=3"], ("@meta", "4 blocks", "3")),
        (["meta:model.width=24"], ("@meta", "model.width=24")),
        (
            [f'{MODULES}["@module_0","@module_1","@module_3"]'],
            ("finetune", "modular.modules", "module 2"),
        ),
        (
            [f'{MODULES}["@module_0","@module_1","@module_2","@meta"]'],
            ("finetune", "modular.modules", "@meta", "modular.kind=hybrid"),
        ),
        (
            [f'{MODULES}["@module_0","@module_1","@module_1","@module_3"]'],
            ("finetune", "modular.modules", "both", "@module_1"),
        ),
        (
            ["module_2:modular.depths=[2,2,3,1]"],
            ("modular.depths", "module 2", "@module_2", "[2, 2, 3, 1]"),
        ),
        (
            ["module_2:modular.meta=@module_1"],
            ("module_2", "@module_1", "whole"),
        ),
    ],
)
def test_it_is_one_line_before_anything_starts(words, fragments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_command_refused(["run", NAME, *words], capsys, *fragments)
    assert list(tmp_path.iterdir()) == []


def test_more_modules_than_blocks(capsys):
    words = ["run", "deep_incubation_vit_base", "modules=13", "--dry-run"]
    assert_command_refused(words, capsys, "modules", "12 blocks", "13")


def test_modules_that_will_have_grown_up_in_two_meta_models():
    model = ViTConfig(image_px=16, patch_px=8, width=12, depth=2, heads=2)
    objective = SupervisedConfig(classes=3)
    assembly = AssemblyConfig(depths=(1, 1), modules=("@one", "@two"))

    def module(index, meta):
        hybrid = HybridConfig(depths=(1, 1), live=(index,), meta=meta)
        return {"model": model.as_dict(), "modular": hybrid.as_dict()}

    assembly.check_sources(objective, model, [module(1, "@meta"), module(0, "@meta")])
    assembly.check_sources(objective, model, [module(1, "@meta"), None])
    with refuses("modular.modules", "module 1", "@one"):
        assembly.check_sources(objective, model, [module(1, "@meta"), module(0, "@other")])
