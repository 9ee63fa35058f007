"""Where each value of a config came from: default, recipe, file or command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic

from quadriga.config import own_code
from quadriga.config.base import Choice, Config, ConfigT, within
from quadriga.errors import UserError
from quadriga.files import parse_json


class Resolved(Generic[ConfigT]):
    """A config, its locations as absolute paths, and where each of its values came from."""

    def __init__(self, config: ConfigT, sources: Mapping[str, str]) -> None:
        """Pair `config` with the source of each of its dotted leaf paths."""
        self.config = config
        self.sources = dict(sources)

    @classmethod
    def of(cls, config: ConfigT, source: str) -> Resolved[ConfigT]:
        """Pair a config with `source`, the name of the recipe that built it.

        Values that the recipe did not set are marked "default".
        """
        named = set(_named(config))
        sources = {
            path: source if any(within(path, name) for name in named) else "default"
            for path, _ in config.leaves()
        }
        return cls(config.anchored(), sources)

    def override(self, values: Mapping[str, Any], source: str) -> Resolved[ConfigT]:
        """Return a new pair with dotted keys replaced and marked with `source`.

        Raises:
            UserError: As `Config.override`.
        """
        config = self.config.override(values, source)
        before = dict(self.config.leaves())
        sources = {}
        for path, value in config.leaves():
            touched = any(within(path, name) for name in values)
            unchanged = path in before and before[path] == value
            sources[path] = source if touched else self.sources[path] if unchanged else "default"
        return Resolved(config.anchored(values), sources)

    def as_json(self) -> str:
        """Return the config and the sources as indented JSON text."""
        return (
            json.dumps({"config": self.config.as_dict(), "sources": self.sources}, indent=2) + "\n"
        )

    @classmethod
    def from_json(cls, config_class: type[ConfigT], text: str) -> Resolved[ConfigT]:
        """Rebuild a pair from the text of `as_json`.

        Raises:
            UserError: The text is not such a file.
        """
        try:
            tree = parse_json(text)
            values, sources = tree["config"], tree["sources"]
            config_class.upgraded(values, sources)
            config = config_class.from_dict(values)
            # A config that was saved before a field existed has that field's default.
            found = {path: str(sources.get(path, "default")) for path, _ in config.leaves()}
        except UserError:
            raise
        except Exception as error:  # a damaged file can hold anything in any place
            raise UserError(f"not a saved config: {error or type(error).__name__}") from error
        return cls(config, found)


def _named(config: Config, prefix: str = "") -> Iterator[str]:
    """Yield the paths that were given a value explicitly when the config was built."""
    for name in config.model_fields_set:
        value, path = getattr(config, name), f"{prefix}{name}"
        if isinstance(value, Config):
            yield from _named(value, f"{path}.")
            if isinstance(value, Choice):
                yield f"{path}.kind"
        else:
            yield path


def read_overrides(words: Sequence[str]) -> dict[str, str]:
    """Read ``key=value`` words of the command line, split at the first equals sign.

    A kind of the user's own, ``objective.kind=./mine.py:Method``, is named by the user, so its file
    is imported.

    Raises:
        UserError: A word has no equals sign, no key, or a key comes twice; or a file cannot be
            imported.
    """
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"an override must look like optim.lr=3e-4, but is {word!r}")
        if key in values:
            raise UserError(f"{key} is set twice on the command line; keep one of the two")
        is_kind = key.endswith(".kind") and own_code.is_own(value)
        values[key] = own_code.load_named(value) if is_kind else value
    return values


COMMAND_LINE = "command line"
