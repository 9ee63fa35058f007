"""``quadriga recipes`` and ``quadriga doctor``."""

from __future__ import annotations

import shutil
from pathlib import Path

from quadriga.formatting import bytes_
from quadriga.recipes.find import list_recipes, list_workflows

OPTIONAL = {
    "pillow_heif": "HEIC images (pip install 'quadriga[heic]')",
    "transformers": "checking exports to Hugging Face (pip install 'quadriga[hf]')",
    "onnxruntime": "exports to ONNX (pip install 'quadriga[onnx]')",
    "pyarrow": "text in parquet files (pip install 'quadriga[parquet]')",
}
"""Optional package -> its use."""


def recipes() -> None:
    """Print each recipe with the first line of its docstring; then the workflows."""
    runs, workflows = list_recipes(), list_workflows()
    width = max(len(name) for name in (*runs, *workflows))
    for found, title in ((runs, ""), (workflows, "several runs, for quadriga run")):
        if found and title:
            print(f"\n{title}")
        for name, summary in found.items():
            print(f"{name:<{width}}  {summary}")


def doctor() -> None:
    """Print the environment as plain lines, then what is missing."""
    import psutil
    import torch

    from quadriga.distributed.environment import SINGLE
    from quadriga.engine.logs.environment import describe_environment, version_of
    from quadriga.engine.meters.devices import device_name

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
        name for name in ("gloo", "nccl", "mpi") if torch.distributed.is_backend_available(name)
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
