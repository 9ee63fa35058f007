"""One rank of a run whose data is damaged on rank 1 alone.

torchrun lone_error_worker.py GOOD_ROOT BAD_ROOT WORDS...
"""

from __future__ import annotations

import os
import sys

from quadriga.cli.entry import run

if __name__ == "__main__":
    root = sys.argv[1 + int(os.environ["RANK"])]
    sys.exit(run([*sys.argv[3:], f"data.root={root}"]))
