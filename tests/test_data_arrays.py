"""Data sets from arrays: checks, splits fixed by content, digest."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitveil.data import Dataset, Part
from splitveil.errors import DataError

CLASSES = ("cat", "dog")


def arrays(n=60, seed=0):
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, (n, 3, 4, 5), dtype=np.uint8)
    return x, np.arange(n) % 2, {"place": np.arange(n) % 3}


def dataset(**options):
    x, y, hidden = arrays()
    return Dataset.from_arrays(x, y, hidden, **{"classes": CLASSES, **options})


def contents(part):
    return {hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in part.pixels}


def test_parts_hold_every_image_once_with_its_labels():
    x, y, hidden = arrays()
    data = Dataset.from_arrays(x, y, hidden, classes=CLASSES)
    wanted = {x[i].tobytes(): (y[i], hidden["place"][i]) for i in range(len(x))}
    found = {
        image.numpy().tobytes(): (int(label), int(place))
        for part in data.parts.values()
        for image, label, place in zip(part.pixels, part.y, part.hidden["place"], strict=True)
    }
    assert found == wanted
    assert [len(part) for part in data.parts.values()] == [42, 9, 9]
    assert (data.n_classes, data.input_shape, data.hidden_classes) == (2, (3, 4, 5), {"place": ("0", "1", "2")})


def test_x_is_the_pixels_over_255_and_a_batch_is_its_rows():
    part = dataset().train
    assert part.x.dtype == torch.float32
    torch.testing.assert_close(part.x, part.pixels.double().div(255).float(), rtol=0, atol=1e-7)
    torch.testing.assert_close(part.images([5, 0]), part.x[[5, 0]], rtol=0, atol=0)
    torch.testing.assert_close(part.images(slice(2, 4)), part.x[2:4], rtol=0, atol=0)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), n=st.integers(50, 80))
def test_the_order_of_the_rows_does_not_matter(seed, n):
    x, y, hidden = arrays(n, seed)
    x[5], y[5] = x[7], 1 - y[7]  # one picture with two labels
    groups = np.arange(n) // 3
    order = np.random.default_rng(seed).permutation(n)
    one = Dataset.from_arrays(x, y, hidden, groups=groups, near_duplicates=0.94)
    place = hidden["place"][order]
    other = Dataset.from_arrays(x[order], y[order], {"place": place}, groups=groups[order], near_duplicates=0.94)
    assert one.digest == other.digest
    assert all(torch.equal(one.parts[name].pixels, other.parts[name].pixels) for name in one.parts)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 5))
def test_groups_and_exact_duplicates_never_straddle(seed, size):
    x, y, _ = arrays(60, seed)
    x[10] = x[30]
    groups = np.arange(60) // size
    data = Dataset.from_arrays(x, y, {"group": groups}, groups=groups)
    seen = [set(part.hidden["group"].tolist()) for part in data.parts.values()]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    assert sum(contents(part) >= contents_of(x[10]) for part in data.parts.values()) == 1


def contents_of(image):
    return {hashlib.sha256(image.tobytes()).hexdigest()}


def test_every_class_gets_its_share_of_each_part():
    x, _, _ = arrays(200)
    y = np.repeat([0, 1], [160, 40])
    data = Dataset.from_arrays(x, y)
    assert [part.y.bincount().tolist() for part in data.parts.values()] == [[112, 28], [24, 6], [24, 6]]


def test_stratify_by_a_hidden_attribute_puts_each_value_into_every_part():
    x, y, _ = arrays(200)
    data = Dataset.from_arrays(x, y, {"who": np.arange(200) % 20}, stratify="who")
    for part in data.parts.values():
        assert part.hidden["who"].unique().tolist() == list(range(20))
    with pytest.raises(DataError, match="not a hidden attribute"):
        Dataset.from_arrays(x, y, stratify="who")


def test_floats_are_rounded_to_the_nearest_of_256_levels():
    x = np.zeros((20, 4, 4), np.float32)
    x[:, 0, 0], x[:, 0, 1], x[:, 0, 2] = np.arange(20) / 20, 1.0, 0.6 / 255
    data = Dataset.from_arrays(x, np.arange(20) % 2)
    assert data.input_shape == (1, 4, 4)
    assert data.train.pixels[:, 0, 0, 1].unique().tolist() == [255]
    assert data.train.pixels[:, 0, 0, 2].unique().tolist() == [1]
    levels = torch.cat([part.x[:, 0, 0, 0] for part in data.parts.values()]).sort().values
    assert (levels - torch.arange(20) / 20).abs().max() <= 1 / 510 + 1e-7


def test_torch_tensors_and_booleans_are_taken_too():
    x, y, hidden = arrays()
    tensors = Dataset.from_arrays(torch.from_numpy(x), torch.from_numpy(y == 1), hidden, classes=CLASSES)
    assert tensors.digest == dataset().digest


def test_named_rows_make_the_parts_in_the_given_order():
    x, y, hidden = arrays()
    split = {"train": range(10, 50), "val": [3, 1, 2], "test": [9, 8]}
    data = Dataset.from_arrays(x, y, hidden, split=split)
    assert torch.equal(data.val.pixels, torch.from_numpy(x[[3, 1, 2]]))
    assert data.test.y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": np.zeros((60, 3, 4, 5)) + 1.01}, "outside"),
        ({"x": np.zeros((60, 3, 4, 5)) - 0.01}, "outside"),
        ({"x": np.full((60, 3, 4, 5), np.nan)}, "outside"),
        ({"x": np.zeros((60, 3, 4, 5), np.int32)}, "dtype int32"),
        ({"x": np.zeros((60, 3), np.uint8)}, "shape"),
        ({"x": np.zeros((0, 3, 4, 5), np.uint8)}, "empty"),
        ({"y": np.zeros(60, int)}, "two classes"),
        ({"y": np.arange(59) % 2}, "shape"),
        ({"y": np.arange(60) % 2 - 1}, "-1"),
        ({"y": np.arange(60) % 2 * 1.0}, "integers"),
        ({"y": np.arange(60) % 2 * 2}, "no image of class 1"),
        ({"classes": ["only"]}, "only 1 classes are named"),
        ({"classes": ["same", "same"]}, "not distinct"),
        ({"hidden": {"place": np.arange(59)}}, "place has shape"),
        ({"hidden": {"place": -np.arange(60)}}, "place holds -59"),
        ({"hidden_classes": {"plaice": ["a"]}}, "plaice"),
        ({"groups": np.arange(5)}, "groups has shape"),
        ({"split": (0.5, 0.5, 0.5)}, "add up to 1"),
        ({"split": (1.0, 0.0, 0.0)}, "add up to 1"),
        ({"split": {"train": [0], "val": [1]}}, "exactly train, val and test"),
        ({"split": {"train": [0], "val": [1], "test": [1]}}, "twice"),
        ({"split": {"train": [0], "val": [1], "test": [60]}}, "row 60"),
        ({"split": {"train": [0], "val": [1], "test": []}}, "integers"),
        ({"split": {"train": [0], "val": [1], "test": [2]}, "groups": [4] * 60}, "group 4 lies in train and in val"),
        ({"near_duplicates": 1.0}, "correlation"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    x, y, hidden = arrays()
    with pytest.raises(DataError, match=message):
        Dataset.from_arrays(**{"x": x, "y": y, "hidden": hidden, **changed})


def test_too_few_images_are_refused():
    x, y, _ = arrays(4)
    with pytest.raises(DataError, match="part of arrays is empty"):
        Dataset.from_arrays(x[:3], y[:3])


def test_a_part_that_does_not_fit_the_names_is_refused():
    data = dataset()
    with pytest.raises(DataError, match=r"outside 0\.\.0"):
        Dataset("odd", data.train, data.val, data.test, ("cat",), data.hidden_classes)
    with pytest.raises(DataError, match="hidden attributes"):
        Dataset("odd", data.train, data.val, data.test, CLASSES)
    narrow = Part(data.val.pixels[..., 1:], data.val.y, data.val.hidden)
    with pytest.raises(DataError, match="one size"):
        Dataset("odd", data.train, narrow, data.test, CLASSES, data.hidden_classes)


def test_without_hidden_keeps_all_else():
    data = dataset()
    plain = data.without_hidden()
    assert plain.hidden_classes == {}
    assert all(part.hidden == {} for part in plain.parts.values())
    assert torch.equal(plain.test.pixels, data.test.pixels)
    assert torch.equal(plain.test.y, data.test.y)
    assert data.hidden_classes
    assert plain.digest != data.digest


def rebuilt(data, **changed):
    fields = {name: getattr(data, name) for name in ("name", "train", "val", "test", "classes", "hidden_classes")}
    return Dataset(**{**fields, **changed})


def test_the_digest_does_not_know_the_name():
    assert dataset(name="one").digest == dataset(name="two").digest
    assert len(dataset().digest) == 64


@pytest.mark.parametrize("field", ["pixels", "y", "hidden"])
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_the_digest_changes_with_any_value(part, field):
    data = dataset()
    old = data.parts[part]
    pixels, y, place = old.pixels.clone(), old.y.clone(), old.hidden["place"].clone()
    changing = {"pixels": pixels.view(-1), "y": y, "hidden": place}[field]
    changing[-1] = 1 - changing[-1].clamp(0, 1)
    changed = rebuilt(data, **{part: Part(pixels, y, {"place": place})})
    assert changed.digest != data.digest


def test_the_digest_changes_with_the_split_and_the_names():
    data = dataset()
    swapped = rebuilt(data, val=data.test, test=data.val)
    renamed = rebuilt(data, classes=("cat", "cow"))
    moved = rebuilt(data, hidden_classes={"place": ("a", "b", "c")})
    merged = rebuilt(data, val=Part(*joined(data.val, data.test)), test=data.test)
    assert len({each.digest for each in (data, swapped, renamed, moved, merged)}) == 5


def joined(one, other):
    place = torch.cat([one.hidden["place"], other.hidden["place"]])
    return torch.cat([one.pixels, other.pixels]), torch.cat([one.y, other.y]), {"place": place}


def test_channels_last_arrays_are_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"transpose\(0, 3, 1, 2\)"):
        Dataset.from_arrays(np.zeros((10, 8, 8, 3), np.uint8), np.arange(10) % 2)


def test_hidden_labels_need_a_name():
    with pytest.raises(DataError, match="mapping from names"):
        Dataset.from_arrays(np.zeros((10, 1, 8, 8), np.uint8), np.arange(10) % 2, hidden=np.arange(10))


def test_a_data_set_shows_neither_pixels_nor_secrets():
    x = np.random.default_rng(0).integers(0, 255, (40, 1, 8, 8)).astype(np.uint8)
    data = Dataset.from_arrays(x, np.arange(40) % 2, {"age": np.arange(40) % 7}, name="shown")
    assert "shown" in repr(data)
    assert "tensor" not in repr(data) + repr(data.train)
    assert "age" not in repr(data)
