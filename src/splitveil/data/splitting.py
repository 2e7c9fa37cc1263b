"""Which part an image goes to, decided by content: groups stay whole, strata get their share."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from splitveil.errors import DataError

PART_NAMES = ("train", "val", "test")
_TRAIN, _VAL, _TEST = range(3)

Ints = NDArray[np.int64]
Hashes = NDArray[np.bytes_]


def content_hashes(pixels: Tensor) -> Hashes:
    """SHA-256 of each image's bytes as 64 hex digits, (N,), for uint8 pixels (N, C, H, W)."""
    rows = pixels.contiguous().numpy().reshape(len(pixels), -1)
    return np.array([hashlib.sha256(row.data).hexdigest() for row in rows], dtype="S64")


def group_ids(values: NDArray[Any]) -> Ints:
    """Number of each sample's group, 0..G-1, (N,): equal values are one group."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def merge_groups(groups: Ints, others: Ints) -> Ints:
    """The finest grouping in which samples that share a group in either grouping share one."""
    first = np.unique(others, return_index=True)[1]
    return merge_pairs(groups, np.arange(len(groups)), first[group_ids(others)])


def merge_pairs(groups: Ints, left: Ints, right: Ints) -> Ints:
    """Groups after joining those of the samples left[i] and right[i], for every i."""
    count = int(groups.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(left), np.int8), (groups[left], groups[right])), shape=(count, count))
    joined: Ints = connected_components(edges, directed=False)[1].astype(np.int64)
    return joined[groups]


def assign(content: Hashes, groups: Ints, strata: Ints, fractions: Sequence[float]) -> Ints:
    """Part of each sample (0 train, 1 val, 2 test), (N,): whole groups, in the order of their smallest hash.

    Each stratum has places for its share of test and of validation; a group goes to the first of test and
    validation with room for all of it, else to training. So a part is never larger than asked for, sizes are
    exact where groups are single images, and one more image moves few others. A group that spans strata
    counts for the one that most of its members are in.

    Raises:
        DataError: if the fractions are not three positive numbers that add up to one.
    """
    _check_fractions(fractions)
    stratum = _main_stratum(groups, strata)
    counts = np.bincount(stratum[groups])
    n_test, n_val = (round(fractions[part] * len(groups)) for part in (_TEST, _VAL))
    test = apportion(n_test, counts, np.maximum(counts - 2, 0))
    val = apportion(n_val, counts, np.maximum(counts - 1 - test, 0))
    part = _fill(_by_hash(content, groups), np.bincount(groups), stratum, test, val)
    return part[groups]


def apportion(total: int, counts: Ints, capacity: Ints) -> Ints:
    """Integer shares of `total`, (S,), in proportion to `counts` by largest remainder, within capacity."""
    exact = total * counts / max(counts.sum(), 1)
    shares: Ints = np.minimum(np.floor(exact).astype(np.int64), capacity)
    by_remainder = np.argsort(shares - exact, kind="stable")
    room = by_remainder[shares[by_remainder] < capacity[by_remainder]]
    shares[room[: max(total - int(shares.sum()), 0)]] += 1
    return shares


def _check_fractions(fractions: Sequence[float]) -> None:
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"split={tuple(fractions)} must be three positive fractions (train, val, test) that add up to 1"
        )


def _main_stratum(groups: Ints, strata: Ints) -> Ints:
    """For each group the stratum of most of its members, the lowest of those that tie, (G,)."""
    pairs, counts = np.unique(np.stack([groups, strata]), axis=1, return_counts=True)
    group, stratum = pairs
    order = np.lexsort([stratum, -counts, group])
    main: Ints = stratum[order][np.unique(group[order], return_index=True)[1]]
    return main


def _by_hash(content: Hashes, groups: Ints) -> Ints:
    """Groups ordered by the smallest content hash among their members, (G,)."""
    order = np.argsort(content, kind="stable")
    ids, first = np.unique(groups[order], return_index=True)
    by_hash: Ints = ids[np.argsort(first)]
    return by_hash


def _fill(order: Ints, sizes: Ints, stratum: Ints, test: Ints, val: Ints) -> Ints:
    """Part of each group, (G,): fill the places of test, then of validation; the rest trains."""
    part = np.full(len(order), _TRAIN, dtype=np.int64)
    for group in order:
        size, s = sizes[group], stratum[group]
        for index, room in ((_TEST, test), (_VAL, val)):
            if size <= room[s]:
                part[group], room[s] = index, room[s] - size
                break
    return part
