"""What every model that can be cut into stages checks."""

from __future__ import annotations

from collections.abc import Sequence

from quadriga.errors import UserError


def check_depths(depths: Sequence[int], depth: int) -> None:
    """Check that stages of so many blocks make up the model.

    Raises:
        UserError: They do not.
    """
    if not depths or min(depths) < 0 or sum(depths) != depth:
        raise UserError(
            f"the stages' depths must be 0 or more and add up to model.depth={depth}, "
            f"but are {list(depths)}; change pipeline.depths"
        )
