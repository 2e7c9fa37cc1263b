"""Adversaries: what they may see, and the ones that splitveil brings.

To add one: write a class with a ``name`` and the ``fit`` of `Attack`, and name it in `ATTACKS`; or in `FINITE`, where
it reads nothing but digits.
"""

from splitveil.attack.decensoring import Decensoring
from splitveil.attack.frequencies import Frequencies
from splitveil.attack.neighbours import NearestNeighbours
from splitveil.attack.networks import Perceptron, ServerArchitecture, Training
from splitveil.attack.reconstruction import Similarity, mean_image, reconstruct, similarity
from splitveil.attack.trees import GradientBoosting
from splitveil.attack.view import Attack, Guess, Job, Public, View, fit_all

__all__ = [
    "ATTACKS", "FINITE", "REVISION", "Attack", "Decensoring", "Frequencies", "GradientBoosting", "Guess", "Job",
    "NearestNeighbours", "Perceptron", "Public", "ServerArchitecture", "Similarity", "Training", "View", "fit_all",
    "mean_image", "reconstruct", "similarity",
]  # fmt: skip

ATTACKS: tuple[Attack, ...] = (
    ServerArchitecture(),
    Perceptron(),
    Perceptron("deep", hidden=(512, 256, 128), dropout=(0.1, 0.3)),
    Perceptron("linear", hidden=(), dropout=(0.0, 0.0), training=Training(learning_rate=1e-2)),
    GradientBoosting(),
    NearestNeighbours(),
    Decensoring(),
)
"""What `leakage` mounts unless told otherwise; the best of them on validation counts."""

REVISION = 2
"""Rises whenever an attack, or how the best is chosen, changes, so that lines that were kept are computed anew."""

FINITE: tuple[Attack, ...] = (Frequencies(),)
"""What finite messages meet beside the suite, whichever that is: networks may miss what counting finds."""
