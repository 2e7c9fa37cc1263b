"""qmnist: handwritten digits whose writers are known."""

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitveil.data.cache import cached
from splitveil.data.dataset import Dataset
from splitveil.data.source import Source
from splitveil.errors import DataError

IMAGES = "raw/train-images-idx3-ubyte"
LABELS = "raw/qmnist-train-labels-idx2-int"
_HELD_OUT_PER_WRITER = 15  # on average, for validation and again for test: the paper's 1,500 of 100 writers
_DIGIT, _WRITER = 0, 2  # columns of the extended labels
_DTYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype("u1"), 0x0C: np.dtype(">i4")}


def load(source: Source, *, writers: int = 100) -> Dataset:
    """Digits, 1×28×28, of the writers with most images; target digit, hidden `writer`.

    The paper (section 5) takes 100 writers and holds out 1,500 images for validation and 1,500 for test. Every
    writer is in every part. Copies of one image share a part.

    Args:
        source: Where MNIST's training images and QMNIST's extended labels of them are, gzipped or not.
        writers: How many writers, those with most images first, ties by writer number.

    Raises:
        DataError: if a file is missing or damaged, or there are not so many writers.
    """
    expected = [f"{name}.gz|{name}" for name in (IMAGES, LABELS)]
    folder = source.folder(*expected, home="get them from the QMNIST project of Yadav and Bottou")
    images, labels = (_present(folder, name) for name in (IMAGES, LABELS))
    files = [str(path.relative_to(folder)) for path in (images, labels)]
    return cached(source, folder, files, {"writers": writers}, lambda: _build(source, images, labels, writers))


def _present(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.exists() else folder / name


def _build(source: Source, image_file: Path, label_file: Path, writers: int) -> Dataset:
    images, table = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or table.ndim != 2 or len(images) != len(table) or table.shape[1] <= _WRITER:
        raise DataError(f"{image_file} {images.shape} and {label_file} {table.shape} do not belong together")
    chosen = _busiest(table[:, _WRITER], writers)
    rows = np.flatnonzero(np.isin(table[:, _WRITER], chosen))
    held_out = _HELD_OUT_PER_WRITER * writers / len(rows)
    return Dataset.from_arrays(
        images[rows],
        table[rows, _DIGIT],
        {"writer": np.searchsorted(chosen, table[rows, _WRITER])},
        classes=tuple("0123456789"),
        hidden_classes={"writer": [str(writer) for writer in chosen]},
        name=source.name,
        split=(1 - 2 * held_out, held_out, held_out),
        stratify="writer",
    )


def _busiest(writer: NDArray[Any], count: int) -> NDArray[Any]:
    """The writers with most images, ascending."""
    ids, images = np.unique(writer, return_counts=True)
    if not isinstance(count, int) or not 2 <= count <= len(ids):
        raise DataError(f"writers={count!r} must be a whole number from 2 to {len(ids)}, as many as there are")
    busiest: NDArray[Any] = np.sort(ids[np.argsort(-images, kind="stable")][:count])
    return busiest


def read_idx(path: Path) -> NDArray[Any]:
    """The array in an idx file, gzipped or not: two zero bytes, type, axes, sizes, values; big-endian.

    Raises:
        DataError: if it is no such file, or is cut short.
    """
    try:
        content = path.read_bytes()
        data = gzip.decompress(content) if path.suffix == ".gz" else content
        zero, kind, axes = struct.unpack_from(">HBB", data)
        if zero or kind not in _DTYPES:
            raise ValueError("it does not begin as one")
        shape = struct.unpack_from(f">{axes}I", data, 4)
        values: NDArray[Any] = np.frombuffer(data, _DTYPES[kind], offset=4 + 4 * axes)
        return values.reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path} is not a complete idx file ({error}); get it again") from error
