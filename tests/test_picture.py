"""A photo's pixels: one rule under every Pillow, and what a damaged or hostile file gives."""

import json
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import made_photos
from splitveil.picture import RULE, read_photo, resize

PHOTO = made_photos.scene(64, 48)
WHOLE = made_photos.encoded(PHOTO, "PNG")
PIXELS = np.asarray(PHOTO).transpose(2, 0, 1)
HEAD, CHUNK = 33, 12  # bytes before the second chunk of a PNG; of a chunk without content


def read(content):
    return read_photo(content, (48, 64))


def test_every_photo_of_the_table_has_its_pixels():
    assert json.loads(made_photos.TABLE.read_text(encoding="utf-8"))["rule"] == RULE
    found = made_photos.differences()
    assert len(found) >= 27
    assert [name for name, different in found.items() if different] == []


def weights(length, start, end, out):
    """The rule of docs/edge.md: for each place of the result the first value that counts, and the weights."""
    start, end = np.float32(start), np.float32(end)
    scale = float(end - start) / out
    wide = max(scale, 1.0)
    for place in range(out):
        centre = float(start) + (place + 0.5) * scale
        first, last = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), length)
        each = [cubic((k - centre + 0.5) * (1 / wide)) for k in range(first, last)]
        total = sum(each)
        yield first, [math.trunc(math.copysign(0.5, w / total) + w / total * 2**22) for w in each]


def cubic(x):
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


def along(pixels, start, end, out):
    """The first axis resized."""
    rows = []
    for first, each in weights(len(pixels), start, end, out):
        total = sum(w * pixels[first + k].astype(np.int64) for k, w in enumerate(each)) + 2**21
        rows.append(np.clip(total >> 22, 0, 255))
    return np.stack(rows).astype(np.uint8)


def by_the_rule(pixels, size, box):
    (height, width), (left, top, right, bottom) = size, box
    tall, broad = pixels.shape[0], pixels.shape[1]

    def across(part):
        return along(part.swapaxes(0, 1), left, right, width).swapaxes(0, 1)

    def down(part):
        return along(part, top, bottom, height)

    if tall > height and tall - height > 2 * (broad - width):
        return across(down(pixels))
    return down(across(pixels))


lengths, shares = st.integers(1, 40), st.floats(0, 0.45)


@settings(max_examples=60)
@given(lengths, lengths, lengths, lengths, st.tuples(shares, shares, shares, shares), st.integers(0, 9))
def test_resizing_goes_by_the_rule_as_it_is_written(tall, broad, height, width, cut, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (tall, broad, 3), dtype=np.uint8)
    box = (cut[0] * broad, cut[1] * tall, broad - cut[2] * broad, tall - cut[3] * tall)
    found = resize(Image.fromarray(pixels), (height, width), box)
    np.testing.assert_array_equal(np.asarray(found), by_the_rule(pixels, (height, width), box))


def test_the_order_of_the_axes_shows_and_depends_on_the_shape():
    box = (0, 0, 30, 400)
    tall = made_photos.scene(30, 400, 3)
    downwards = np.asarray(tall.resize((30, 50), Image.Resampling.BICUBIC)).swapaxes(0, 1)
    downwards = along(downwards, 0, 30, 20).swapaxes(0, 1)
    np.testing.assert_array_equal(np.asarray(resize(tall, (50, 20), box)), downwards)
    across = along(along(np.asarray(tall).swapaxes(0, 1), 0, 30, 20).swapaxes(0, 1), 0, 400, 50)
    assert (across != downwards).any()


chunk = made_photos.chunk
METADATA = {
    "wrong checksum": chunk(b"tEXt", b"Comment\0made up", spoil=True),
    "wrong length": b"\0\0\7\xd0" + chunk(b"tEXt", b"Comment\0made up")[4:],
    "length beyond the file": b"\x7f\xff\xff\xff" + chunk(b"tEXt", b"Comment\0made up")[4:],
    "text that is not packed": chunk(b"zTXt", b"Comment\0\0this is no deflate stream"),
    "text that names pixels": chunk(b"tEXt", b"IDAT IDAT IDAT" * 20, spoil=True),
    "a profile of noise": chunk(b"iCCP", b"profile\0\0noise"),
    "EXIF data that are not hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzzzz"),
    "EXIF of noise": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff noise"),
}


@pytest.mark.parametrize("damage", METADATA)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, of damaged metadata
def test_damaged_metadata_do_not_matter(damage):
    before = WHOLE[:HEAD] + METADATA[damage] + WHOLE[HEAD:]
    np.testing.assert_array_equal(read(before), PIXELS)
    if "length" not in damage:
        np.testing.assert_array_equal(read(WHOLE[:-CHUNK] + METADATA[damage] + WHOLE[-CHUNK:]), PIXELS)


def test_whole_exif_data_beside_damaged_metadata_count():
    turn = chunk(b"eXIf", made_photos.orientation(3).tobytes()[6:])
    content = WHOLE[:HEAD] + METADATA["wrong checksum"] + turn + WHOLE[HEAD:]
    np.testing.assert_array_equal(read(content), PIXELS[:, ::-1, ::-1])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_data_of_a_jpeg_do_not_matter():
    plain = made_photos.encoded(PHOTO, "JPEG", quality=90)
    exif = b"Exif\0\0noise without the head of a TIFF"
    damaged = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    np.testing.assert_array_equal(read(damaged), read(plain))


def test_a_png_without_an_end_is_read():
    np.testing.assert_array_equal(read(WHOLE[:-CHUNK]), PIXELS)


@pytest.mark.parametrize("name", ["IHDR", "IDAT"])
def test_damaged_pixels_are_refused(name):
    place = WHOLE.index(name.encode())
    (flipped := bytearray(WHOLE))[place + (6 if name == "IHDR" else 2000)] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        read(bytes(flipped))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_half_a_file_is_refused(kind):
    content = made_photos.encoded(PHOTO, kind)
    with pytest.raises((OSError, ValueError, EOFError)):
        read(content[: len(content) // 2])


def test_pictures_that_are_programs_are_not_run():
    with pytest.raises(OSError, match="not an image"):
        read(made_photos.encoded(PHOTO, "EPS"))


def test_what_is_not_a_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for place in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            read_photo(place, (8, 8))
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ValueError, match="larger than 1 GiB"):
        read_photo(tmp_path / "huge.png", (8, 8))
    with pytest.raises(OSError, match="empty"):
        read(b"")


def test_more_than_eight_bits_are_refused():
    deep = Image.fromarray(np.zeros((8, 8), np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits"):
        read(made_photos.encoded(deep, "PNG"))
