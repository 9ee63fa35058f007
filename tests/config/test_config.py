"""Overrides, provenance, JSON round trips and the error grammar."""

from __future__ import annotations

import sys
from abc import ABC
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from errors import refuses
from quadriga.config.base import Choice, Config, kinds
from quadriga.config.provenance import Resolved
from quadriga.errors import nearest


class Optim(Config):
    lr: float = Field(1e-3, ge=0, le=1)
    betas: tuple[float, ...] = (0.9, 0.95)
    scaling: Literal["linear", "sqrt"] = "linear"
    depth: Literal[18, 34] = 18
    fused: bool = True
    clip: float | None = Field(None, gt=0)


class Protocol(Choice, ABC):
    room: ClassVar[str] = "quadriga.evaluation"


class Near(Protocol):
    neighbours: int = Field(20, ge=1)


class Far(Protocol):
    neighbours: int = 5
    distance: float = 1.0


class Run(Config):
    optim: Optim = Optim()
    root: Path | None = None
    steps: int = 3
    low: int = 0
    high: int = 10
    protocol: Protocol = Near()
    protocols: tuple[Protocol, ...] = (Near(), Far())

    @model_validator(mode="after")
    def _ordered(self) -> Run:
        if self.low > self.high:
            raise ValueError(f"low must be at most high ({self.high}), but is {self.low}")
        return self


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        (
            {"optim.learning_rate": "1"},
            ("optim.learning_rate", "command line", "optim.lr"),
        ),
        ({"lr": "1"}, ("lr", "command line", "optim.lr")),
        ({"optim.scalin": "1"}, ("optim.scalin", "optim.scaling")),
        (
            {"optim.lr": "7.5"},
            ("optim.lr", "between 0 and 1", "7.5", "command line"),
        ),
        ({"optim.lr": "fast"}, ("optim.lr", "number", "'fast'")),
        ({"optim.fused": "perhaps"}, ("optim.fused", "true", "false", "'perhaps'")),
        ({"steps": "4.5"}, ("steps", "integer", "4.5")),
        ({"optim.scaling": "liner"}, ("optim.scaling", "liner", "linear")),
        ({"optim.betas": "0.9,x"}, ("optim.betas.1", "number", "'x'")),
        ({"optim.betas": "[0.9"}, ("optim.betas", "JSON", "'[0.9'")),
        ({"steps.x": "3"}, ("steps", "3")),
        ({"optim": "3"}, ("optim", "group", "'3'")),
        ({"low": "11"}, ("low", "high", "10", "11")),
        ({"protocols.7.neighbours": "3"}, ("protocols.7", "0 to 1")),
        ({"protocol.kind": "nea"}, ("protocol.kind", "'nea'")),
        ({"protocol.neighbours": "0"}, ("protocol.neighbours", "1", "0")),
    ],
)
def test_a_mistake_is_one_clear_line(
    override: dict[str, str], fragments: tuple[object, ...]
) -> None:
    with refuses(*fragments):
        Run().override(override, "command line")


def test_overrides_reach_nested_values_lists_and_none() -> None:
    config = Run(root=Path("a"), optim=Optim(clip=1.0)).override(
        {
            "optim.lr": "3e-4",
            "optim.betas": "[0.5, 0.6]",
            "optim.clip": "none",
            "root": "[x]",
            "steps": "7",
            "protocols.1.distance": "2",
            "optim.fused": "false",
        }
    )
    assert config.optim == Optim(lr=3e-4, betas=(0.5, 0.6), clip=None, fused=False)
    assert config.root == Path("[x]")
    assert config.steps == 7
    assert config.protocols == (Near(), Far(distance=2.0))


def test_a_number_among_choices_is_typed_as_text() -> None:
    assert Run().override({"optim.depth": "34"}).optim.depth == 34
    with refuses("optim.depth", "35", "34"):
        Run().override({"optim.depth": "35"})


def test_betas_without_brackets() -> None:
    assert Run().override({"optim.betas": "0.1,0.2"}).optim.betas == (0.1, 0.2)


def test_a_change_of_kind_keeps_the_fields_both_have() -> None:
    far = f"{__name__}:Far"
    config = Run(protocol=Near(neighbours=9)).override({"protocol.kind": far})
    assert config.protocol == Far(neighbours=9)


def test_kinds_are_files_of_a_room_and_entries_of_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "from test_config import Protocol\n"
    room = tmp_path / "protocol_room"
    (room / "nested").mkdir(parents=True)
    (room / "__init__.py").write_text(
        "KINDS = {'deep': 'protocol_room.nested.file:Deep', 'twin': 'protocol_room.shared:Twin'}\n"
    )
    (room / "plain.py").write_text(f"{head}class Plain(Protocol): ...\n")
    (room / "shared.py").write_text(f"{head}class Twin(Protocol): ...\n")
    (room / "nested" / "__init__.py").write_text("")
    (room / "nested" / "file.py").write_text(f"{head}class Deep(Protocol): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Protocol, "room", "protocol_room")
    assert kinds(Protocol) == ["deep", "plain", "twin"]  # type: ignore[type-abstract]
    assert not {name for name in sys.modules if name.startswith("protocol_room.")}
    for kind in ("deep", "plain", "twin"):
        config = Run().override({"protocol.kind": kind})
        assert config.protocol.kind() == kind == type(config.protocol).__name__.lower()
        assert Run.from_dict(config.as_dict()) == config
    with refuses("protocol.kind", "twim", "twin"):
        Run().override({"protocol.kind": "twim"})
    with refuses("twin", "protocol.kind=twin"):
        Run().override({"twin.neighbours": 3})


def test_configs_are_frozen_and_refuse_unknown_keys() -> None:
    with pytest.raises(ValidationError):
        Run().steps = 4
    with pytest.raises(ValidationError):
        Run(step=4)


@given(
    lr=st.floats(0, 1),
    steps=st.integers(-1000, 1000),
    betas=st.lists(st.floats(-1e6, 1e6), max_size=4),
    root=st.none() | st.text("abc./[]{}, ", min_size=1).map(Path),
    neighbours=st.integers(1, 99),
)
def test_json_rebuilds_the_same_object(
    lr: float, steps: int, betas: list[float], root: Path | None, neighbours: int
) -> None:
    if root is not None and str(root).lower() in ("none", "null"):
        return
    config = Run(
        optim=Optim(lr=lr, betas=tuple(betas)),
        steps=steps,
        root=root,
        protocol=Far(neighbours=neighbours),
    )
    resolved = Resolved.of(config, "recipe")
    again = Resolved.from_json(Run, resolved.as_json())
    assert again.config == config
    assert again.sources == resolved.sources
    assert Run.from_dict(config.as_dict()) == config


def test_every_value_knows_where_it_came_from() -> None:
    resolved = Resolved.of(Run(optim=Optim(lr=0.5)), "recipe")
    resolved = resolved.override({"steps": 4}, "run.toml").override(
        {"optim.clip": "1"}, "command line"
    )
    sources = resolved.sources
    assert sources["optim.lr"] == "recipe"
    assert sources["steps"] == "run.toml"
    assert sources["optim.clip"] == "command line"
    assert sources["optim.betas"] == "default"
    assert set(sources) == {path for path, _ in resolved.config.leaves()}


def test_a_damaged_saved_config_is_refused() -> None:
    with refuses("config"):
        Resolved.from_json(Run, '{"config": ')


def test_nearest_knows_initials_leaves_and_typos() -> None:
    names = ["optim.lr", "model.depth", "model.width"]
    assert nearest("optim.learning_rate", names) == "optim.lr"
    assert nearest("depth", names) == "model.depth"
    assert nearest("model.widht", names) == "model.width"
    assert nearest("zebra", names) is None
