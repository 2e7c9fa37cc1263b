"""digit-pairs: two handwritten digits side by side; the left is the target, the right the secret."""

import numpy as np
import torch
from numpy.typing import NDArray

from splitveil.data.dataset import Dataset, Part
from splitveil.data.source import Source
from splitveil.data.splitting import PART_NAMES, assign, content_hashes, group_ids

SIZES = (8_000, 1_000, 1_000)
_DIGITS = tuple("0123456789")

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]


def load(_source: Source) -> Dataset:
    """10,000 pairs, 1×16×32, made from scikit-learn's 1,797 digits of 8×8; no download, always the same.

    Both digits are drawn independently and uniformly over the ten classes, so a message that tells nothing
    about the right digit leaves an attacker at 10 %. No source digit is used in two parts.
    """
    images, labels = _source_digits()
    content = content_hashes(torch.from_numpy(images))
    home = assign(content, group_ids(content), labels, (0.70, 0.15, 0.15))
    # The legacy generator, because NumPy promises that its stream never changes.
    random = np.random.RandomState(2022)
    train, val, test = (
        _pairs(images[home == part], labels[home == part], SIZES[part], random) for part in range(len(PART_NAMES))
    )
    return Dataset("digit-pairs", train, val, test, _DIGITS, {"digit": _DIGITS})


def _source_digits() -> tuple[Pixels, Ints]:
    """Images (1797, 16, 16) and labels (1797,)."""
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    digits = load_digits()
    widen = _interpolation(8)
    images = widen @ (digits.images * (255 / 16)) @ widen.T
    return np.rint(images).astype(np.uint8), digits.target.astype(np.int64)


def _interpolation(size: int) -> NDArray[np.float64]:
    """Matrix (2·size, size) that doubles a signal's length by linear interpolation, edges repeated."""
    place = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
    weights: NDArray[np.float64] = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(size)))
    return weights


def _pairs(images: Pixels, labels: Ints, count: int, random: np.random.RandomState) -> Part:
    left, right = (random.randint(0, 10, count) for _ in range(2))
    chosen = [_draw(labels, digits, random) for digits in (left, right)]
    pixels = np.concatenate([images[rows] for rows in chosen], axis=2)[:, None]
    return Part(torch.from_numpy(pixels), _tensor(left), {"digit": _tensor(right)})


def _draw(labels: Ints, digits: Ints, random: np.random.RandomState) -> Ints:
    """For each wanted digit a random row that shows it."""
    by_digit = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=10)
    first = np.cumsum(counts) - counts
    within = (random.random_sample(len(digits)) * counts[digits]).astype(np.int64)
    rows: Ints = by_digit[first[digits] + within]
    return rows


def _tensor(digits: Ints) -> torch.Tensor:
    return torch.from_numpy(digits.astype(np.int64))
