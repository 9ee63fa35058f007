"""YAML, without what makes a short text huge."""

from __future__ import annotations

from typing import Any

import yaml

from quadriga.surfaces.mmselfsup.config.budget import MOST_LEVELS


class YamlError(ValueError):
    """A text that is not read as YAML.

    Args:
        msg: What is wrong.
        lineno: The line, from 1.
    """

    def __init__(self, msg: str, lineno: int) -> None:
        super().__init__(msg)
        self.msg = msg
        self.lineno = lineno


def parse_yaml(text: str) -> Any:
    """Return the values of a YAML text.

    Raises:
        YamlError: It is not YAML, or has references or values of Python.
    """
    try:
        levels = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            starts, ends = yaml.CollectionStartEvent, yaml.CollectionEndEvent
            levels += isinstance(event, starts) - isinstance(event, ends)
            if levels > MOST_LEVELS:
                line = event.start_mark.line + 1
                raise YamlError(f"values are nested in more than {MOST_LEVELS} levels", line)
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1
                raise YamlError("an alias stands for a value elsewhere; write the value out", line)
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise YamlError(str(error.problem), line) from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(str(error), 1) from error
