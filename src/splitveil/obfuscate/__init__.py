"""Obfuscators: what leaves the edge device in place of the feature."""

from splitveil.obfuscate.affine import Affine
from splitveil.obfuscate.aware import CovarianceAware, ServerAware
from splitveil.obfuscate.codebook import Codebook
from splitveil.obfuscate.distilled import Distilled
from splitveil.obfuscate.features import Features
from splitveil.obfuscate.fitting import FINITE, METHODS, Method, fit_obfuscator
from splitveil.obfuscate.projections import (
    DistortionBounded,
    DistortionFree,
    Identity,
    PrivacyWarning,
    TopComponents,
    kept_components,
)
from splitveil.obfuscate.quantised import Quantised
from splitveil.obfuscate.storage import read_obfuscator, write_obfuscator
from splitveil.obfuscate.tables import Tables

__all__ = [
    "FINITE", "METHODS", "Affine", "Codebook", "CovarianceAware", "Distilled", "DistortionBounded", "DistortionFree",
    "Features", "Identity", "Method", "PrivacyWarning", "Quantised", "ServerAware", "Tables", "TopComponents",
    "fit_obfuscator", "kept_components", "read_obfuscator", "write_obfuscator",
]  # fmt: skip
