"""Which optional part of the installation a missing package belongs to."""

from importlib.util import find_spec

EXTRAS = {
    "train": (
        "concept_erasure", "markdown_it", "matplotlib", "onnx", "onnxscript", "safetensors", "skimage", "sklearn",
        "scipy", "torch",
    ),
    "serve": ("google", "grpc", "httptools", "prometheus_client", "starlette", "tritonclient", "uvicorn", "uvloop"),
    "sign": ("cryptography",),
    "ray": ("ray",),
}  # fmt: skip
"""The packages that each extra adds, by the names under which they are imported."""


def explain_missing(error: ModuleNotFoundError, what: str) -> str | None:
    """The sentence that tells how to install what is missing; None where the package is not one of ours."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"{what} needs the package {package!r}: {install_command(extra)}"
    return None


def install_command(extra: str) -> str:
    """The command line that installs an extra."""
    return f"pip install 'splitveil[{extra}]'"


def missing_packages(extra: str) -> list[str]:
    """Packages of an extra that are not installed."""
    return [package for package in EXTRAS[extra] if not _is_installed(package)]


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a finder that refuses it, or a module without a spec
        return False
