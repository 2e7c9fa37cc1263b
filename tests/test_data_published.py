"""qmnist, utkface, celeba: small folders in the published layouts."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from splitveil.data import load_data, qmnist
from splitveil.data.celeba import face_box
from splitveil.errors import DataError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITVEIL_CACHE", str(tmp_path / "cache"))


def picture(seed, size=(40, 40)):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def all_of(data, get):
    return torch.cat([get(part) for part in data.parts.values()])


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("qmnist", "train-images-idx3-ubyte.gz or raw/train-images-idx3-ubyte"),
        ("utkface", "the folder"),
        ("celeba", "img_align_celeba"),
        ("pins", "actors"),
        ("facescrub", "actors"),
    ],
)
def test_a_missing_folder_says_where_what_and_how(name, missing, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=f"{missing} was not found in {tmp_path / name}: .* get ") as error:
        load_data(name, root=tmp_path)
    assert "\n" not in str(error.value)
    monkeypatch.setenv("SPLITVEIL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"not found in {tmp_path / name}"):
        load_data(name)
    monkeypatch.delenv("SPLITVEIL_DATA")
    with pytest.raises(DataError, match=r"set SPLITVEIL_DATA, or pass root= \(--data-root\)"):
        load_data(name)


# qmnist


def write_idx(path, array, kind):
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    content = head + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_qmnist(root, suffix=".gz"):
    """Writers 7, 3, 9 with 130 images each, writer 5 with 129 and writer 4 with 131."""
    writer = np.random.default_rng(0).permutation(np.repeat([7, 3, 9, 5, 4], [130, 130, 130, 129, 131]))
    images = np.random.default_rng(1).integers(0, 256, (650, 28, 28), dtype=np.uint8)
    labels = np.zeros((650, 8), np.int32)
    labels[:, 0], labels[:, 2] = np.arange(650) % 10, writer
    write_idx(root / f"qmnist/raw/train-images-idx3-ubyte{suffix}", images, 0x08)
    write_idx(root / f"qmnist/raw/qmnist-train-labels-idx2-int{suffix}", labels, 0x0C)
    return images, labels


def test_qmnist_takes_the_busiest_writers_and_holds_out_fifteen_each(tmp_path):
    images, labels = write_qmnist(tmp_path)
    data = load_data("qmnist", root=tmp_path, writers=3)
    assert data.hidden_classes == {"writer": ("3", "4", "7")}
    assert (data.input_shape, data.n_classes) == ((1, 28, 28), 10)
    assert [len(part) for part in data.parts.values()] == [301, 45, 45]
    for part in (data.val, data.test):
        assert part.hidden["writer"].bincount().tolist() == [15, 15, 15]
    wanted = {image.tobytes(): (row[0], str(row[2])) for image, row in zip(images, labels, strict=True)}
    for image, digit, writer in zip(data.val.pixels, data.val.y, data.val.hidden["writer"], strict=True):
        assert wanted[image.numpy().tobytes()] == (digit, data.hidden_classes["writer"][writer])


def test_qmnist_reads_plain_files_too(tmp_path):
    write_qmnist(tmp_path / "packed")
    write_qmnist(tmp_path / "plain", suffix="")
    packed, plain = (load_data("qmnist", root=tmp_path / each, writers=4) for each in ("packed", "plain"))
    assert packed.digest == plain.digest


@pytest.mark.parametrize("writers", [1, 6, "3", 2.5])
def test_qmnist_refuses_impossible_numbers_of_writers(tmp_path, writers):
    write_qmnist(tmp_path)
    with pytest.raises(DataError, match="whole number from 2 to 5"):
        load_data("qmnist", root=tmp_path, writers=writers)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x09\1\0\0\0\0", b"\0\1\x08\1\0\0\0\0", b"\0\0\x08\1\0\0\0\5abcd"]
)
def test_what_is_no_idx_file_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match="is not a complete idx file"):
        qmnist.read_idx(tmp_path / "file")


def test_truncated_gzip_and_mismatched_labels_are_refused(tmp_path):
    write_qmnist(tmp_path)
    path = tmp_path / "qmnist/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="is not a complete idx file"):
        load_data("qmnist", root=tmp_path)
    write_idx(path, np.zeros((3, 28, 28), np.uint8), 0x08)
    with pytest.raises(DataError, match="do not belong together"):
        load_data("qmnist", root=tmp_path)


# utkface


def write_utkface(root):
    folder = root / "utkface"
    folder.mkdir()
    for seed in range(200):
        picture(seed).save(folder / f"{seed % 100 + 1}_{seed % 2}_{seed % 5}_2017{seed:04}.jpg.chip.jpg", quality=95)
    return folder


def test_utkface_reads_labels_from_the_names(tmp_path):
    folder = write_utkface(tmp_path)
    (folder / "readme.txt").write_text("not an image")
    data = load_data("utkface", root=tmp_path)
    assert (data.classes, data.input_shape) == (("male", "female"), (3, 50, 50))
    assert data.hidden_classes["race"] == ("White", "Black", "Asian", "Indian", "Others")
    assert [len(part) for part in data.parts.values()] == [140, 30, 30]
    for seed in (12, 13, 19, 39, 59, 199):
        assert labels_of(data, seed) == (seed % 2, seed % 5, np.searchsorted([12, 19, 39, 59], seed % 100 + 1))


def labels_of(data, seed):
    """Gender, race and age group of the image nearest to this picture."""
    wanted = torch.from_numpy(np.asarray(picture(seed, (50, 50))).transpose(2, 0, 1).copy()) / 255
    distance = (all_of(data, lambda part: part.x) - wanted).square().flatten(1).mean(1)
    labels = (all_of(data, lambda part, get=get: get(part)) for get in columns())
    return tuple(int(column[distance.argmin()]) for column in labels)


def columns():
    return [lambda part: part.y, lambda part: part.hidden["race"], lambda part: part.hidden["age_group"]]


def test_utkface_skips_malformed_names(tmp_path):
    folder = write_utkface(tmp_path)
    picture(300).save(folder / "61_1_20170109142408075.jpg.chip.jpg")
    picture(301).save(folder / "61_1_7_20170109.jpg.chip.jpg")
    data = load_data("utkface", root=tmp_path)
    assert [line.split(":")[0] for line in data.skipped] == [
        "61_1_20170109142408075.jpg.chip.jpg",
        "61_1_7_20170109.jpg.chip.jpg",
    ]
    assert sum(len(part) for part in data.parts.values()) == 200
    picture(302).save(folder / "20170109.jpg.chip.jpg")
    with pytest.raises(DataError, match="3 of the 203 files of utkface cannot be used"):
        load_data("utkface", root=tmp_path)


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "utkface").mkdir()
    with pytest.raises(DataError, match="utkface has no image files"):
        load_data("utkface", root=tmp_path)


# celeba

ATTRIBUTES = [
    "Smiling",
    "Young",
    "Male",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Mouth_Slightly_Open",
    "Wearing_Lipstick",
    "Attractive",
]


def write_celeba(root, size=(178, 218)):
    """100 people with two images each; attribute k of image i is bit k of i."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    rows, people = [], []
    for number in range(200):
        name = f"{number + 1:06}.jpg"
        picture(number, size).save(folder / "img_align_celeba" / name, quality=95)
        rows.append(f"{name} " + " ".join(" 1" if number >> k & 1 else "-1" for k in range(len(ATTRIBUTES))))
        people.append(f"{name} {1000 + number // 2}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(["200", " ".join(ATTRIBUTES) + " ", *rows]) + "\n")
    (folder / "identity_CelebA.txt").write_text("\n".join(people) + "\n")
    return folder


def number_of(data):
    """Which image each row is, by its attributes."""
    bits = [all_of(data, lambda part: part.y)]
    bits += [all_of(data, lambda part, name=name: part.hidden[name]) for name in ATTRIBUTES[1:]]
    return sum(bit << k for k, bit in enumerate(bits))


def test_celeba_is_cropped_labelled_and_split_by_person(tmp_path):
    write_celeba(tmp_path)
    data = load_data("celeba", root=tmp_path, hidden=ATTRIBUTES[1:])
    assert (data.classes, data.input_shape) == (("not Smiling", "Smiling"), (3, 73, 60))
    assert data.hidden_classes["Male"] == ("not Male", "Male")
    numbers = number_of(data)
    assert sorted(numbers.tolist()) == list(range(200))
    people = [set((part // 2).tolist()) for part in numbers.split([len(part) for part in data.parts.values()])]
    assert sum(len(each) for each in people) == 100
    row = int((numbers == 17).nonzero())
    face = picture(17, (178, 218)).crop((29, 48, 149, 194)).resize((60, 73), Image.Resampling.BICUBIC)
    difference = all_of(data, lambda part: part.pixels)[row].numpy().astype(int) - np.asarray(face).transpose(2, 0, 1)
    assert np.abs(difference).mean() < 3


def test_the_face_box_scales_with_the_image():
    assert face_box(178, 218) == (29, 48, 149, 194)
    assert face_box(89, 109) == (14.5, 24, 74.5, 97)


def test_celeba_options_choose_the_attributes(tmp_path):
    write_celeba(tmp_path, (45, 55))
    data = load_data("celeba", root=tmp_path)
    assert tuple(data.hidden_classes) == (*ATTRIBUTES[2:],)
    assert "Male" not in load_data("celeba", root=tmp_path, target="Male").hidden_classes
    assert tuple(load_data("celeba", root=tmp_path, hidden="Young").hidden_classes) == ("Young",)
    with pytest.raises(DataError, match="no attribute 'Grumpy'; choose among Smiling, Young"):
        load_data("celeba", root=tmp_path, target="Grumpy")
    with pytest.raises(DataError, match="name an attribute twice"):
        load_data("celeba", root=tmp_path, target="Male", hidden=["Male"])


def test_celeba_says_what_is_not_in_the_lists_or_not_on_disk(tmp_path):
    folder = write_celeba(tmp_path, (45, 55))
    picture(999, (45, 55)).save(folder / "img_align_celeba/999999.jpg")
    (folder / "img_align_celeba/000007.jpg").unlink()
    data = load_data("celeba", root=tmp_path)
    assert data.skipped == (
        "img_align_celeba/999999.jpg: not in both lists",
        "list_attr_celeba.txt: 1 rows have no image",
    )


@pytest.mark.parametrize(
    ("file", "row"), [("list_attr_celeba.txt", "000201.jpg 1 -1"), ("list_attr_celeba.txt", "000201.jpg" + " 2" * 8)]
)
def test_a_malformed_attribute_row_is_refused(tmp_path, file, row):
    folder = write_celeba(tmp_path, (45, 55))
    with (folder / file).open("a") as lines:
        lines.write(row + "\n")
    with pytest.raises(DataError, match="has a row that is not a file name and 8 times"):
        load_data("celeba", root=tmp_path)


def test_a_malformed_identity_row_is_refused(tmp_path):
    folder = write_celeba(tmp_path, (45, 55))
    with (folder / "identity_CelebA.txt").open("a") as lines:
        lines.write("000201.jpg someone\n")
    with pytest.raises(DataError, match="not a file name and a number"):
        load_data("celeba", root=tmp_path)
