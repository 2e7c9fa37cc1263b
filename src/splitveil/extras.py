"""Which optional part of the installation a missing package belongs to."""

_EXTRAS = {
    **dict.fromkeys(
        ("torch", "safetensors", "scipy", "sklearn", "skimage", "matplotlib", "markdown_it", "concept_erasure", "onnx",
         "onnxscript"), "train",
    ),
    **dict.fromkeys(
        ("starlette", "uvicorn", "uvloop", "httptools", "grpc", "google", "tritonclient", "prometheus_client"), "serve"
    ),
    "cryptography": "sign",
    "ray": "ray",
}  # fmt: skip


def explain_missing(error: ModuleNotFoundError, what: str) -> str | None:
    """The sentence that tells how to install what is missing; None where the package is not one of ours."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    return f"{what} needs the package {package!r}: pip install 'splitveil[{_EXTRAS[package]}]'"
