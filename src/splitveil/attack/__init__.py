"""Adversaries: what they may see, and the ones that splitveil brings.

To add one: write a class with a ``name`` and the ``fit`` of `Attack`, and name it in `ATTACKS`.
"""

from splitveil.attack.networks import Perceptron, ServerArchitecture, Training
from splitveil.attack.reconstruction import reconstruct
from splitveil.attack.view import Attack, Guess, Public, View

__all__ = [
    "ATTACKS", "Attack", "Guess", "Perceptron", "Public", "ServerArchitecture", "Training", "View", "reconstruct",
]  # fmt: skip

ATTACKS: tuple[Attack, ...] = (
    ServerArchitecture(),
    Perceptron(),
    Perceptron("linear", hidden=(), dropout=(0.0, 0.0), training=Training(learning_rate=1e-2)),
)
"""What `leakage` mounts unless told otherwise; the best of them on validation counts."""
