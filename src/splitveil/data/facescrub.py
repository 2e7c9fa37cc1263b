"""FaceScrub's published annotations: which file shows whose face, and where."""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from splitveil.data.images import Picture
from splitveil.data.source import Source
from splitveil.errors import DataError
from splitveil.picture import Box

ANNOTATIONS = ("facescrub_actors.txt", "facescrub_actresses.txt")
_COLUMNS = ("name", "image_id", "bbox", "sha256")


@dataclass(frozen=True)
class FaceBox:
    """A face's box in an original photograph: a crop that is clipped to the image at hand."""

    left: int
    top: int
    right: int
    bottom: int

    def __call__(self, width: float, height: float) -> Box:
        """The box within an image of this size, in pixels.

        Raises:
            ValueError: if the box lies outside the image.
        """
        box = max(self.left, 0), max(self.top, 0), min(self.right, width), min(self.bottom, height)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(
                f"the annotated face {self.left},{self.top},{self.right},{self.bottom} is outside the image"
            )
        return box


class Annotations:
    """The faces of each person by the SHA-256 of the original file, and by its image number."""

    def __init__(self) -> None:
        self._faces: dict[tuple[str, str], dict[FaceBox, None]] = defaultdict(dict)

    def add(self, row: dict[str, str]) -> None:
        """Take over one row of a published file.

        Raises:
            ValueError: if the bounding box is not four integers.
        """
        left, top, right, bottom = (int(number) for number in row["bbox"].split(","))
        for key in (row["sha256"].lower(), row["image_id"]):
            # A dictionary, because a face that is listed twice is still one face.
            self._faces[_folder_name(row["name"]), key][FaceBox(left, top, right, bottom)] = None

    def faces(self, person: str, sha256: str, stem: str) -> list[FaceBox]:
        """The faces in a file of this person's: found by content, else by the number that ends its name."""
        name, number = _folder_name(person), stem.rsplit("_", 1)[-1]
        return list(self._faces.get((name, sha256)) or self._faces.get((name, number)) or ())


def pictures_of(source: Source, folder: Path, files: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """The faces to take from these files, and a line for each file that the annotations do not know.

    Without annotation files each file is taken whole.

    Raises:
        DataError: if an annotation file is malformed.
    """
    present = [folder / name for name in ANNOTATIONS if (folder / name).exists()]
    if not present:
        return [Picture(file) for file in files], []
    annotations = _read(present)
    pictures, unknown = [], []
    with ThreadPoolExecutor() as pool:
        for done, (file, digest) in enumerate(zip(files, pool.map(lambda f: _sha256(folder / f), files), strict=True)):
            faces = annotations.faces(Path(file).parent.name, digest, Path(file).stem)
            pictures += [Picture(file, face) for face in faces]
            unknown += [] if faces else [f"{file}: not in the annotations"]
            source.report(done + 1, len(files), "matching")
    return pictures, unknown


def _folder_name(name: str) -> str:
    return name.strip().replace(" ", "_")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(paths: Sequence[Path]) -> Annotations:
    annotations = Annotations()
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if absent := [column for column in _COLUMNS if column not in (rows.fieldnames or ())]:
                raise DataError(f"{path} has no column {absent[0]!r} in its first line; get it again")
            for row in rows:
                _add(annotations, row, f"{path} line {rows.line_num}")
    return annotations


def _add(annotations: Annotations, row: dict[str, str], place: str) -> None:
    try:
        annotations.add(row)
    except (ValueError, AttributeError) as error:
        raise DataError(f"{place} is not an annotated face ({error}); get the file again") from error
