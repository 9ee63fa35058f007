"""Config files of the mmengine family: parsed, merged, overridden and written; never executed."""

from __future__ import annotations

from quadriga.surfaces.mmselfsup.config.dump import dump_config
from quadriga.surfaces.mmselfsup.config.options import apply_options
from quadriga.surfaces.mmselfsup.config.reader import read_config

__all__ = ["apply_options", "dump_config", "read_config"]
