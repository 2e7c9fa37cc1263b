"""A run is a folder: which model, data and settings, the weights that came of it, and a fitted obfuscator if any."""

from splitveil.runs.fitting import obfuscate_run
from splitveil.runs.manifest import MANIFEST, OBFUSCATOR, Manifest, versions
from splitveil.runs.own import find_model
from splitveil.runs.run import Run
from splitveil.runs.sources import WEIGHTS
from splitveil.runs.training import train_run

__all__ = [
    "MANIFEST",
    "OBFUSCATOR",
    "WEIGHTS",
    "Manifest",
    "Run",
    "find_model",
    "obfuscate_run",
    "train_run",
    "versions",
]
