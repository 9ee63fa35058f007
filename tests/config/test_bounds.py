"""Every number in a config has a bound in its type, and whatever is given is one short line."""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

import quadriga
from errors import assert_command_refused, refuses
from quadriga.cli import entry
from quadriga.config.base import Config, _arms
from quadriga.recipes.mae import mae_digits

MOST = {int: 2**63, float: 2e30}
"""No field of any config may be as large as these, nor as far below zero."""
UNITS = {"_px": 10**6, "epochs": 1e12, "steps": 10**12, "ranks": 10**9, "workers": 10**6}
"""End of a field's name -> a value that no run has."""


def configs() -> list[type[Config]]:
    for module in pkgutil.walk_packages(quadriga.__path__, "quadriga."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(base: type[Config]) -> Iterator[type[Config]]:
        for child in base.__subclasses__():
            yield child
            yield from below(child)

    found = dict.fromkeys(below(Config))
    return [config for config in found if config.__module__.startswith("quadriga.")]


def numbers(annotation: Any) -> list[type]:
    """The kinds of number that a field holds, alone or in a tuple."""
    found = []
    for arm in _arms(annotation):
        if arm in (int, float):
            found.append(arm)
        elif typing.get_origin(arm) is tuple:
            found += [n for item in typing.get_args(arm) for n in numbers(item)]
    return found


def accepted(field: FieldInfo, value: float) -> bool:
    """Return whether a field takes a value, alone or as all items of a tuple."""
    adapter = TypeAdapter(
        Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    )
    for given in (value, [value], [value] * 2, [value] * 3):
        try:
            adapter.validate_python(given)
        except ValidationError:
            continue
        return True
    return False


def test_every_number_is_bounded_by_its_type() -> None:
    open_ended = []
    checked = 0
    for config in configs():
        for name, field in config.model_fields.items():
            for kind in set(numbers(field.annotation)):
                checked += 1
                too_much = [MOST[kind], -MOST[kind] - 1]
                too_much += [kind(v) for end, v in UNITS.items() if name.endswith(end)]
                open_ended += [
                    f"{config.__name__}.{name} = {v}" for v in too_much if accepted(field, v)
                ]
    assert checked > 200
    assert not open_ended, f"give these fields an upper and a lower bound: {open_ended}"


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("train.epochs=1e308", "train.epochs"),
        ("epochs=1e308", "epochs"),
        ("model.image_px=1000000000", "model.image_px"),
        (f"seed={'9' * 5000}", "seed"),
        (f"train.batch_size={'9' * 5000}", "train.batch_size"),
        (f"evaluation.protocols={'[' * 3000}", "evaluation.protocols"),
        (f"optim.betas={'[' * 3000}{']' * 3000}", "optim.betas"),
        (f"views.crop_scale={'[' * 900}{']' * 900}", "views.crop_scale"),
        ("optim.lr=\x1b[31m\nfast", "optim.lr"),
        (f"optim.{'x' * 9000}=1", "optim.lr"),
        (f"model.{'a.' * 3000}b=1", "model.a"),
    ],
)
def test_hostile_values_are_one_short_line(
    word: str, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_command_refused(["train", "mae_digits", "--dry-run", word], capsys, field)
    assert entry.run(["train", "mae_digits", word]) == 2
    assert len(capsys.readouterr().err) < 4000


def test_a_message_is_short_whatever_it_quotes() -> None:
    with refuses("optim.lr") as caught:
        mae_digits().override({"optim.lr": "x " * 50_000})
    assert len(str(caught.value)) < 4000
    with refuses("digits"):
        mae_digits().override({"seed": 10**5000})
