"""What all tests share: a Hypothesis profile, and where the real data lies."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

import splitveil  # noqa: F401  # first of all, so that no test module imports onnxruntime with its telemetry on

# One core per worker: more threads than cores make small products many times slower.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The first call into torch is slow, so a deadline per example would fail at random.
settings.register_profile("splitveil", deadline=None, print_blob=True)
settings.load_profile("splitveil")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``edge`` and ``server``: an untrained network on digit pairs, cut 4, m = 8. Copy to change it."""
    from made_bundles import made_bundle

    return made_bundle(tmp_path_factory.mktemp("exported") / "bundle")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets: skips where none is named, fails where one is named but missing."""
    named = os.environ.get("SPLITVEIL_DATA")
    if not named:
        pytest.skip("SPLITVEIL_DATA is not set: this test needs real data")
    root = Path(named)
    if not root.is_dir():
        pytest.fail(f"SPLITVEIL_DATA is {named!r}, which is not a folder")
    return root
