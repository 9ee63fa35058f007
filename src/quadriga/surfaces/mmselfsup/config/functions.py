"""The functions and methods that a config may call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quadriga.surfaces.mmselfsup.config.budget import MOST_BITS, Budget, check_size
from quadriga.surfaces.mmselfsup.config.text import format_text, scalar_text
from quadriga.surfaces.mmselfsup.config.values import Inherited
from quadriga.surfaces.mmselfsup.config.words import kind_of

_LONGEST_NUMBER = 400
"""Characters; longer ones take quadratic time to read."""


def elements(value: Any, budget: Budget) -> list[Any]:
    """Return the elements of a list, tuple or string, or the keys of a group.

    Raises:
        TypeError: It has no elements.
    """
    if not isinstance(value, (list, tuple, str, dict)):
        raise TypeError(f"{kind_of(value)} has no elements")
    budget.spend(len(value))
    return list(value)


def key_of(value: Any, budget: Budget) -> Any:
    """Return a value that can be the key of a group.

    Raises:
        TypeError: It cannot.
    """
    budget.measure(value)
    hash(value)
    return value


def make_dict(budget: Budget, *values: Any, **named: Any) -> dict[Any, Any]:
    """Return ``dict(...)`` of at most one group or list of pairs, and keywords."""
    made: dict[Any, Any] = {}
    for value in values:
        if isinstance(value, dict):
            budget.spend(len(value))
            made.update(value)
        else:
            for key, item in (elements(pair, budget) for pair in elements(value, budget)):
                made[key_of(key, budget)] = item
    made.update(named)
    return made


def _number(budget: Budget, kind: type[int] | type[float], *values: Any) -> Any:
    if any(isinstance(value, str) and len(value) > _LONGEST_NUMBER for value in values):
        raise ValueError(f"a number has more than {_LONGEST_NUMBER} characters")
    number = kind(*values)
    check_size(number)
    return number


def _round(budget: Budget, value: float, digits: int | None = None) -> Any:
    if digits is not None and abs(digits) > MOST_BITS:
        raise ValueError(f"round to {digits} digits is out of bounds")
    return round(value, digits)


def _range(budget: Budget, *bounds: int) -> list[int]:
    numbers = range(*bounds)
    budget.spend(len(numbers))
    return list(numbers)


def _zip(budget: Budget, *values: Any) -> list[Any]:
    return list(zip(*(elements(value, budget) for value in values), strict=False))


def _enumerate(budget: Budget, values: Any, start: int = 0) -> list[Any]:
    return list(enumerate(elements(values, budget), start))


def _sorted(budget: Budget, values: Any, reverse: bool = False) -> list[Any]:
    budget.measure(values)
    return sorted(elements(values, budget), reverse=reverse)


def _extreme(budget: Budget, choose: Callable[[Any], Any], *values: Any) -> Any:
    budget.measure(*values)
    return choose(elements(values[0], budget) if len(values) == 1 else values)


def _sum(budget: Budget, values: Any, start: float = 0) -> Any:
    numbers = [start, *elements(values, budget)]
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise TypeError("only numbers can be summed")
    return sum(numbers)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": lambda budget, value: abs(value),
    "bool": lambda budget, value=False: bool(value),
    "dict": make_dict,
    "enumerate": _enumerate,
    "float": lambda budget, value=0.0: _number(budget, float, value),
    "int": lambda budget, *values: _number(budget, int, *values),
    "len": lambda budget, value: len(value),
    "list": lambda budget, value=(): elements(value, budget),
    "max": lambda budget, *values: _extreme(budget, max, *values),
    "min": lambda budget, *values: _extreme(budget, min, *values),
    "range": _range,
    "round": _round,
    "sorted": _sorted,
    "str": lambda budget, value="": scalar_text(value),
    "sum": _sum,
    "tuple": lambda budget, value=(): tuple(elements(value, budget)),
    "zip": _zip,
}
"""Name -> function of a `Budget` and the arguments."""


def _dict_update(budget: Budget, group: dict[Any, Any], *values: Any, **named: Any) -> None:
    new = make_dict(budget, *values, **named)
    if isinstance(group, Inherited):
        budget.measure(new)
    group.update(new)


def _dict_merge(budget: Budget, group: dict[Any, Any], other: Any) -> None:
    if not isinstance(group, Inherited):
        raise TypeError("only a group of a base file can be merged; use update")
    budget.measure(group, other)
    group.merge(other)


def _dict_setdefault(budget: Budget, group: dict[Any, Any], key: Any, value: Any = None) -> Any:
    budget.measure(value)
    if key_of(key, budget) not in group:
        group[key] = value
    return group[key]


def _list_insert(budget: Budget, values: list[Any], index: int, value: Any) -> None:
    budget.spend(len(values))
    values.insert(index, value)


def _list_pop(budget: Budget, values: list[Any], index: int = -1) -> Any:
    budget.spend(len(values))
    return values.pop(index)


def _list_index(budget: Budget, values: list[Any], value: Any) -> int:
    budget.measure(values, value)
    return values.index(value)


def _list_remove(budget: Budget, values: list[Any], value: Any) -> None:
    budget.measure(values, value)
    values.remove(value)


def _copy(budget: Budget, value: Any) -> Any:
    budget.spend(len(value))
    return value.copy()


_DICT: Mapping[str, Callable[..., Any]] = {
    "copy": _copy,
    "get": lambda budget, group, key, default=None: group.get(key_of(key, budget), default),
    "items": lambda budget, group: [(key, group[key]) for key in elements(group, budget)],
    "keys": lambda budget, group: elements(group, budget),
    "merge": _dict_merge,
    "pop": lambda budget, group, key, *default: group.pop(key_of(key, budget), *default),
    "setdefault": _dict_setdefault,
    "update": _dict_update,
    "values": lambda budget, group: [group[key] for key in elements(group, budget)],
}
_LIST: Mapping[str, Callable[..., Any]] = {
    "append": lambda budget, values, value: values.append(value),
    "copy": _copy,
    "extend": lambda budget, values, more: values.extend(elements(more, budget)),
    "index": _list_index,
    "insert": _list_insert,
    "pop": _list_pop,
    "remove": _list_remove,
}
_STR: Mapping[str, Callable[..., Any]] = {
    "format": lambda budget, text, *values, **named: format_text(text, values, named),
}


def methods_of(value: Any) -> Mapping[str, Callable[..., Any]]:
    """Return name -> function of a `Budget`, the value and the arguments."""
    for kind, methods in ((dict, _DICT), (list, _LIST), (str, _STR)):
        if isinstance(value, kind):
            return methods
    return {}


def call(
    function: Callable[..., Any], name: str, values: Sequence[Any], named: Mapping[str, Any]
) -> Any:
    """Call a function of the tables.

    Raises:
        TypeError: It takes other arguments; the message has the name that the config uses.
    """
    try:
        return function(*values, **named)
    except TypeError as error:
        if "argument" in str(error):
            raise TypeError(
                f"{name} is called with arguments that it does not take here"
            ) from error
        raise
