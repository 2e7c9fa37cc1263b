"""Which weights: one digest for a model, whether it lies in a safetensors file or in memory; free of torch."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, TypeGuard

from splitveil.errors import ProfileError
from splitveil.profile.schema import Profile

WEIGHTS = "model.safetensors"
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_LENGTH = 8


def weights_digest(data: bytes) -> str:
    """SHA-256 (64 hex digits) of the names, types, shapes and values in a safetensors file, in the order of names.

    The file's own metadata and the order of its tensors do not count.

    Args:
        data: the file, or what ``safetensors.torch.save`` gives.

    Raises:
        ProfileError: these are not the bytes of a safetensors file.
    """
    header, start = _header(data)
    state = hashlib.sha256()
    for name in sorted(set(header) - {"__metadata__"}):
        dtype, shape, begin, end = _entry(name, header[name], len(data) - start)
        state.update(json.dumps([name, dtype, shape]).encode())
        state.update(memoryview(data)[start + begin : start + end])
    return state.hexdigest()


def check_weights(profile: Profile, folder: str | Path) -> None:
    """See that a model in the profile's folder, where there is one, is the profile's own.

    Raises:
        ProfileError: the weights there are of another model, or damaged.
    """
    path = Path(folder) / WEIGHTS
    try:
        if not path.exists():
            return
        found = weights_digest(path.read_bytes())
    except OSError as error:
        raise ProfileError(f"{path} cannot be read ({error}); restore it, or move the profile elsewhere") from error
    if found != profile.model.weights:
        raise ProfileError(
            f"this is the profile of another model: it was made for weights {profile.model.weights[:12]}…, but {path} "
            f"holds {found[:12]}…; run 'splitveil profile' again"
        )


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header, and where the values start."""
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or length > len(data) - _LENGTH:
        raise ProfileError("the weights are not a safetensors file, or it is cut short; train again")
    try:
        header = json.loads(data[_LENGTH : _LENGTH + length])
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"the header of the weights is no JSON ({error}); train again") from error
    if not isinstance(header, dict):
        raise ProfileError("the header of the weights is no table of tensors; train again")
    return header, _LENGTH + length


def _entry(name: str, entry: Any, available: int) -> tuple[str, list[int], int, int]:
    """Type, shape, and where the values begin and end, of which no bound is trusted."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(dtype, str) and dtype in _BYTES and _counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise ProfileError(f"the weights' tensor {name!r} has no type, shape or place that is known; train again")
    begin, end = offsets
    if not begin <= end <= available or end - begin != math.prod(shape) * _BYTES[dtype]:
        raise ProfileError(f"the weights' tensor {name!r} does not fit into the file; train again")
    return dtype, shape, begin, end


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
