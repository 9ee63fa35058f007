"""Python files of the user's own, with recipes, methods, data sets and other kinds.

A file is imported where the command line names it (``--code FILE``, a recipe ``FILE.py:function``,
``objective.kind=FILE.py:Class``), or by `load_code` in Python. Configs and checkpoints name kinds
of such a file too; these are looked up among the files that are imported, and import nothing.

The module of ``folder/mine.py`` is called ``./mine.py``, as configs name it: a run may be moved,
and its kinds are then found in the copy of the file that it keeps.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator
from importlib.abc import ExecutionLoader
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar, final

from quadriga.errors import UserError

_NAMED = re.compile(r"(?P<file>.*\.py):(?P<name>[A-Za-z_]\w{0,99})", re.DOTALL)
_FILE_NAME = re.compile(r"[A-Za-z_]\w{0,99}\.py")


T = TypeVar("T")


class OwnFile(NamedTuple):
    """A file of the user's own that this process has imported."""

    path: Path
    """Its absolute path."""
    text: bytes
    """Its content when it was imported."""


_files: dict[str, OwnFile] = {}
"""Module name -> file. The modules themselves are in `sys.modules`, as all imported ones."""


@final
class MissingCode(UserError):
    """A config has a kind of the user's own, whose file is not imported."""

    on_every_rank = True

    def __init__(self, path: str, kind: str, copy: Path | None = None) -> None:
        """Name the config path, its kind, and the copy of the file that the run keeps, if any."""
        self.path, self.kind = path, kind
        file = split(kind)[0]
        remedy = f"--code {file}" if copy is None else f"--code {copy}, the run's own copy of it"
        super().__init__(
            f"{path}.kind is {kind}, code of your own, which must be named on the command line to "
            f"be imported; add {remedy} (in Python: quadriga.load_code)"
        )

    @property
    def file_name(self) -> str:
        """Name of the file without its folder."""
        return split(self.kind)[0].rpartition("/")[2]


def is_own(name: str) -> bool:
    """Return whether a name has the form ``FILE.py:NAME``."""
    found = _NAMED.fullmatch(name)
    return found is not None and _FILE_NAME.fullmatch(Path(found["file"]).name) is not None


def split(name: str) -> tuple[str, str]:
    """Return the file and the name of ``FILE.py:NAME``."""
    file, _, own = name.rpartition(":")
    return file, own


def kind_in_config(name: str) -> str:
    """Return how a config names a kind of the user's own: by its file's name, without folders."""
    file, own = split(name)
    return f"{_module_name(Path(file))}:{own}"


def load_named(name: str) -> str:
    """Import the file of ``FILE.py:NAME``, which the user gave, and return `kind_in_config`.

    Raises:
        UserError: As `load_code`.
    """
    load_code(split(name)[0])
    return kind_in_config(name)


def load_code(file: Path | str) -> ModuleType:
    """Import a Python file of the user's own, so that configs can name its kinds; once only.

    Args:
        file: The file. Its folder is not searched for other modules.

    Returns:
        The module.

    Raises:
        UserError: The file cannot be read or imported, is not named like a Python module, or
            another file of the same name is imported.
    """
    with _on_every_rank():
        path = Path(os.path.abspath(os.path.expanduser(file)))
        if _FILE_NAME.fullmatch(path.name) is None:
            raise UserError(f"code must be in a file such as mine.py, but {path.name!r} is none")
        try:
            text = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        name = _module_name(path)
        if name not in _files:
            return _imported(name, OwnFile(path, text))
        if _files[name].text != text:
            raise UserError(
                f"{path} must have another name: a different {path.name} is imported already, "
                f"{_files[name].path}; rename one of the two"
            )
        return sys.modules[name]


def own_class(base: type[T], kind: str, path: str) -> type[T]:
    """Find the class of a kind in a file of the user's own that is imported.

    Args:
        base: What the class must be a kind of.
        kind: The kind as a config names it, ``FILE.py:NAME``.
        path: Config path of what has that kind, for error messages.

    Raises:
        UserError: The file is not imported, or has no such class.
    """
    kind = kind_in_config(kind)
    file, name = split(kind)
    if file not in sys.modules:
        raise MissingCode(path, kind)
    own = {
        found: value
        for found, value in vars(sys.modules[file]).items()
        if isinstance(value, type) and value.__module__ == file
        if issubclass(value, base) and not inspect.isabstract(value)
    }
    if name in own:
        return own[name]
    there = ", ".join(own) or "none"
    raise UserError(
        f"{path}.kind must be a {base.__name__} of {file}, but is {name}; it has: {there}"
    )


def loaded_files() -> list[OwnFile]:
    """Return the imported files."""
    return list(_files.values())


def code_options() -> list[str]:
    """Return the ``--code`` options with which another process imports the same files."""
    return [word for file in _files.values() for word in ("--code", str(file.path))]


def _module_name(path: Path) -> str:
    return f"./{path.name}"


@final
class _Loader(ExecutionLoader):
    """Imports from bytes that were read before, and writes no byte code beside the file."""

    def __init__(self, file: OwnFile) -> None:
        self._file = file

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._file.text)

    def get_filename(self, fullname: str) -> str:
        return str(self._file.path)


def _imported(name: str, file: OwnFile) -> ModuleType:
    loader = _Loader(file)
    spec = importlib.util.spec_from_file_location(name, file.path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        raise UserError(f"{file.path} cannot be imported: {_where(error, file.path)}") from error
    _files[name] = file
    return module


def _where(error: Exception, path: Path) -> str:
    """Return one line with an error and the last line of the user's file that led to it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    where = "" if line is None else f"line {line}: "
    return f"{where}{type(error).__name__}: {text[:200]}"


@contextlib.contextmanager
def _on_every_rank() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        error.on_every_rank = True
        raise
