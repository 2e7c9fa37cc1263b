"""Checks of a user's own arrays on their way into a data set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from splitveil.data.splitting import PART_NAMES
from splitveil.errors import DataError

Labels = NDArray[np.int64]


def as_pixels(x: ArrayLike) -> Tensor:
    """Images as uint8, (N, C, H, W), from uint8 or float in [0, 1], (N, C, H, W) or (N, H, W).

    Raises:
        DataError: if the shape, the dtype or a value does not fit.
    """
    images = _array(x)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(f"x has shape {images.shape}, but images must be N×C×H×W or N×H×W and not empty")
    if images.shape[3] in (1, 3, 4) and images.shape[1] > 4:
        raise DataError(f"x has shape {images.shape}, which looks like N×H×W×C; give N×C×H×W: x.transpose(0, 3, 1, 2)")
    if images.dtype != np.uint8:
        images = _quantised(images)
    return torch.from_numpy(np.ascontiguousarray(images))


def _quantised(images: NDArray[Any]) -> NDArray[np.uint8]:
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"x has dtype {images.dtype}, but images must be uint8, or float in [0, 1]")
    if not (images.min() >= 0 and images.max() <= 1):  # a NaN fails too
        raise DataError("x holds values outside [0, 1] or NaN; scale float images to [0, 1], or pass uint8")
    quantised: NDArray[np.uint8] = np.rint(images * 255).astype(np.uint8)
    return quantised


def as_labels(
    name: str, values: ArrayLike, count: int, classes: Sequence[str] | None = None, *, gaps: bool = False
) -> tuple[Labels, tuple[str, ...]]:
    """Labels as int64, (N,), and the names of their classes (the numbers where no names are given).

    Args:
        name: What to call them in a message.
        values: Integers ≥ 0, one an image.
        count: Number of images.
        classes: Names; label k is classes[k].
        gaps: Whether numbers between may be unused though no names are given.

    Raises:
        DataError: if a label is missing, not an integer, negative or without a name.
    """
    labels = _integers(name, values, count)
    names = tuple(str(k) for k in range(labels.max() + 1)) if classes is None else tuple(map(str, classes))
    if labels.max() >= len(names):
        raise DataError(f"{name} holds the label {labels.max()}, but only {len(names)} classes are named")
    if len(set(names)) != len(names):
        raise DataError(f"the class names of {name} are not distinct: {list(names)}")
    if classes is None and not gaps and len(np.unique(labels)) < len(names):
        absent = min(set(range(len(names))) - set(labels.tolist()))
        raise DataError(
            f"{name} has no image of class {absent}; number the classes 0..K-1, or name them all in classes"
        )
    return labels, names


def as_groups(groups: ArrayLike, count: int) -> Labels:
    """Group numbers, int64, (N,).

    Raises:
        DataError: if they are not one integer an image.
    """
    return _integers("groups", groups, count, lowest=None)


def given_rows(split: Mapping[str, ArrayLike], count: int, groups: ArrayLike | None) -> dict[str, Labels]:
    """Rows of the three parts, as a user named them.

    Raises:
        DataError: if a part is missing, a row is not there or in two parts, or a group straddles parts.
    """
    if set(split) != set(PART_NAMES):
        raise DataError(f"split names the parts {sorted(split)}, but needs exactly train, val and test")
    rows = {part: _integers(f"split[{part!r}]", split[part], None) for part in PART_NAMES}
    chosen = np.concatenate([*rows.values()])
    if chosen.max(initial=-1) >= count:
        raise DataError(f"split names row {chosen.max()}, but there are only {count} images (0..{count - 1})")
    if len(np.unique(chosen)) < len(chosen):
        raise DataError("split names a row twice; each image belongs to at most one part")
    if groups is not None:
        _check_whole(rows, as_groups(groups, count))
    return rows


def _check_whole(rows: dict[str, Labels], groups: Labels) -> None:
    seen: dict[int, str] = {}
    for part, chosen in rows.items():
        for group in np.unique(groups[chosen]).tolist():
            if seen.setdefault(group, part) != part:
                raise DataError(f"group {group} lies in {seen[group]} and in {part}; keep each group in one part")


def _integers(name: str, values: ArrayLike, count: int | None, lowest: int | None = 0) -> Labels:
    array = _array(values)
    if array.ndim != 1 or (count is not None and len(array) != count):
        wanted = "one number an image" if count is None else f"{count} numbers, one an image"
        raise DataError(f"{name} has shape {array.shape}, but must be {wanted}")
    if array.dtype != np.bool_ and not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{name} has dtype {array.dtype}, but must be integers")
    if lowest is not None and array.min(initial=lowest) < lowest:
        raise DataError(f"{name} holds {array.min()}, but must be {lowest} or more")
    return array.astype(np.int64)


def _array(values: ArrayLike) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
