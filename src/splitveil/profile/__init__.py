"""What a provider publishes, and how a client picks from it; free of torch."""

from splitveil.profile.choose import Choice, choose
from splitveil.profile.file import read_profile, write_profile
from splitveil.profile.schema import DataFacts, Interval, Method, ModelFacts, Profile, Reference, Row
from splitveil.profile.weights import check_weights, weights_digest

__all__ = [
    "Choice",
    "DataFacts",
    "Interval",
    "Method",
    "ModelFacts",
    "Profile",
    "Reference",
    "Row",
    "check_weights",
    "choose",
    "read_profile",
    "weights_digest",
    "write_profile",
]
