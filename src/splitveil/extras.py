"""Which optional part of the installation a missing package belongs to."""

_TRAIN = {"torch", "safetensors", "scipy", "sklearn", "matplotlib", "PIL", "pydantic"}


def explain_missing(error: ModuleNotFoundError, what: str) -> str | None:
    """The sentence that tells how to install what is missing; None where the package is not one of ours."""
    package = (error.name or "").partition(".")[0]
    if package not in _TRAIN:
        return None
    return f"{what} needs the package {package!r}: pip install 'splitveil[train]'"
