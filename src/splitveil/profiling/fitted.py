"""Obfuscators that were fitted to images: their prefixes, their digest, and what of them lies on the edge."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass

from safetensors.torch import save
from torch import Tensor

from splitveil.errors import ProfileError
from splitveil.obfuscate import Affine, Tables
from splitveil.profile import weights_digest

Fitted = Affine | Tables
_OF_THE_SERVER = ("decoder", "offset", "energy", "table")


def prefixes(veil: Fitted, kept: Sequence[int]) -> list[Fitted]:
    """The obfuscator with fewer components, for each number of them, and whole; a finite one is whole only."""
    if isinstance(veil, Tables):
        return [veil]
    return [*(veil.keep(m) for m in sorted(set(kept)) if m < veil.m), veil]


def check_fits(veil: Fitted, feature_shape: Sequence[int]) -> None:
    """Raises `ProfileError` where an obfuscator is of another cut, or is none that was fitted."""
    if not isinstance(veil, Affine | Tables):
        raise ProfileError(f"{type(veil).__name__} was not fitted to images; leave it out, as the model says all of it")
    if tuple(veil.feature_shape) != tuple(feature_shape):
        raise ProfileError(
            f"the obfuscator is for features of shape {tuple(veil.feature_shape)}, but here they have "
            f"{tuple(feature_shape)}; cut where it was fitted"
        )


def obfuscator_digest(veil: Fitted) -> str:
    """SHA-256 (64 hex digits) of an obfuscator's name, levels and numbers."""
    numbers = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(veil)}
    facts = f"{veil.name}|{veil.message.levels}|{weights_digest(save(numbers))}"
    return hashlib.sha256(facts.encode()).hexdigest()


def encoder_numbers(veil: Fitted) -> int:
    """Numbers that the edge stores of an obfuscator: all but what the server decodes by."""
    return sum(tensor.numel() for name, tensor in _tensors(veil) if name.rpartition(".")[2] not in _OF_THE_SERVER)


def _tensors(part: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name in (each.name for each in fields(part)) if is_dataclass(part) else ():
        value = getattr(part, name)
        if isinstance(value, Tensor):
            yield prefix + name, value
        else:
            yield from _tensors(value, f"{prefix}{name}.")
