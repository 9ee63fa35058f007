"""YAML, without what makes a short text huge."""

from __future__ import annotations

from typing import Any

from quadriga.errors import UserError


def parse_yaml(text: str) -> Any:
    """Return the values of a YAML text.

    Raises:
        UserError: PyYAML is not installed.
        ValueError: It is not YAML, or has references or values of Python.
    """
    try:
        import yaml
    except ImportError as error:
        raise UserError("YAML configs need PyYAML: pip install pyyaml") from error
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1
                raise ValueError(f"line {line} refers to an anchor; write the value out")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
