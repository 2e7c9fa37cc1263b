"""Near duplicates among photographs: re-saved, rescaled or slightly recropped copies of one picture."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from splitveil.data.splitting import Ints, merge_pairs
from splitveil.errors import DataError

# Measured on aligned faces: below it, pairs of different pictures outnumber copies of one picture.
THRESHOLD = 0.94
# Among photographs of one person copies outnumber chance down to here.
PERSON_THRESHOLD = 0.90
_SIDE = 16
_ROWS, _COLUMNS = 2048, 16384  # one block of correlations takes 128 MiB, whatever the number of images


def signatures(pixels: Tensor) -> Tensor:
    """Unit vectors, (N, 256), whose products are correlations of 16×16 grey thumbnails less their mean.

    Less the mean, because all aligned faces correlate strongly. Brightness and contrast do not count, so images
    of one colour are all alike.

    Args:
        pixels: uint8, (N, C, H, W).
    """
    thumbnails = torch.cat([_thumbnails(chunk) for chunk in torch.split(pixels, 4096)])
    units = _normalised(thumbnails - thumbnails.mean(1, keepdim=True))
    # In double precision, so that the order of the images does not show in the result.
    return _normalised(units - units.mean(0, dtype=torch.float64).to(units.dtype))


def near_duplicate_groups(signs: Tensor, threshold: float = THRESHOLD) -> Ints:
    """Group number of each image, (N,): images joined by a chain of near duplicates share one.

    Time grows with N², memory with N.

    Args:
        signs: Signatures, (N, 256).
        threshold: Correlation, above 0 and below 1, above which two images are near duplicates.

    Raises:
        DataError: if the threshold is not such a correlation.
    """
    if not 0 < threshold < 1:
        raise DataError(f"near_duplicates={threshold} must be a correlation above 0 and below 1, such as {THRESHOLD}")
    groups = np.arange(len(signs), dtype=np.int64)
    for top in range(0, len(signs), _ROWS):
        for left in range(top, len(signs), _COLUMNS):
            block = signs[top : top + _ROWS] @ signs[left : left + _COLUMNS].T
            rows, columns = torch.nonzero(block > threshold, as_tuple=True)
            groups = merge_pairs(groups, rows.numpy() + top, columns.numpy() + left)
    return groups


def same_person_groups(signs: Tensor, people: Ints, threshold: float = PERSON_THRESHOLD) -> Ints:
    """Group number of each image, (N,), where only images of one person are compared, so fewer copies escape.

    Args:
        signs: Signatures, (N, 256).
        people: Who is on each image, (N,).
        threshold: Correlation above which two images of one person are near duplicates.
    """
    pairs = [np.zeros((2, 0), np.int64)]
    for person in np.unique(people):
        rows = np.flatnonzero(people == person)
        mine = signs[torch.from_numpy(rows)]
        pairs.append(rows[torch.nonzero(mine @ mine.T > threshold).T.numpy()])
    left, right = np.concatenate(pairs, axis=1)
    return merge_pairs(np.arange(len(signs), dtype=np.int64), left, right)


def _thumbnails(pixels: Tensor) -> Tensor:
    grey = pixels.to(torch.float32).mean(1, keepdim=True)
    return functional.adaptive_avg_pool2d(grey, _SIDE).flatten(1)


def _normalised(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors, dim=1, eps=1e-3)
