"""``quadriga recipes`` and ``quadriga doctor``."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import psutil
import torch

from quadriga.distributed.environment import SINGLE
from quadriga.engine.logs.environment import describe_environment, version_of
from quadriga.engine.meters.devices import device_name
from quadriga.formatting import bytes_
from quadriga.recipes.find import find_recipes, find_workflows

OPTIONAL = {
    "transformers": "checking exports to Hugging Face (pip install 'quadriga[hf]')",
    "onnxruntime": "exports to ONNX (pip install 'quadriga[onnx]')",
    "pyarrow": "text in parquet files (pip install 'quadriga[parquet]')",
}
"""Optional package -> its use."""


def recipes() -> None:
    """Print each recipe with the first line of its docstring; then the workflows."""
    runs, workflows = find_recipes(), find_workflows()
    width = max(len(name) for name in (*runs, *workflows))
    for found, title in ((runs, ""), (workflows, "several runs, for quadriga run")):
        if found and title:
            print(f"\n{title}")
        for name, function in found.items():
            summary = (inspect.getdoc(function) or "").splitlines()[0]
            print(f"{name:<{width}}  {summary}")


def doctor() -> None:
    """Print the environment, one value a line, then the missing packages and devices."""
    environment = describe_environment(SINGLE)
    environment.pop("command")
    environment.pop("started")
    environment["memory"] = bytes_(psutil.virtual_memory().total)
    environment["free disk here"] = bytes_(shutil.disk_usage(Path.cwd()).free)
    environment["gpus"] = ", ".join(
        f"{device_name(torch.device('cuda', i))} "
        f"({bytes_(torch.cuda.get_device_properties(i).total_memory)})"
        for i in range(torch.cuda.device_count())
    )
    environment["distributed"] = ", ".join(
        name for name in ("gloo", "nccl", "mpi") if _backend_available(name)
    )
    environment.update({package: version_of(package) for package in OPTIONAL})
    width = max(len(name) for name in environment)
    for name, value in environment.items():
        print(f"{name:<{width}}  {value if value not in (None, '') else '-'}")
    missing = [f"{name}: {use}" for name, use in OPTIONAL.items() if environment[name] is None]
    if not torch.cuda.is_available():
        missing.append("GPU: runs use the CPU")
    print("missing" if missing else "nothing is missing")
    for line in missing:
        print(f"  {line}")


def _backend_available(name: str) -> bool:
    return bool(torch.distributed.is_backend_available(name))
