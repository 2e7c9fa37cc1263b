"""Folders as people have them: which of their files may be pictures, and why the others are left out."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitveil.errors import DataError
from splitveil.picture import LARGEST, endings, looks_like_photo

_SHOWN = 3  # names for each reason in a sentence; all of them stand in `skipped`
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


@dataclass(frozen=True)
class Listing:
    """What lies below a folder.

    Attributes:
        files: paths relative to it, with /, sorted.
        skipped: what cannot be used although its name says that it should, each as "path: reason".
        ignored: what no one would take for a picture, likewise.
    """

    files: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


class DataWarning(UserWarning):
    """A data set can be used, but something of it was left out."""


def list_files(folder: Path, suffixes: tuple[str, ...] = ()) -> Listing:
    """The files below a folder whose names end as asked, in any case; hidden ones are passed over.

    Args:
        folder: Where to look.
        suffixes: Lower-case endings, such as ".jpg"; any where none is given.

    Raises:
        DataError: if the folder cannot be read.
    """
    wanted = [(path, why) for path, why in _walk(folder) if path.lower().endswith(suffixes or "") and why != _HIDDEN]
    return Listing(_usable(wanted), tuple(f"{shown(path)}: {why}" for path, why in wanted if why))


def list_images(folder: Path, *, table: Path | None = None) -> Listing:
    """The files below a folder that may be pictures: by the ending of their name, or else by their content.

    Args:
        folder: Where to look.
        table: A file that is used otherwise, so that it does not count as left out.

    Raises:
        DataError: if the folder cannot be read.
    """
    found: list[tuple[str, str]] = []
    skipped: list[str] = []
    ignored: list[str] = []
    for path, why in _walk(folder):
        named = Path(path).suffix.lower() in endings()
        if not why and not named and not looks_like_photo(folder / path):
            if table is not None and table.exists() and table.samefile(folder / path):
                continue
            why = "not an image"
        if not why:
            found.append((path, why))
        else:
            (skipped if named and why != _HIDDEN else ignored).append(f"{shown(path)}: {why}")
    return Listing(_usable(found), tuple(sorted(skipped)), tuple(sorted(ignored)))


def left_out(skipped: Sequence[str]) -> str:
    """One sentence about what was left out: how many, why, and the first names; empty where nothing was."""
    by_reason: dict[str, list[str]] = {}
    for line in skipped:
        path, _, why = line.rpartition(": ")
        by_reason.setdefault(why, []).append(path)
    reasons = [
        f"{why} ({', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''})"
        for why, names in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    ]
    return f"left out {len(skipped)}: {'; '.join(reasons)}" if skipped else ""


def shown(path: str | Path) -> str:
    """A path as it can be printed anywhere: bytes that are no text, and control characters, are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


_HIDDEN = "hidden"


def _usable(found: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(sorted(path for path, why in found if not why))


def _walk(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file's path, and why it cannot be read ("" where nothing is known against it).

    Each folder is visited once, so that links in a circle come to an end; by its own path rather than by a link's.
    """
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise DataError(f"the folder {shown(folder)} cannot be read ({_said(error)})") from error
    seen: set[tuple[int, int]] = set()
    waiting, linked = [""], list[str]()
    while waiting or linked:
        prefix = waiting.pop() if waiting else linked.pop(0)
        place = folder / prefix
        try:
            facts = place.stat()
            if (facts.st_dev, facts.st_ino) in seen and facts.st_ino:  # numbered 0 where a file system has no numbers
                yield prefix, "a link to a folder that is read anyway"
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(place) as entries:
                names = sorted((entry.name, entry.is_symlink()) for entry in entries)
        except OSError as error:
            yield prefix, _said(error)
            continue
        for name, link in names:
            path = prefix + name
            kind = _HIDDEN if name.startswith(".") else _kind(folder / path, link)
            if kind == "folder":
                (linked if link else waiting).append(f"{path}/")
            else:
                yield path, kind


def _kind(place: Path, link: bool) -> str:
    """What lies at a place: "folder", "" for a file, or why it cannot be read."""
    try:
        facts = place.stat()
    except FileNotFoundError:
        return "a link to nothing" if link else "gone"
    except OSError as error:
        return _said(error)
    if stat.S_ISDIR(facts.st_mode):
        return "folder"
    if not stat.S_ISREG(facts.st_mode):
        return next((said for test, said in _KINDS if test(facts.st_mode)), "not a file")
    return "larger than 1 GiB" if facts.st_size > LARGEST else "" if facts.st_size else "empty"


def _said(error: OSError) -> str:
    return (error.strerror or "cannot be read").lower()
