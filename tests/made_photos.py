"""The photos of tests/pixels and the table of their pixels, which every edge has to meet (docs/edge.md, "Pixels").

python tests/made_photos.py            # checks the table under the Pillow at hand
python tests/made_photos.py --write    # makes photos and table anew; only together with a new rule
"""

import hashlib
import io
import json
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, features

from splitveil.picture import RULE, read_photo

FOLDER = Path(__file__).parent / "pixels"
TABLE = FOLDER / "pixels.json"
LARGE = (4000, 3000)  # 12 megapixels: width, height
CROPS = (None, (0.1, 0.2, 0.83, 0.77))
SIZES = ((50, 50), (73, 60))
NEEDS = {".webp": "webp", ".jp2": "jpg_2000", ".avif": "avif"}


def formula(width, height):
    """Pixels (H, W, 3): channel c at (x, y) is (x·(3 + c) + y·(7 − c) + (x·y >> 5)) mod 256."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * (3 + c) + y * (7 - c) + (x * y >> 5) for c in range(3)], axis=2).astype(np.uint8)


def scene(width, height, seed=0):
    """A made-up photo: smooth, with edges and some noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    smooth[height // 3 : height // 2, width // 4 : width // 2] //= 3
    return Image.fromarray((smooth + random.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def chunk(kind, content, *, spoil=False):
    return len(content).to_bytes(4, "big") + kind + content + (zlib.crc32(kind + content) ^ spoil).to_bytes(4, "big")


def made():
    """Every photo's name and bytes."""
    photo, odd, clear = scene(64, 48), scene(97, 61, 1), scene(40, 56, 2)
    clear.putalpha(Image.fromarray(np.linspace(0, 255, 40 * 56).reshape(56, 40).astype(np.uint8)))
    for number in range(1, 9):
        yield f"turned-{number}.jpg", encoded(photo, "JPEG", quality=80, exif=orientation(number))
    yield "subsampled-420.jpg", encoded(odd, "JPEG", quality=85, subsampling="4:2:0")
    yield "subsampled-422.jpg", encoded(odd, "JPEG", quality=85, subsampling="4:2:2")
    yield "full-colour-444.jpg", encoded(odd, "JPEG", quality=85, subsampling="4:4:4")
    yield "progressive.jpg", encoded(odd, "JPEG", quality=70, progressive=True)
    yield "grey.jpg", encoded(odd.convert("L"), "JPEG", quality=85)
    yield "cmyk.jpg", encoded(odd.convert("CMYK"), "JPEG", quality=85)
    yield "tall.png", encoded(scene(30, 400, 3), "PNG")
    yield "wide.png", encoded(scene(400, 30, 4), "PNG")
    yield "small.png", encoded(scene(11, 7, 5), "PNG")
    yield "alpha.png", encoded(clear, "PNG")
    yield "grey-alpha.png", encoded(clear.convert("LA"), "PNG")
    yield "palette.png", encoded(photo.quantize(64), "PNG")
    yield "palette-transparent.png", encoded(photo.quantize(64), "PNG", transparency=bytes(range(0, 256, 4)))
    yield "one-bit.png", encoded(photo.convert("1"), "PNG")
    plain = encoded(photo, "PNG")
    spoilt = chunk(b"tEXt", b"Comment\0made up", spoil=True)
    yield "damaged-text.png", plain[:33] + spoilt + chunk(b"eXIf", orientation(6).tobytes()[6:]) + plain[33:]
    frames = [each.quantize(32) for each in (photo, scene(64, 48, 6))]
    yield "animated.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield "plain.bmp", encoded(scene(20, 16, 7), "BMP")
    yield "turned.tif", encoded(photo, "TIFF", compression="tiff_lzw", exif=orientation(8))
    yield "lossy.webp", encoded(odd, "WEBP", quality=80)
    yield "lossless.webp", encoded(scene(33, 21, 8), "WEBP", lossless=True)
    yield "lossless.jp2", encoded(scene(33, 21, 9), "JPEG2000")
    yield "colour.avif", encoded(odd, "AVIF", quality=80)


def readable(name):
    """Whether the Pillow at hand has the codec."""
    needed = NEEDS.get(Path(name).suffix)
    return needed is None or needed in features.get_supported()


def digest(photo, channels, size, crop):
    def box(width, height):
        left, top, right, bottom = crop
        return left * width, top * height, right * width, bottom * height

    pixels = read_photo(photo, size, crop=box if crop else None, mode="L" if channels == 1 else "RGB")
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def large():
    return encoded(Image.fromarray(formula(*LARGE)), "BMP")


def table():
    """What every edge has to make of the photos."""
    photos = []
    for name, photo in (*((path.name, path) for path in sorted(FOLDER.glob("*.*")) if path != TABLE), (None, large())):
        wanted = [(3, size, crop) for size in SIZES for crop in CROPS] + [(1, SIZES[0], None)]
        wanted = wanted if name else wanted[:2]  # a large one takes time
        pixels = [
            {"channels": c, "height": s[0], "width": s[1], "crop": crop, "sha256": digest(photo, c, s, crop)}
            for c, s, crop in wanted
        ]
        made_by = {"file": name} if name else {"formula": formula.__doc__, "width": LARGE[0], "height": LARGE[1]}
        photos.append({**made_by, "pixels": pixels})
    return {"rule": RULE, "photos": photos}


def differences():
    """Names of the photos that the Pillow at hand can read, and how many of each one's pixels differ."""
    found = {}
    for photo in json.loads(TABLE.read_text(encoding="utf-8"))["photos"]:
        name = photo.get("file", "12 megapixels")
        if readable(name):
            source = FOLDER / name if "file" in photo else large()
            found[name] = sum(
                each["sha256"] != digest(source, each["channels"], (each["height"], each["width"]), each["crop"])
                for each in photo["pixels"]
            )
    return found


if __name__ == "__main__":
    if "--write" in sys.argv:
        FOLDER.mkdir(exist_ok=True)
        for each, content in made():
            (FOLDER / each).write_bytes(content)
        TABLE.write_text(json.dumps(table(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    checked = differences()
    wrong = [name for name, different in checked.items() if different]
    print(f"Pillow {Image.__version__}: {len(checked)} photos, different: {wrong or 'none'}")
