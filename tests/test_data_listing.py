"""Folders as people have them: what is read, and what is left out with its reason."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import made_photos
from splitveil.data import DataWarning, load_data, load_unlabelled
from splitveil.data.listing import left_out, list_images, shown
from splitveil.errors import DataError

SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITVEIL_CACHE", str(tmp_path / "cache"))


def bitmap(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def photos(tmp_path):
    """120 different photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(120):
        bitmap(seed).save(folder / f"{seed:03}.png")
    return folder


def used(images):
    return len(images.fitted) + len(images.measured)


def loaded(folder):
    """How many images are used, and what is left out."""
    with pytest.warns(DataWarning) as caught:
        images = load_unlabelled(folder, SHAPE)
    assert f"left out {len(images.skipped)}" in str(caught[0].message)
    return used(images), dict(line.rsplit(": ", 1) for line in images.skipped)


def bind(place):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))


ODD = {
    "a link to nothing": lambda place: place.symlink_to("nowhere.png"),
    "too many levels of symbolic links": lambda place: place.symlink_to(place.name),
    "a pipe": os.mkfifo,
    "a socket": bind,
    "a device": lambda place: place.symlink_to("/dev/zero"),
    "empty": lambda place: place.touch(),
    "not an image": lambda place: place.write_bytes(b"no picture at all"),
    "larger than 1 GiB": lambda place: (place.touch(), os.truncate(place, 2**31)),
}


@pytest.mark.parametrize("why", ODD)
def test_what_cannot_be_read_is_left_out_and_named(photos, why):
    ODD[why](photos / "odd.png")
    assert loaded(photos) == (120, {"odd.png": why})


@pytest.mark.parametrize("why", ODD)
def test_more_than_one_in_a_hundred_is_an_error_whatever_the_reason(photos, why):
    ODD[why](photos / "odd.png")
    (photos / "odder.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match="2 of the 122 files"):
        load_unlabelled(photos, SHAPE)


def test_a_file_is_a_picture_by_its_content(photos):
    kinds = {
        ".jfif": "JPEG", ".JPG": "JPEG", ".Png": "PNG", ".jp2": "JPEG2000", ".ppm": "PPM", ".tga": "TGA", "": "WEBP",
        ".txt": "GIF", ".png": "JPEG", ".jpg": "PNG", ".0001": "TIFF", ". ": "BMP", ".avif": "AVIF",
    }  # fmt: skip
    for seed, (ending, kind) in enumerate(kinds.items()):
        bitmap(1000 + seed).save(photos / f"other-{seed}{ending}", kind)
    assert used(load_unlabelled(photos, SHAPE)) == 120 + len(kinds)


def test_what_no_one_takes_for_a_picture_is_named_but_does_not_count_as_damaged(photos):
    others = [f"._{seed:03}.png" for seed in range(50)] + [".DS_Store", "Thumbs.db", "notes.txt", "labels.csv", "P5"]
    for name in others:
        (photos / name).write_bytes(b"P5 is how some pictures begin" if name == "P5" else b"\0\5\x16\7" + name.encode())
    (photos / ".git").mkdir()
    (photos / ".git" / "picture.png").write_bytes((photos / "000.png").read_bytes())
    os.mkfifo(photos / "pipe")
    count, why = loaded(photos)
    assert count == 120
    assert why["._003.png"] == why[".git"] == why[".DS_Store"] == "hidden"
    assert why["Thumbs.db"] == why["notes.txt"] == why["P5"] == "not an image"
    assert (why["pipe"], len(why)) == ("a pipe", 57)


def test_folders_that_are_linked_in_a_circle_are_read_once(photos):
    (photos / "sub").mkdir()
    bitmap(500).save(photos / "sub" / "deep.png")
    (photos / "above").symlink_to("..")
    (photos / "sub" / "circle").symlink_to(photos)
    (photos / "again").symlink_to("sub")
    listing = list_images(photos)
    assert (len(listing.files), listing.files[-1]) == (121, "sub/deep.png")
    assert {"again/: a link to a folder that is read anyway"} < set(listing.ignored)


def test_a_linked_folder_is_read_by_the_links_name(photos, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "linked").symlink_to(photos)
    assert list_images(tmp_path / "all").files[0] == "linked/000.png"
    (tmp_path / "by").symlink_to(tmp_path / "all")
    assert used(load_unlabelled(tmp_path / "by", SHAPE)) == 120


def test_any_name_is_read_and_can_be_shown(photos):
    names = [b"caf\xe9.png", b"line\nbreak.png", b"\x1b[31mred.png", "日本.png".encode(), b"-rf.png", b"a: b.png"]
    for seed, name in enumerate(names):
        bitmap(300 + seed).save(os.fsdecode(os.fsencode(photos) + b"/" + name), "PNG")
    assert used(load_unlabelled(photos, SHAPE)) == 126
    for name in names:
        os.truncate(os.fsencode(photos) + b"/" + name, 0)
    with pytest.raises(DataError, match=r"6 of the 126 files .* first is -rf.png: empty"):
        load_unlabelled(photos, SHAPE)
    assert shown(os.fsdecode(b"caf\xe9\n\x9b \xe6\x97\xa5.png")) == "caf\\xe9\\n\\x9b 日.png"


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"no image files; left out 1: not an image \(a\.txt\)"):
        load_unlabelled(tmp_path / "docs", SHAPE)


def test_the_note_counts_and_names_a_few():
    assert left_out([f"{k}.png: empty" for k in range(5)] + ["a: b: a pipe"]) == (
        "left out 6: empty (0.png, 1.png, 2.png and 2 more); a pipe (a: b)"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_what_is_closed_to_us_is_named(photos):
    (photos / "closed").mkdir(mode=0)
    (photos / "000.png").chmod(0)
    assert loaded(photos) == (119, {"000.png": "permission denied", "closed/": "permission denied"})


def test_a_folder_of_classes_may_hold_other_files(photos):
    files = sorted(photos.glob("*.png"))
    for row, name in enumerate(("cat", "dog")):
        (photos / name).mkdir()
        for path in files[row::2]:
            path.rename(photos / name / path.name)
    (photos / "README.md").write_text("two kinds of pets")
    (photos / "dog" / "gone.jpg").symlink_to("nowhere")
    with pytest.warns(DataWarning, match="left out 2"):
        data = load_data(f"folder:{photos}", size=(8, 8))
    assert sum(map(len, data.parts.values())) == 120
    assert data.skipped == ("dog/gone.jpg: a link to nothing", "README.md: not an image")
    (photos / "dog").rename(photos / "d\nog")
    with pytest.raises(DataError, match=r"class folder d\\nog has a name that cannot be printed"):
        load_data(f"folder:{photos}", size=(8, 8))


def test_large_photos_are_decoded_one_at_a_time(tmp_path):
    """Four photos of 25 megapixels on six threads: together they would take four times the memory."""
    folder = tmp_path / "large"
    folder.mkdir()
    for seed in range(4):
        photo = Image.new("1", (5000, 5000))
        photo.paste(1, (0, 0, 1000 * (seed + 1), 5000))
        photo.save(folder / f"{seed}.png", compress_level=1)
    program = (
        "import resource, sys; from splitveil.data import load_unlabelled\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "load_unlabelled(sys.argv[1], (3, 8, 8))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024 / 25e6)"
    )
    out = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, check=True)
    assert float(out.stdout) < 10  # bytes for each pixel of one photo


def test_made_up_photos_of_every_kind_are_read(tmp_path):
    folder = tmp_path / "kinds"
    folder.mkdir()
    for name, content in made_photos.made():
        (folder / name).write_bytes(content)
    assert used(load_unlabelled(folder, SHAPE)) == len(list(folder.iterdir()))
