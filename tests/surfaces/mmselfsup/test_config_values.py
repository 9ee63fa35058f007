"""What config files mean, and that their written form means the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmselfsup_configs import BASE, CASES, ENVIRONMENT, Case

from oracles.read_configs import encode
from quadriga.surfaces.mmselfsup.config import apply_options, dump_config, read_config


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_config_means(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    config = read_config(case.write(tmp_path))
    assert apply_options(config, case.options) == list(case.added)
    assert encode(config) == encode(case.values)
    written = tmp_path / "written.py"
    written.write_text(dump_config(config), encoding="utf-8")
    assert encode(read_config(written)) == encode(config)


def test_the_folder_of_a_file_is_a_template(tmp_path: Path) -> None:
    files = {"config.py": "_base_ = 'sub/b.py'\na = '{{ fileDirname }}'", "sub/b.py": ""}
    files["sub/b.py"] = "b = '{{fileDirname}}'"
    path = Case("", files, {}).write(tmp_path)
    assert read_config(path) == {"a": str(tmp_path), "b": str(tmp_path / "sub")}


def test_a_base_of_a_package_carries_its_scope_in_the_outermost_types(tmp_path: Path) -> None:
    files = {
        "config.py": "_base_ = ['lib::_base_/model.py', 'own.py']\nmodel = dict(head=dict(n=2))",
        "own.py": "own = dict(type='O')",
        "lib/_base_/model.py": "_base_ = 'deep.py'\nmodel = dict(type='A', head=dict(type='H'))\n"
        "steps = [dict(type='S'), (dict(type='T', _scope_='x'),)]\nhooks = dict(a=dict(type='K'))",
        "lib/_base_/deep.py": "deep = dict(type='D')",
    }
    config = read_config(Case("", files, {}).write(tmp_path), packages={"lib": tmp_path / "lib"})
    assert config == {
        "model": {"type": "A", "head": {"type": "H", "n": 2}, "_scope_": "lib"},
        "steps": [{"type": "S", "_scope_": "lib"}, ({"type": "T", "_scope_": "x"},)],
        "hooks": {"a": {"type": "K", "_scope_": "lib"}},
        "deep": {"type": "D", "_scope_": "lib"},
        "own": {"type": "O"},
    }


def test_an_import_from_a_package_reads_its_configs(tmp_path: Path) -> None:
    files = {
        "config.py": "with read_base():\n    from lib.configs.base.model import *\n",
        "lib/base/model.py": "from lib.models import M\nmodel = dict(type=M, of=M)",
    }
    path = Case("", files, {}).write(tmp_path)
    config = read_config(path, packages={"lib": tmp_path / "lib"})
    assert config == {"model": {"type": "M", "of": "lib.models.M"}}


def test_reading_changes_no_other_reading(tmp_path: Path) -> None:
    path = Case("", {"config.py": BASE}, {}).write(tmp_path)
    first = read_config(path)
    first["model"]["head"]["n"] = 7
    assert read_config(path)["model"]["head"]["n"] == 2


def test_several_options_lie_over_one_another(tmp_path: Path) -> None:
    config = read_config(Case("", {"config.py": BASE}, {}).write(tmp_path))
    options = ["model._delete_=True", "model.type=B", "clip.norm=1", "clip.kind=2", "size=1"]
    assert apply_options(config, [*options, "size=2"]) == ["clip.norm", "clip.kind"]
    assert config["model"] == {"type": "B"}
    assert (config["clip"], config["size"]) == ({"norm": 1, "kind": 2}, 2)


def test_a_written_config_is_readable() -> None:
    config: dict[str, Any] = {
        "lr": 1.5e-4,
        "model": {"type": "A", "head": {"type": "H", "sizes": (3,)}},
        "steps": [{"type": "Crop", "size": 224, "scale": (0.2, 1.0), "interpolation": "bicubic"}],
        "odd": {"a-b": {}, 1: []},
    }
    assert dump_config(config) == (
        "lr = 0.00015\n"
        "model = dict(\n"
        "    type='A',\n"
        "    head=dict(type='H', sizes=(3,)),\n"
        ")\n"
        "steps = [\n"
        "    dict(type='Crop', size=224, scale=(0.2, 1.0), interpolation='bicubic'),\n"
        "]\n"
        "odd = {'a-b': dict(), 1: []}\n"
    )


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["{{ fileBasename }}", "{{$A:b}}", "{{_base_.x}}", "\ue0000", "{{{", "\\{{"])
)
_KEYS = st.sampled_from(["type", "a-b", "class", "__x", "dict", "é", "{{$A:b}}", "", "a"])
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(_KEYS | st.integers() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["a", "b_1", "dict", "float_", "B"]), _VALUES))
def test_what_is_written_reads_as_the_same(tmp_path: Path, config: dict[str, Any]) -> None:
    path = tmp_path / "config.py"
    path.write_text(dump_config(config), encoding="utf-8")
    assert encode(read_config(path)) == encode(config)
