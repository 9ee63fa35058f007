"""Reads pickles of plain values and uint8 arrays without running any code in them.

A pickle is a program. Only the instructions that create dictionaries, lists, tuples, strings,
integers below 2**31 and arrays are allowed, and only three functions, defined here, can be called.
"""

from __future__ import annotations

import io
import pickle
from pickle import UnpicklingError
from typing import Any, ClassVar

import numpy as np

_INSTRUCTIONS = (
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINUNICODE EMPTY_DICT SETITEM SETITEMS EMPTY_LIST "
    "APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT BINGET LONG_BINGET "
    "GLOBAL REDUCE BUILD"
)


class _Uint8:
    """Stands for numpy's dtype; only uint8 is accepted."""

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in ("u1", b"u1"):
            raise TypeError("an array of another type than uint8")

    def __setstate__(self, state: Any) -> None:
        """Ignore the state: it holds the byte order, which uint8 does not have."""


class _Array:
    """Stands for numpy's array, which a pickle creates empty and fills by `__setstate__`."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Uint8):
            raise TypeError("an array without a type")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Entries(dict[str, Any]):
    """A dictionary with strings as keys only: hashing nested tuples is unbounded in time."""

    __slots__ = ()

    def __setitem__(self, name: Any, value: Any) -> None:
        if not isinstance(name, (bytes, str)):
            raise TypeError(f"a name that is {type(name).__name__} and no text")
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        super().__setitem__(text, value.value if isinstance(value, _Array) else value)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise TypeError("bytes in another encoding than latin1")
    return text.encode("latin-1")


def _load_entries(unpickler: Any) -> None:
    unpickler.append(_Entries())


class _Unpickler(pickle._Unpickler):
    # The C implementation allocates as much as a memo's index says, cannot exclude instructions,
    # and hashes any key of a dictionary.
    dispatch: ClassVar = {
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _INSTRUCTIONS.split())
    }
    dispatch[pickle.EMPTY_DICT[0]] = _load_entries

    def find_class(self, module: str, name: str) -> Any:
        """Return the substitute for a function that the pickle names.

        Raises:
            UnpicklingError: The function is not one of the three that are allowed.
        """
        # A new object for each call, because a pickle can set attributes of the result.
        match module, name:
            case "_codecs", "encode":
                return lambda text, encoding: _encode(text, encoding)
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return lambda *_: _Array()
            case "numpy", "dtype":
                return lambda *arguments: _Uint8(*arguments)
            case "numpy", "ndarray":
                return None  # An argument of _reconstruct, never called.
        raise UnpicklingError(f"a call of {module[:80]}.{name[:80]}")


def read_plain(data: bytes) -> dict[str, Any]:
    """Read a pickled dictionary of protocol 2, the format of CIFAR's files for Python.

    Args:
        data: The whole file.

    Returns:
        The entries by name: uint8 arrays, lists, integers, and strings as bytes.

    Raises:
        UnpicklingError: The pickle holds other objects or is damaged. None of its code has run.
    """
    file = io.BytesIO(data)
    try:
        found = _Unpickler(file, encoding="bytes").load()
        if not isinstance(found, _Entries):
            raise TypeError(f"a {type(found).__name__} and no dictionary")
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnpicklingError(
            f"no dictionary of plain values and uint8 arrays ({reason}, before byte "
            f"{file.tell():,})"
        ) from error
    return found
