"""Images with target labels, hidden attributes, fixed splits and a digest."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from splitveil.data.arrays import Labels, as_groups, as_labels, as_pixels, given_rows
from splitveil.data.duplicates import near_duplicate_groups, signatures
from splitveil.data.splitting import PART_NAMES, assign, content_hashes, group_ids, merge_groups
from splitveil.errors import DataError

Split = tuple[float, float, float] | Mapping[str, ArrayLike]
Rows = slice | Sequence[int] | NDArray[np.integer] | Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """One of the three splits: N images of C×H×W with their labels.

    Attributes:
        pixels: uint8, (N, C, H, W).
        y: Target labels, int64, (N,).
        hidden: Hidden attributes by name, each int64, (N,); empty where there are none.
    """

    pixels: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    hidden: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def x(self) -> Tensor:
        """All images as float32 in [0, 1], (N, C, H, W); made anew each time, at four times the pixels' memory."""
        return self.images(slice(None))

    def images(self, rows: Rows) -> Tensor:
        """The images at these rows (a slice, or B indices) as float32 in [0, 1], (B, C, H, W)."""
        return self.pixels[rows].to(torch.float32).div_(255)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with a target, hidden attributes (possibly none) and fixed splits.

    Attributes:
        name: What to call it in results.
        train: The part to train on; `val` to choose on, `test` to score on once.
        classes: Names of the target's classes; label k is `classes[k]`.
        hidden_classes: For each hidden attribute the names of its values.
        skipped: Files that could not be used, each as "file: reason".
        mirror: Whether an image seen in a mirror is as good as the image (faces; not digits).

    Raises:
        DataError: if the parts are empty or do not fit each other or the class names.
    """

    name: str
    train: Part = field(repr=False)
    val: Part = field(repr=False)
    test: Part = field(repr=False)
    classes: tuple[str, ...]
    hidden_classes: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    skipped: tuple[str, ...] = field(default=(), repr=False)
    mirror: bool = False

    def __post_init__(self) -> None:
        for part_name, part in self.parts.items():
            _check_part(self, part_name, part)

    @property
    def parts(self) -> dict[str, Part]:
        """The three parts by name: train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width

    @property
    def n_classes(self) -> int:
        """Number of target classes."""
        return len(self.classes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of pixels, labels, hidden attributes, class names and split membership.

        Independent of the name and of where the data came from; two data sets with the same digest are the
        same data in the same order.
        """
        names = {"classes": self.classes, "hidden": self.hidden_classes, "shape": self.input_shape}
        state = hashlib.sha256(json.dumps(names, sort_keys=True).encode())
        for name, part in self.parts.items():
            state.update(f"{name} {len(part)}".encode())
            state.update(np.ascontiguousarray(part.pixels.cpu().numpy()).data)
            for labels in (part.y, *(part.hidden[key] for key in sorted(part.hidden))):
                state.update(np.ascontiguousarray(labels.cpu().numpy(), dtype="<i8").data)
        return state.hexdigest()

    def without_hidden(self) -> "Dataset":
        """The same data without hidden attributes (shares the pixels' memory; the digest is another)."""
        train, val, test = (replace(part, hidden={}) for part in self.parts.values())
        return replace(self, train=train, val=val, test=test, hidden_classes={})

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike,
        y: ArrayLike,
        hidden: Mapping[str, ArrayLike] | None = None,
        *,
        classes: Sequence[str] | None = None,
        hidden_classes: Mapping[str, Sequence[str]] | None = None,
        name: str = "arrays",
        groups: ArrayLike | None = None,
        split: Split = (0.70, 0.15, 0.15),
        stratify: str | None = None,
        near_duplicates: float | None = None,
        skipped: Sequence[str] = (),
        mirror: bool = False,
    ) -> "Dataset":
        """A data set from a user's own arrays (NumPy or torch), split by content unless the parts are given.

        Which part an image goes to depends on the images' content and groups alone, not on the order of the
        rows; within a part the rows are sorted by content. Exact duplicates and members of one group
        never straddle parts. Where `split` names the rows of each part, parts keep the given order.

        Args:
            x: (N, C, H, W) or (N, H, W); uint8, or float in [0, 1], which is stored as uint8
                (x·255 rounded to the nearest integer, so an image moves by at most 1/510 per pixel).
            y: Target labels, integers 0..K-1, (N,), at least two classes of them present.
            hidden: Hidden attributes, integers ≥ 0, (N,) each.
            classes: K names; the numbers themselves where none are given (then every class must be present).
            hidden_classes: Names of the values of (some of) the hidden attributes.
            name: What to call it.
            groups: One integer per image; a group never straddles parts (a person, a series of photographs).
            split: Fractions of train, val and test, or the rows of each: {"train": …, "val": …, "test": …}.
            stratify: Each part gets its share of each target class, or of each value of this hidden attribute.
            near_duplicates: Also keep images together whose correlation is above this; 0.94 suits photographs.
            skipped: What was left out on the way here, as "file: reason".
            mirror: Whether training may use mirror images too.

        Raises:
            DataError: if the arrays do not fit each other, hold impossible values, or are too few to split.
        """
        pixels = as_pixels(x)
        labels, class_names = as_labels("y", y, len(pixels), classes)
        if len(np.unique(labels)) < 2:
            raise DataError(
                "y holds fewer than two classes, so there is nothing to predict; give labels of two or more"
            )
        if hidden is not None and not isinstance(hidden, Mapping):
            raise DataError("hidden must be a mapping from names to labels, such as {'race': labels}")
        table, value_names = _hidden_table(hidden or {}, hidden_classes or {}, len(pixels))
        if isinstance(split, Mapping):
            rows = given_rows(split, len(pixels), groups)
        else:
            strata = labels if stratify is None else _column(table, stratify)
            rows = _rows_by_content(
                pixels,
                [*(table[key] for key in sorted(table)), labels],
                strata,
                groups,
                split,
                near_duplicates,
            )
        train, val, test = (_take(pixels, labels, table, rows[part]) for part in PART_NAMES)
        return cls(name, train, val, test, class_names, value_names, tuple(skipped), mirror)


def _hidden_table(
    hidden: Mapping[str, ArrayLike], names: Mapping[str, Sequence[str]], count: int
) -> tuple[dict[str, Labels], dict[str, tuple[str, ...]]]:
    """Checked hidden attributes, and the names of their values."""
    if unknown := sorted(names.keys() - hidden.keys()):
        raise DataError(
            f"hidden_classes names {unknown[0]!r}, which is not among the hidden attributes {sorted(hidden)}"
        )
    checked = {key: as_labels(key, values, count, names.get(key), gaps=True) for key, values in hidden.items()}
    return {key: pair[0] for key, pair in checked.items()}, {key: pair[1] for key, pair in checked.items()}


def _column(table: dict[str, Labels], stratify: str) -> Labels:
    if stratify not in table:
        raise DataError(f"stratify={stratify!r} is not a hidden attribute; choose one of {sorted(table)} or None")
    return table[stratify]


def _rows_by_content(
    pixels: Tensor,
    labels: list[Labels],
    strata: Labels,
    groups: ArrayLike | None,
    fractions: Sequence[float],
    near_duplicates: float | None,
) -> dict[str, Labels]:
    """Rows of each part, sorted by content; all is computed in that order, so the given one cannot matter."""
    content = content_hashes(pixels)
    order = np.lexsort([*labels, content])
    group = group_ids(content[order])
    if groups is not None:
        group = merge_groups(group, group_ids(as_groups(groups, len(pixels))[order]))
    if near_duplicates is not None:
        group = merge_groups(group, near_duplicate_groups(signatures(pixels)[order], near_duplicates))
    part = assign(content[order], group, strata[order], fractions)
    return {name: order[part == index] for index, name in enumerate(PART_NAMES)}


def _take(pixels: Tensor, labels: Labels, table: dict[str, Labels], rows: Labels) -> Part:
    index = torch.from_numpy(rows)
    hidden = {key: torch.from_numpy(values)[index] for key, values in table.items()}
    return Part(pixels[index], torch.from_numpy(labels)[index], hidden)


def _check_part(data: Dataset, name: str, part: Part) -> None:
    """A part must be non-empty and fit the data set's class names and image shape."""
    if not len(part):
        raise DataError(
            f"the {name} part of {data.name} is empty; give more images, smaller groups, or other fractions"
        )
    if (
        part.pixels.dtype != torch.uint8
        or part.pixels.ndim != 4
        or part.pixels.shape[1:] != data.train.pixels.shape[1:]
    ):
        raise DataError(f"the {name} pixels of {data.name} must be uint8 images N×C×H×W of one size for all parts")
    if part.hidden.keys() != data.hidden_classes.keys():
        raise DataError(f"the {name} part of {data.name} must have the hidden attributes {sorted(data.hidden_classes)}")
    _check_column(f"{name} y", part.y, len(part), len(data.classes))
    for key, values in part.hidden.items():
        _check_column(f"{name} {key}", values, len(part), len(data.hidden_classes[key]))


def _check_column(what: str, values: Tensor, count: int, n_classes: int) -> None:
    if values.dtype != torch.int64 or values.shape != (count,):
        raise DataError(f"{what} must be {count} int64 labels, one an image, not {tuple(values.shape)} {values.dtype}")
    if values.min() < 0 or values.max() >= n_classes:
        raise DataError(f"{what} holds a label outside 0..{n_classes - 1}, which is all that has a name")
