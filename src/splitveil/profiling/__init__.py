"""Measuring the profile that a provider publishes."""

from splitveil.profiling.grid import EPSILONS, KEPT
from splitveil.profiling.measuring import measure_profile
from splitveil.profiling.uncut import model_digest

__all__ = ["EPSILONS", "KEPT", "measure_profile", "model_digest"]
