"""The names of a run's tensors in the reference."""

from __future__ import annotations

from quadriga.engine.run_config import RunConfig
from quadriga.models.vit import ViTConfig
from quadriga.weights.names.mmselfsup import LAYOUT
from quadriga.weights.names.mmselfsup_methods import method_layout
from quadriga.weights.names.table import ForeignLayout


def layout_of(run: RunConfig) -> ForeignLayout:
    """Return the names and shapes of a run's whole model."""
    own = method_layout(run.objective.kind(), isinstance(run.model, ViTConfig))
    return own or LAYOUT
