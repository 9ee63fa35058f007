"""Where a run's first weights come from, beside its random ones: checked, then filled in.

Once, at step 0 and not on resumption.
"""

from __future__ import annotations

from collections.abc import Callable

from quadriga.contracts import Objective
from quadriga.distributed.collectives import on_all
from quadriga.distributed.environment import DistEnv
from quadriga.engine.run_config import RunConfig
from quadriga.engine.warm_start import check_warm_start, warm_start
from quadriga.engine.weight_sources import check_source, read_source
from quadriga.errors import UserError


def check_origins(config: RunConfig, later: str | None = None) -> None:
    """Check what can be checked at once, without reading a tensor.

    Args:
        config: The run.
        later: How paths begin that stand for what is not there yet, and is left alone.

    Raises:
        UserError: A path is missing or holds no weights, or two keys fill the same tensors.
    """
    if later is None or not (config.warm_start.path or "").startswith(later):
        check_warm_start(config.warm_start)
    if config.modular is None:
        return
    if config.warm_start.path is not None:
        raise UserError(
            f"warm_start.path must be none, as modular.kind={config.modular.kind()} says where the "
            f"weights come from, but is {config.warm_start.path}; remove it"
        )
    for option, path in config.modular.sources():
        if later is None or not path.startswith(later):
            check_source(path, option)


def fill_from_origins(
    config: RunConfig, objective: Objective, env: DistEnv, warn: Callable[[str], None]
) -> list[str]:
    """Fill an initialised objective from what the config names; every rank calls it.

    Args:
        config: The run.
        objective: The whole objective, on any device.
        env: The ranks.
        warn: Told which checkpoints of a run are passed over and why.

    Returns:
        What to say of it, the same on every rank.

    Raises:
        UserError: The weights cannot be read or do not fit; on every rank.
    """
    report = warm_start(config.warm_start, objective, env, warn)
    told = [] if report is None else [f"warm start: {report}"]
    modular = config.modular
    if modular is not None:

        def fill() -> str:
            found = [read_source(path, option, warn) for option, path in modular.sources()]
            return modular.fill(objective, config.objective, config.model, found)

        told.append(on_all(fill, env))
    return told
