"""What the reference's own reader makes of config files; runs in the oracle's environment.

Reads a list of ``[file, options]`` as JSON and prints the list of what came out of each.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def encode(value: Any) -> Any:
    """Return a value as JSON that keeps tuples, kinds of numbers and kinds of keys apart."""
    if isinstance(value, dict):
        pairs = [[encode(key), encode(item)] for key, item in value.items()]
        return {"dict": sorted(pairs, key=repr)}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [encode(item) for item in value]}
    return {type(value).__name__: repr(value)}


def main() -> None:
    """Answer on the standard output."""
    from mmengine.config import Config, DictAction

    answers = []
    for path, options in json.load(sys.stdin):
        try:
            config = Config.fromfile(path, import_custom_modules=False)
            pairs = (option.split("=", maxsplit=1) for option in options)
            config.merge_from_dict({key: DictAction._parse_iterable(text) for key, text in pairs})
            answers.append({"value": encode(config.to_dict())})
        except Exception as error:
            answers.append({"error": f"{type(error).__name__}: {error}"})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
