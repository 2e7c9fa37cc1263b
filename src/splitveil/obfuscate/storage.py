"""A fitted obfuscator as a file: tensors and a JSON object, nothing that runs."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from splitveil.errors import RunError, ShapeError
from splitveil.message import Obfuscator
from splitveil.obfuscate.affine import Affine
from splitveil.obfuscate.aware import CovarianceAware, ServerAware
from splitveil.obfuscate.codebook import Codebook
from splitveil.obfuscate.distilled import Distilled
from splitveil.obfuscate.encoder import Encoder, Layer
from splitveil.obfuscate.quantised import Quantised
from splitveil.tensors import read_tensors, write_tensors

_AFFINE = (Affine, CovarianceAware, ServerAware, Distilled)
_KINDS = (*_AFFINE, Quantised, Codebook)
_PARTS: dict[Any, tuple[type, ...]] = {Affine: _AFFINE, Encoder: (Encoder,), Layer | None: (Layer,)}
"""What a field that is itself made of fields may hold."""


def write_obfuscator(path: str | Path, veil: Obfuscator) -> None:
    """Write an obfuscator that was fitted to features, atomically.

    Raises:
        RunError: it is none of those, or the file cannot be written.
    """
    if type(veil) not in _KINDS:
        raise RunError(f"an obfuscator {veil.name!r} has nothing fitted to be kept; it is made anew from the model")
    tensors: dict[str, Tensor] = {}
    facts = _taken_apart(veil, tensors, "")
    write_tensors(Path(path), tensors, facts)


def read_obfuscator(path: str | Path) -> Obfuscator:
    """What `write_obfuscator` wrote.

    Raises:
        RunError: the file is missing, damaged, or holds something else.
    """
    tensors, facts = read_tensors(Path(path))
    try:
        veil: Obfuscator = _put_together(facts, tensors, "", _KINDS)
        if tensors:
            raise ValueError("tensors are left over")
    except (KeyError, TypeError, ValueError, ShapeError) as error:
        raise RunError(f"{path} holds no obfuscator of this version; run 'splitveil obfuscate' again") from error
    return veil


def _taken_apart(part: Any, tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """The facts of an obfuscator or of a part of one; its tensors join the others."""
    facts: dict[str, Any] = {"kind": type(part).__name__}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            tensors[prefix + field.name] = value
        elif value is None:
            continue
        elif field.type in _PARTS:
            facts[field.name] = _taken_apart(value, tensors, f"{prefix}{field.name}.")
        else:
            facts[field.name] = value
    return facts


def _put_together(facts: dict[str, Any], tensors: dict[str, Tensor], prefix: str, kinds: tuple[type, ...]) -> Any:
    """The obfuscator or the part; its tensors leave the others. The kind says what a field holds, not the file."""
    kind = {kind.__name__: kind for kind in kinds}[facts["kind"]]
    found: dict[str, Any] = {}
    for field in fields(kind):
        name = field.name
        if field.type in _PARTS:
            absent = name not in facts and field.default is None
            inner = f"{prefix}{name}."
            found[name] = None if absent else _put_together(facts[name], tensors, inner, _PARTS[field.type])
        elif field.type in (Tensor, Tensor | None):
            found[name] = tensors.pop(prefix + name, None)
            if found[name] is None and field.type is Tensor:
                raise KeyError(name)
        else:
            found[name] = _READERS[field.type](facts[name])
    if set(facts) - {"kind", *found}:
        raise ValueError("facts are left over")
    if not all(value.is_floating_point() for value in found.values() if isinstance(value, Tensor)):
        raise TypeError("a tensor holds no real numbers")
    return kind(**found)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise TypeError("a name is no text")
    return value


def _whole_number(value: object) -> int:
    if type(value) is not int or value < 1:
        raise TypeError("a number is no whole one above zero")
    return value


def _whole_numbers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError("a shape or levels are no list")
    return tuple(map(_whole_number, value))


_READERS: dict[Any, Callable[[object], Any]] = {str: _text, int: _whole_number, tuple[int, ...]: _whole_numbers}
