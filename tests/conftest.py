"""What all tests share: quiet threads, the shared data, ranks as processes, tiny runs."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Before torch is imported: a second thread on a shared core makes a tiny step take a second.
os.environ["OMP_NUM_THREADS"] = "1"

# Corpora that no folder holds are kept here, and not in the user's own cache.
os.environ["QUADRIGA_CACHE"] = CACHE = tempfile.mkdtemp(prefix="quadriga-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

# The shapes in the signatures of tensor functions are checked while testing.
CHECKED = [
    "quadriga.models",
    "quadriga.weights",
    "quadriga.losses",
    "quadriga.methods",
    "quadriga.randomness",
]
install_import_hook(CHECKED, "beartype.beartype")

# A loaded machine is no reason to fail; where a failure must repeat, so must the examples.
settings.register_profile("unhurried", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("unhurried")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the shared data; the test is skipped where it is missing."""
    folder = Path(os.environ.get("QUADRIGA_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the shared data is not at {folder} (set QUADRIGA_SHARED_DATA)")
    return folder


@pytest.fixture(autouse=True, scope="module")
def no_curves(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave out the curves of runs, a second for each, where no test looks at them."""
    if {"report", "e2e"} & set(request.path.parts):
        yield
        return
    from quadriga.report import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "curves_of", lambda *arguments: [])
        yield


@cache
def shares_fixtures(file: str) -> bool:
    """Return whether a test file has fixtures that its tests share."""
    return 'scope="module"' in (ROOT / file).read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests that share a fixture in one process, which makes it once.

    Not with ``--dist loadgroup``: xdist 3.8 does not see the groups under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if shares_fixtures(file) else nodeid

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests, with the reason, where there is no GPU."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def undefined_is_nan() -> Iterator[None]:
    """Fill memory that torch leaves undefined with NaN, or the largest integer."""
    import torch

    torch.use_deterministic_algorithms(True)  # without it nothing is filled
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
