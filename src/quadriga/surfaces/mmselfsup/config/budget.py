"""What reading a config may cost: a config is small, and a hostile one must end in an error."""

from __future__ import annotations

from typing import Any

MOST_BYTES = 256 * 1024
"""Of one file; the longest config of the family has 20 KiB."""
MOST_CHARACTERS = 100_000
"""Of one string."""
MOST_BITS = 256
"""Of one whole number."""
MOST_LEVELS = 50
"""Groups and lists within each other, and expressions within each other."""
MOST_FILES = 200
"""Files that one config inherits from, repeats counted."""
_MOST_UNITS = 250_000
"""The largest config of the reference takes 2,500."""


class Budget:
    """The work that reading one config may take, all its files together.

    A unit is one evaluated expression, or one element that is made, copied or compared. Lists
    that hold one another many times are small in memory and huge when written out, so elements
    count as often as they would be written.
    """

    def __init__(self, units: int = _MOST_UNITS) -> None:
        self.left = units

    def spend(self, units: int = 1) -> None:
        """Take units from the budget.

        Raises:
            ValueError: None is left.
        """
        self.left -= units
        if self.left < 0:
            raise ValueError(
                f"the config takes more than {_MOST_UNITS:,} operations; write its values out"
            )

    def measure(self, *values: object) -> None:
        """Spend one unit for each element of some values, however deep it lies.

        Raises:
            ValueError: No unit is left, or a string or number is too large.
        """
        stack: list[Any] = list(values)
        while stack:
            value = stack.pop()
            check_size(value)
            if isinstance(value, dict):
                self.spend(2 * len(value))
                stack.extend(value)
                stack.extend(value.values())
            elif isinstance(value, (list, tuple)):
                self.spend(len(value))
                stack.extend(value)
            elif isinstance(value, str):
                self.spend(1 + len(value) // 64)


def check_size(value: object) -> None:
    """Check that a string or whole number has a sensible size.

    Raises:
        ValueError: It is too large.
    """
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        raise ValueError(f"a string has {len(value):,} characters, the limit is {MOST_CHARACTERS}")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError(
            f"a whole number has {value.bit_length():,} bits, the limit is {MOST_BITS}"
        )
