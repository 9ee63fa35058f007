"""What is wrong with an incubation is told before any of its runs starts."""

from __future__ import annotations

import pytest

from quadriga.cli import entry
from quadriga.errors import UserError
from quadriga.methods.supervised import SupervisedConfig
from quadriga.models.vit import ViTConfig
from quadriga.modular.assembly import AssemblyConfig
from quadriga.modular.hybrid import HybridConfig

NAME = "deep_incubation_digits"
MODULES = "finetune:modular.modules="


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["modules=1"], "modules must be 2 or more, but is 1"),
        (["modules=-1"], "modules must be 2 or more, but is -1"),
        (["modules_per_run=0"], "modules_per_run must be 1 or more, but is 0"),
        (["initialise=inherits"], "unknown initialise inherits; did you mean inherit?"),
        (["module_1:modular.depths=[2,0,2,4]"], "module_1: modular.depths must be 1 block or more"),
        (["meta:model.depth=3"], "the meta model @meta must have 4 blocks"),
        (["meta:model.width=24"], "the meta model @meta was made for model.width=24"),
        ([f'{MODULES}["@module_0","@module_1","@module_3"]'], "but none is module 2"),
        ([f'{MODULES}["@module_0","@module_1","@module_2","@meta"]'], "@meta holds no module"),
        (
            [f'{MODULES}["@module_0","@module_1","@module_1","@module_3"]'],
            "finetune: modular.modules must hold one module for each place, but both @module_1",
        ),
        (
            ["module_2:modular.depths=[2,2,3,1]"],
            "but module 2 (@module_2) was cut from a model of [2, 2, 3, 1]",
        ),
        (
            ["module_2:modular.meta=@module_1"],
            "module_2: the meta model @module_1 must be a whole model",
        ),
    ],
)
def test_it_is_one_line_before_anything_starts(words, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert entry.run(["run", NAME, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sentence in error
    assert list(tmp_path.iterdir()) == []


def test_more_modules_than_blocks(capsys):
    assert entry.run(["run", "deep_incubation_vit_base", "modules=13", "--dry-run"]) == 2
    assert "modules must be at most the model's 12 blocks, but is 13" in capsys.readouterr().err


def test_modules_that_will_have_grown_up_in_two_meta_models():
    model = ViTConfig(image_px=16, patch_px=8, width=12, depth=2, heads=2)
    objective = SupervisedConfig(classes=3)
    assembly = AssemblyConfig(depths=(1, 1), modules=("@one", "@two"))

    def module(index, meta):
        hybrid = HybridConfig(depths=(1, 1), live=(index,), meta=meta)
        return {"model": model.as_dict(), "modular": hybrid.as_dict()}

    assembly.check_sources(objective, model, [module(1, "@meta"), module(0, "@meta")])
    assembly.check_sources(objective, model, [module(1, "@meta"), None])
    with pytest.raises(UserError, match=r"one meta model, but module 1 \(@one\)"):
        assembly.check_sources(objective, model, [module(1, "@meta"), module(0, "@other")])
