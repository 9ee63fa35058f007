"""From a config to an initialised objective, and to one on the meta device."""

from __future__ import annotations

import torch

from quadriga import randomness
from quadriga.contracts import Objective
from quadriga.engine.run_config import RunConfig


def build_on_meta(config: RunConfig) -> Objective:
    """Make the objective without memory: names, shapes and dtypes only.

    Raises:
        UserError: The method does not train this kind of model.
    """
    with torch.device("meta"):
        return config.objective.build(config.model)


def build_objective(config: RunConfig, device: torch.device, seed: int) -> Objective:
    """Make the objective on `device`, every value of it keyed by `seed`.

    Raises:
        UserError: The method does not train this kind of model.
    """
    objective = build_on_meta(config).to_empty(device=device)
    objective.initialise(seed)
    return objective


def check_shapes(config: RunConfig) -> None:
    """Run one sample through the objective on the meta device: no memory, no data, no time.

    Raises:
        UserError: The views and the model do not fit each other.
    """
    objective = build_on_meta(config)
    example = config.views.build("train").example(1, torch.device("meta"))
    with randomness.micro_batch(config.seed, 0, 0, 0), torch.no_grad():
        objective(example)
