"""Pickles of plain values and uint8 arrays, read without running anything that is in them.

A pickle is a program. The few instructions that make dictionaries, lists, texts, numbers and
numpy's arrays are followed here one by one; any other, and any other function to call, is
refused. The opcodes are told apart by the standard library's `pickletools`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


class NotPlain(Exception):
    """The pickle holds something else, or is damaged; the message says what, and where."""


class _Mark:
    """Where a group of values on the stack begins."""


class _Array:
    """An array in the making: numpy makes an empty one and fills it from a state."""

    def __init__(self) -> None:
        self.value: npt.NDArray[np.uint8] | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Bytewise) or not isinstance(raw, (bytes, str)):
            raise NotPlain("an array that is not of uint8")
        pixels = np.frombuffer(_encoded(raw), np.uint8)
        self.value = pixels.reshape([int(side) for side in shape], order="F" if fortran else "C")


class _Bytewise:
    """The type uint8, the only one that arrays may have."""

    def build(self, state: Any) -> None:
        """Take the byte order, of which a byte has none."""


def _encoded(value: bytes | str) -> bytes:
    # Python 2's texts are bytes, which pickletools shows one character each.
    return value if isinstance(value, bytes) else value.encode("latin-1")


def _make_bytes(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise NotPlain(f"bytes in the encoding {encoding!r}")
    return text.encode("latin-1")


def _make_array(*_: Any) -> _Array:
    return _Array()


def _make_dtype(name: str, *_: Any) -> _Bytewise:
    if name not in ("u1", b"u1"):
        raise NotPlain(f"an array of the type {name!r}, not uint8")
    return _Bytewise()


_FUNCTIONS: dict[str, Callable[..., Any] | None] = {
    "_codecs encode": _make_bytes,
    "numpy.core.multiarray _reconstruct": _make_array,
    "numpy._core.multiarray _reconstruct": _make_array,
    "numpy dtype": _make_dtype,
    "numpy ndarray": None,  # An argument of the one above; never called.
}

_VALUES = frozenset(
    "BININT BININT1 BININT2 INT LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINBYTES SHORT_BINBYTES".split()
)
_TEXTS_OF_PYTHON_2 = frozenset(("BINSTRING", "SHORT_BINSTRING"))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW: dict[str, type[dict[Any, Any]] | type[list[Any]] | type[tuple[Any, ...]]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset(("BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("BINGET", "LONG_BINGET"))


def read_plain(data: bytes) -> dict[str, Any]:
    """Read a pickled dictionary of protocol 2, as CIFAR's files of the python version are.

    Args:
        data: The whole file.

    Returns:
        Its entries by name: uint8 arrays, lists, numbers, and texts as bytes.

    Raises:
        NotPlain: Something in it is not plain, or it is damaged. Nothing has been run.
    """
    machine = _Machine()
    where = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            where = position or 0
            machine.step(opcode.name, argument)
        found = machine.stack.pop()
        if not isinstance(found, dict):
            raise NotPlain(f"a {type(found).__name__} and no dictionary")
        return {_name(key): _unwrapped(value) for key, value in found.items()}
    except NotPlain as error:
        raise NotPlain(f"{error}, at byte {where:,}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotPlain(f"a damaged pickle ({reason}), at byte {where:,}") from error


def _name(key: Any) -> str:
    if not isinstance(key, (bytes, str)):
        raise NotPlain(f"a name that is {type(key).__name__} and no text")
    return key.decode("latin-1") if isinstance(key, bytes) else key


def _unwrapped(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.value is None:
            raise NotPlain("an array without values")
        return value.value
    return value


class _Machine:
    """The stack and the memo of a pickle, for the instructions that plain values need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction.

        Raises:
            NotPlain: It is none of those that plain values need.
        """
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _TEXTS_OF_PYTHON_2:
            stack.append(_encoded(argument))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in _PUTS:
            self._memo[argument] = stack[-1]
        elif name in _GETS:
            stack.append(self._memo[argument])
        elif name in _TUPLES:
            stack.append(tuple(self._popped(_TUPLES[name])))
        elif name == "MARK":
            stack.append(_Mark())
        elif name not in ("PROTO", "STOP"):
            self._combine(name, argument)

    def _combine(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("APPEND", "APPENDS"):
            values = self._since_mark() if name == "APPENDS" else [stack.pop()]
            list.extend(stack[-1], values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self._since_mark() if name == "SETITEMS" else self._popped(2)
            dict.update(stack[-1], zip(values[::2], values[1::2], strict=True))
        elif name == "GLOBAL":
            if argument not in _FUNCTIONS:
                raise NotPlain(f"a call of {argument.replace(' ', '.')}")
            stack.append(_FUNCTIONS[argument])
        elif name == "REDUCE":
            function, arguments = self._popped(2)
            if function not in _FUNCTIONS.values() or function is None:
                raise NotPlain("a call of something that is no function")
            stack.append(function(*arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], (_Array, _Bytewise)):
                raise NotPlain("an object with a state")
            stack[-1].build(state)
        else:
            raise NotPlain(f"the instruction {name}")

    def _popped(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        if len(values) < count:
            raise NotPlain("a damaged pickle (too few values)")
        del self.stack[-count:]
        return values

    def _since_mark(self) -> list[Any]:
        values: list[Any] = []
        while not isinstance(value := self.stack.pop(), _Mark):
            values.append(value)
        return values[::-1]
