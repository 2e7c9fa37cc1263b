"""What a report of a fault should hold: versions, extras, telemetry and the cache folder; without torch."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from splitveil import telemetry
from splitveil.extras import EXTRAS, missing_packages
from splitveil.files import cache_folder
from splitveil.version import __version__

_PACKAGES = (
    "numpy", "onnxruntime", "pillow", "pydantic", "httpx", "rich", "typer",
    "torch", "onnx", "safetensors", "scikit-learn", "grpcio", "tritonclient", "uvicorn", "cryptography", "ray",
)  # fmt: skip
"""Distributions whose versions explain most faults: all of the base installation, then the main ones of each extra."""


@dataclass(frozen=True)
class Diagnosis:
    """Facts about an installation.

    Attributes:
        splitveil: its version.
        python: the interpreter's version.
        platform: operating system and processor.
        packages: version of each package that is installed, by its name in the package index.
        missing: packages of each extra that are not installed; none where the extra is complete.
        telemetry: "off", or why ONNX Runtime may have reported to its maker from this process.
        variables: environment variables that switch telemetry off, with their values.
        cache_folder: where decoded data sets and notes about runs are kept.
        cache_writable: whether that folder, or the folder in which it will be made, can be written.
    """

    splitveil: str
    python: str
    platform: str
    packages: dict[str, str]
    missing: dict[str, list[str]]
    telemetry: str
    variables: dict[str, str]
    cache_folder: str
    cache_writable: bool


def diagnose() -> Diagnosis:
    """Look at this process and its installation. Nothing is imported, written or asked of a network for it."""
    folder = cache_folder()
    return Diagnosis(
        splitveil=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={name: found for name in _PACKAGES if (found := _version(name))},
        missing={extra: missing_packages(extra) for extra in EXTRAS},
        telemetry=telemetry.state(),
        variables={name: os.environ.get(name, "") for name in telemetry.OFF},
        cache_folder=str(folder),
        cache_writable=_is_writable(folder),
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_writable(folder: Path) -> bool:
    nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
