"""What every process of a run imports."""

import json
import subprocess
import sys

import pytest

HEAVY = ("matplotlib.figure", "torch._dynamo", "torch.distributed.pipelining", "sklearn", "pyarrow")


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = f"""
import json, sys
import quadriga.cli.train
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("module", ["quadriga.cli.entry", "quadriga.cli.main"])
def test_the_command_line_is_read_before_torch_is_imported(module: str) -> None:
    code = f"import json, sys\nimport {module}\nprint(json.dumps('torch' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) is False
