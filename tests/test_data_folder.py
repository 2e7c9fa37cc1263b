"""folder:PATH: a user's own images; and what all loaders of picture files share: skipping, caching."""

import json
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from splitveil.data import DataWarning, cache, images, load_data
from splitveil.errors import DataError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPLITVEIL_CACHE", str(folder))
    return folder


def picture(seed, size=(40, 30)):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def pets(tmp_path):
    """110 photographs of two classes."""
    folder = tmp_path / "pets"
    for seed in range(110):
        path = folder / ("dog" if seed % 2 else "cat") / f"{seed:03}.{'png' if seed % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path)
    return folder


def load(folder, **options):
    return load_data(f"folder:{folder}", **options)


def all_of(data, get):
    return torch.cat([get(part) for part in data.parts.values()])


def test_classes_are_the_folders_and_sizes_as_asked(pets):
    data = load(pets, size=(20, 24))
    assert (data.classes, data.input_shape, data.skipped) == (("cat", "dog"), (3, 20, 24), ())
    assert [len(part) for part in data.parts.values()] == [78, 16, 16]
    assert load(pets).input_shape == (3, 64, 64)


def test_pixels_are_those_of_the_resized_picture(pets):
    data = load(pets, size=(20, 24))
    wanted = np.asarray(Image.open(pets / "cat/002.png").resize((24, 20), Image.Resampling.BICUBIC))
    same = (all_of(data, lambda part: part.pixels) == torch.from_numpy(wanted.transpose(2, 0, 1).copy())).flatten(1)
    row = same.all(1).nonzero().squeeze(1)
    assert all_of(data, lambda part: part.y)[row].tolist() == [0]


def test_exif_orientation_is_applied(pets):
    wide = Image.fromarray(np.repeat([[[255, 0, 0], [0, 0, 255]]], 10, axis=0).repeat(10, axis=1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, so blue is left
    wide.save(pets / "cat" / "turned.png", exif=exif)
    read = images.read_picture(pets, images.Picture("cat/turned.png"), (10, 20))
    assert read[:, 5, 2].tolist() == [0, 0, 255]
    assert read[:, 5, 17].tolist() == [255, 0, 0]


def test_file_names_and_order_do_not_matter(pets, tmp_path):
    other = tmp_path / "renamed"
    for path in pets.rglob("*.*"):
        target = other / path.parent.name / f"{99999 - int(path.stem)}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert load(other).digest == load(pets).digest


def test_a_resaved_copy_stays_with_its_original(pets):
    for seed in range(40):
        picture(seed).save(pets / "cat" / f"copy{seed}.jpg", quality=30)
    data = load(pets, size=(30, 40))
    nearest = [closest(image, data) for image in (np.asarray(picture(seed)).transpose(2, 0, 1) for seed in range(40))]
    assert all(len(set(parts)) == 1 for parts in nearest)


def closest(image, data):
    """The parts that hold the two images nearest to this one."""
    pixels, parts = all_of(data, lambda part: part.x), np.repeat([0, 1, 2], [len(part) for part in data.parts.values()])
    distance = (pixels - torch.from_numpy(image.copy()) / 255).square().flatten(1).mean(1)
    return parts[distance.argsort()[:2].numpy()].tolist()


def test_hidden_attributes_come_from_the_csv(pets, tmp_path):
    table = write_csv(tmp_path, pets, lambda path: "in" if int(path.stem) < 60 else "out")
    data = load(pets, hidden_csv=table)
    assert data.hidden_classes == {"place": ("in", "out")}
    assert sum(int((part.hidden["place"] == 0).sum()) for part in data.parts.values()) == 60
    assert data.without_hidden().digest == load(pets).digest


def write_csv(tmp_path, folder, value, header="file,place"):
    path = tmp_path / "hidden.csv"
    rows = [f"{each.parent.name}/{each.name},{value(each)}" for each in sorted(folder.rglob("*.*"))]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_the_csv_must_fit(pets, tmp_path):
    table = write_csv(tmp_path, pets, lambda _: "in")
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=re.escape(f"{lines[-1].split(',')[0]} has no row")):
        load(pets, hidden_csv=table)
    table.write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(DataError, match="two rows"):
        load(pets, hidden_csv=table)
    table.write_text("\n".join([*lines[:-1], lines[-1].split(",")[0]]))
    with pytest.raises(DataError, match="incomplete row"):
        load(pets, hidden_csv=table)


@pytest.mark.parametrize("size", [(0, 5), (5,), 5, (5.0, 5)])
def test_an_impossible_size_is_refused(pets, size):
    with pytest.raises(DataError, match="two positive whole numbers"):
        load(pets, size=size)


def test_a_folder_that_is_no_class_folder_is_refused(pets, tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        load(tmp_path / "absent")
    with pytest.raises(DataError, match="images for 0 classes"):
        load(empty(tmp_path))
    picture(0).save(pets / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png .* is not directly in a class folder"):
        load(pets)


def empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_one_corrupt_image_is_skipped_and_named(pets):
    whole = (pets / "cat/000.jpg").read_bytes()
    (pets / "cat/000.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(DataWarning, match=r"left out 1: .* \(cat/000\.jpg\)"):
        data = load(pets)
    assert len(data.skipped) == 1
    assert data.skipped[0].startswith("cat/000.jpg: ")
    assert sum(len(part) for part in data.parts.values()) == 109
    with pytest.warns(DataWarning):
        assert load(pets).skipped == data.skipped


def test_more_than_one_in_a_hundred_is_an_error(pets):
    (pets / "cat/000.jpg").write_bytes(b"no picture")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(pets / "dog/001.png")
    with pytest.raises(DataError, match=r"2 of the 110 files .* the first is cat/000.jpg: not an image"):
        load(pets)


def test_progress_is_reported(pets):
    calls = []
    load(pets, progress=lambda *call: calls.append(call))
    assert calls == [(done, 110, what) for what in ("reading", "decoding") for done in range(1, 111)]


@pytest.fixture
def decodings(monkeypatch):
    """How many pictures have been decoded, as the length of a list."""
    done, real = [], images.read_picture

    def counting(folder, what, size, *, channels):
        done.append(what.file)
        return real(folder, what, size, channels=channels)

    monkeypatch.setattr(images, "read_picture", counting)
    return done


def test_a_second_load_decodes_nothing(pets, decodings, tmp_path):
    first = load(pets, hidden_csv=write_csv(tmp_path, pets, lambda path: path.stem[-1]))
    assert len(decodings) == 110
    calls = []
    second = load(pets, hidden_csv=tmp_path / "hidden.csv", progress=lambda *call: calls.append(call))
    assert (len(decodings), calls[-1]) == (110, (110, 110, "reading"))
    for name in ("name", "digest", "classes", "hidden_classes", "skipped"):
        assert getattr(second, name) == getattr(first, name)
    assert torch.equal(second.val.pixels, first.val.pixels)


def test_moved_and_touched_files_are_not_decoded_again(pets, decodings):
    load(pets)
    os.utime(pets / "cat/000.jpg", ns=(1, 1))
    load(pets)
    assert len(decodings) == 110


def test_other_content_of_equal_size_and_time_is_noticed(pets, decodings):
    """As archives and containers give files their times, and bitmaps of one shape have one size."""
    path = pets / "cat/000.jpg"
    digests = set()
    for seed in (1000, 1001, 1000):
        picture(seed).save(path, "BMP")
        os.utime(path, ns=(0, 0))
        digests.add(load(pets).digest)
    assert (len(digests), len(decodings)) == (2, 220)


def test_another_rule_of_decoding_decodes_again(pets, decodings, monkeypatch):
    load(pets)
    monkeypatch.setattr(cache, "RULE", "another")
    load(pets)
    assert len(decodings) == 220


@pytest.mark.parametrize("change", ["other", "gone"])
def test_what_is_read_while_a_file_changes_is_not_kept(pets, cache_folder, monkeypatch, change):
    real, path = images.read_picture, pets / "cat/000.jpg"

    def changing(folder, what, size, *, channels):
        pixels = real(folder, what, size, channels=channels)
        if what.file == "cat/000.jpg":
            picture(77).save(path) if change == "other" else path.unlink()
        return pixels

    monkeypatch.setattr(images, "read_picture", changing)
    assert len(load(pets).train) == 78
    assert list(cache_folder.glob("*")) == []


def test_changed_content_and_changed_options_are_noticed(pets, decodings):
    path = pets / "cat/same_size.bmp"
    picture(1000).save(path)
    first, size = load(pets), path.stat().st_size
    picture(1001).save(path)
    assert path.stat().st_size == size
    assert load(pets).digest != first.digest
    load(pets, size=(10, 10))
    assert len(decodings) == 333


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)


def overwrite(path):
    path.write_bytes(b"nothing like it")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, overwrite])
def test_a_damaged_cache_file_is_built_again(pets, decodings, cache_folder, damage):
    first = load(pets)
    (file,) = cache_folder.glob("*.safetensors")
    damage(file)
    assert cache.read(file, cache._unpack) is None
    assert load(pets).digest == first.digest
    assert len(decodings) == 220
    assert load(pets).digest == first.digest
    assert len(decodings) == 220


@pytest.mark.parametrize("facts", [[], {}, {"hidden_classes": []}, {"digest": 3, "hidden_classes": {"a": 1}}])
def test_a_cache_file_of_another_form_is_built_again(pets, decodings, cache_folder, facts):
    load(pets)
    (file,) = cache_folder.glob("*.safetensors")
    save_file({"train/pixels": torch.zeros(3)}, file, metadata={"splitveil": json.dumps(facts)})
    assert len(load(pets).train) == 78
    assert len(decodings) == 220


def test_nobody_else_reads_the_cache_and_nothing_unfinished_is_left(pets, cache_folder):
    load(pets)
    (file,) = cache_folder.iterdir()
    assert (file.suffix, file.stat().st_mode & 0o777, cache_folder.stat().st_mode & 0o777) == (
        ".safetensors", 0o600, 0o700,
    )  # fmt: skip


def test_many_may_load_at_once(pets, cache_folder):
    command = "import sys; from splitveil.data import load_data; print(load_data(sys.argv[1]).digest)"
    load_at_once = [
        subprocess.Popen([sys.executable, "-c", command, f"folder:{pets}"], stdout=subprocess.PIPE) for _ in range(2)
    ]
    digests = {process.communicate()[0].decode().strip() for process in load_at_once}
    assert digests == {load(pets).digest}
    assert [file.suffix for file in cache_folder.iterdir()] == [".safetensors"]


def test_a_cache_that_cannot_be_written_costs_a_warning(pets, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPLITVEIL_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be written"):
        data = load(pets)
    assert data.n_classes == 2


def test_a_full_disk_costs_a_warning_and_leaves_nothing_behind(pets, cache_folder):
    """A limit on the size of files stands in for the disk's."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.warns(UserWarning, match="cannot be written"):
            data = load(pets)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(data.train) == 78
    assert list(cache_folder.iterdir()) == []


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SPLITVEIL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "splitveil"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "splitveil"
