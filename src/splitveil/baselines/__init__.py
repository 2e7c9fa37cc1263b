"""Other people's defences, each behind the obfuscator's interface, with the grid of settings that it is tuned over."""

from splitveil.baselines.defence import Defence, Defended, Undefended

__all__ = ["BASELINES", "Defence", "Defended", "Undefended"]

BASELINES: dict[str, tuple[Defence, ...]] = {}
"""Every baseline's settings by its name: five each, the same tuning budget as our method has."""
