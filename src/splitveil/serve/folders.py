"""Folders of bundles: which versions lie in one, and whether one has changed."""

from pathlib import Path


def versions_in(folder: Path) -> list[Path]:
    """Folders of bundles, named by a number."""
    return [path for path in folders_in(folder) if path.name.isascii() and path.name.isdecimal()]


def folders_in(folder: Path) -> list[Path]:
    """What lies in a folder and is one; nothing where the folder is gone."""
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_dir()]
    except OSError:
        return []


def look(folder: Path) -> tuple[object, ...]:
    """What changes when a file in the folder does."""
    try:
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:
        return ()
    return tuple((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats)
