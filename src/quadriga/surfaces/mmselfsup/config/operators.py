"""Operators of config expressions, on plain values and with bounds."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from quadriga.surfaces.mmselfsup.config.budget import (
    MOST_BITS,
    MOST_CHARACTERS,
    Budget,
    check_size,
)
from quadriga.surfaces.mmselfsup.config.text import percent_format
from quadriga.surfaces.mmselfsup.config.words import kind_of

_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_NUMBERS = (bool, int, float)
_SEQUENCES = (str, list, tuple)


def binary(kind: type[ast.operator], left: Any, right: Any, budget: Budget) -> Any:
    """Return the value of a binary operator.

    Raises:
        TypeError: The operator is not one of ``+ - * / // % **``, or not for these operands.
        ValueError: The result would be too large.
        ArithmeticError: Division by zero, or overflow.
    """
    compute = _ARITHMETIC.get(kind)
    if compute is None:
        raise TypeError("of operators, + - * / // % ** are read, and no others; write the value")
    if kind is ast.Mod and isinstance(left, str):
        return percent_format(left, right)
    if isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS):
        if kind is ast.Pow:
            _check_power(left, right)
        value = compute(left, right)
        if isinstance(value, complex):
            raise ValueError("a power of a negative number is complex")
        check_size(value)
        return value
    if kind is ast.Add and isinstance(left, _SEQUENCES) and isinstance(right, _SEQUENCES):
        _check_length(left, len(left) + len(right), budget)
        return left + right  # type: ignore[operator]
    if kind is ast.Mult:
        if isinstance(left, int):
            left, right = right, left
        if isinstance(left, _SEQUENCES) and isinstance(right, int):
            _check_length(left, len(left) * max(right, 0), budget)
            return left * right
    raise TypeError(f"{kind_of(left)} and {kind_of(right)} cannot be combined by this operator")


def compare(kind: type[ast.cmpop], left: Any, right: Any, budget: Budget) -> bool:
    """Return the value of one comparison, or membership.

    Raises:
        TypeError: The operands cannot be compared.
        ValueError: They are too large to be compared.
    """
    budget.measure(left, right)
    return _COMPARISONS[kind](left, right)


def unary(kind: type[ast.unaryop], value: Any) -> Any:
    """Return ``not value``, ``-value`` or ``+value``.

    Raises:
        TypeError: The operator is another one, or the value is no number.
    """
    if kind is ast.Not:
        return not value
    if kind is ast.Invert or not isinstance(value, _NUMBERS):
        raise TypeError(f"{kind_of(value)} cannot follow this sign")
    return -value if kind is ast.USub else +value


def _check_power(base: float, exponent: float) -> None:
    if isinstance(base, int) and isinstance(exponent, int):
        bits = base.bit_length() * abs(exponent)
        if bits > MOST_BITS and abs(base) > 1:
            raise ValueError(f"a power has about {bits:,} bits, the limit is {MOST_BITS}")


def _check_length(like: Any, length: int, budget: Budget) -> None:
    if isinstance(like, str):
        if length > MOST_CHARACTERS:
            raise ValueError(f"a string has {length:,} characters, the limit is {MOST_CHARACTERS}")
        length = 1 + length // 64
    budget.spend(length)
