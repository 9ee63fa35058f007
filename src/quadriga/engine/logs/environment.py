"""The environment of a run: versions, devices, revision, command line."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import quadriga
from quadriga.distributed.environment import DistEnv
from quadriga.engine.meters.devices import device_name

PACKAGES = (
    "torch",
    "numpy",
    "pydantic",
    "pillow",
    "simplejpeg",
    "safetensors",
    "scikit-learn",
    "tensorboard",
    "matplotlib",
)
"""Packages whose versions affect the results and pictures of a run."""


def version_of(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_revision(folder: Path) -> str | None:
    """Return the git revision of the checkout around `folder`, with ``+`` if it has changes.

    None outside a checkout or without git.
    """
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_environment(env: DistEnv) -> dict[str, Any]:
    """Return the content of environment.json for this process and its ranks."""
    return {
        "quadriga": quadriga.__version__,
        "revision": git_revision(Path(quadriga.__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: version_of(package) for package in PACKAGES},
        "device": str(env.device),
        "device_name": device_name(env.device),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "world_size": env.world_size,
        "command": shlex.join(["quadriga", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
