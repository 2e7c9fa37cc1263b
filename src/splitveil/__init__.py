"""Private split inference: cut a network in two, send only what the server's half uses, measure what leaks."""

from importlib import import_module
from typing import Any

from splitveil.errors import MissingExtraError, SplitveilError
from splitveil.extras import explain_missing
from splitveil.telemetry import switch_off
from splitveil.version import __version__

switch_off()  # before any other part of splitveil can import ONNX Runtime

# Public names and the rooms they live in. They load on first use, so that the edge never imports torch.
_ROOMS = {
    "Dataset": "splitveil.data",
    "load_data": "splitveil.data",
    "Table1Net": "splitveil.models",
    "SplitModel": "splitveil.split",
    "Factors": "splitveil.linear",
    "factorise": "splitveil.linear",
    "Codebook": "splitveil.obfuscate",
    "CovarianceAware": "splitveil.obfuscate",
    "Distilled": "splitveil.obfuscate",
    "DistortionBounded": "splitveil.obfuscate",
    "DistortionFree": "splitveil.obfuscate",
    "Features": "splitveil.obfuscate",
    "Identity": "splitveil.obfuscate",
    "PrivacyWarning": "splitveil.obfuscate",
    "Quantised": "splitveil.obfuscate",
    "ServerAware": "splitveil.obfuscate",
    "TopComponents": "splitveil.obfuscate",
    "fit_obfuscator": "splitveil.obfuscate",
    "read_obfuscator": "splitveil.obfuscate",
    "write_obfuscator": "splitveil.obfuscate",
    "Client": "splitveil.exchange",
    "Server": "splitveil.exchange",
    "Recipe": "splitveil.train",
    "fit": "splitveil.train",
    "Estimate": "splitveil.measure",
    "Leakage": "splitveil.measure",
    "leakage": "splitveil.measure",
    "Certificate": "splitveil.certificate",
    "Budget": "splitveil.budget",
    "Choice": "splitveil.profile",
    "Profile": "splitveil.profile",
    "choose": "splitveil.profile",
    "read_profile": "splitveil.profile",
    "measure_profile": "splitveil.profiling",
    "AsyncEdgeClient": "splitveil.client",
    "EdgeClient": "splitveil.client",
}

__all__ = ["MissingExtraError", "SplitveilError", "__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'splitveil' has no attribute {name!r}")
    try:
        return getattr(import_module(_ROOMS[name]), name)
    except ModuleNotFoundError as error:
        if (sentence := explain_missing(error, f"splitveil.{name}")) is None:
            raise
        raise MissingExtraError(sentence) from error


def __dir__() -> list[str]:
    return sorted(__all__)
