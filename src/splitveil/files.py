"""Files on disk, written so that a file is there whole or not at all."""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from splitveil.errors import RunError

try:
    import fcntl
except ImportError:  # Windows; what a killed process left there stays
    fcntl = None  # type: ignore[assignment]


def cache_folder() -> Path:
    """SPLITVEIL_CACHE, else XDG_CACHE_HOME/splitveil, else ~/.cache/splitveil."""
    if named := os.environ.get("SPLITVEIL_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "splitveil"


def is_there(path: Path) -> bool:
    """Whether a file or folder exists.

    Raises:
        RunError: that cannot be found out: the name is too long, or the folder above is closed to us.
    """
    try:
        return path.exists()
    except OSError as error:
        raise RunError(f"{path} cannot be looked up ({error}); choose another folder") from error


def check_writable(folder: Path) -> None:
    """Raises `RunError` where a folder is not to be written, or made, before long work shows it."""
    there = next(place for place in (folder, *folder.absolute().parents) if is_there(place))
    if not there.is_dir():
        raise RunError(f"{folder} cannot be written, as {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"{folder} cannot be written, as {there} is closed to you; choose another folder")


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; gives the ones that were not there, the innermost first.

    Raises:
        RunError: it cannot be written.
    """
    missing = [place for place in (folder, *folder.absolute().parents) if not is_there(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remove_empty(missing)
        raise RunError(f"{folder} cannot be written ({error}); free space or choose another folder") from error
    return missing


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically.

    Raises:
        RunError: the folder cannot be written, or the disk is full.
    """
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_with(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def write_text(path: Path, text: str) -> None:
    """Write text atomically; raises `RunError` as `write_json` does."""
    write_with(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically; raises `RunError` as `write_json` does."""
    write_with(path, lambda temporary: Path(temporary).write_bytes(content))


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        RunError: the file is missing or holds no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(
            f"{path} does not exist; name a folder that 'splitveil train' or 'obfuscate' has written"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read as JSON ({error}); restore it or train again") from error


def write_with(path: Path, save: Callable[[str], object]) -> None:
    """Let ``save`` write a temporary file, then put it in place; raises `RunError` as `write_json` does.

    The temporary file is locked while it is written. One that is not was left by a process that was killed, and goes
    with the next write of the same file.
    """
    temporary, made = "", make_folder(path.parent)
    try:
        _remove_left(path)
        temporary = str(path.parent / f".{path.name}.{secrets.token_hex(8)}")
        with Path(temporary).open("xb") as held:  # as readable as any other file of its owner
            _lock(held.fileno())
            save(temporary)
            with Path(temporary).open("rb+") as file:
                os.fsync(file.fileno())
            Path(temporary).replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error}); free space or choose another folder") from error
    finally:
        # Gone already where all went well; an interruption leaves nothing behind either.
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if not path.exists():
            remove_empty(made)


def remove_empty(folders: list[Path]) -> None:
    """Remove what `make_folder` made, as far as it holds nothing."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _remove_left(path: Path) -> None:
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}")
    for left in [entry.path for entry in os.scandir(path.parent) if name.fullmatch(entry.name)]:
        # Another process may remove it first, or write it now, or not let us.
        with contextlib.suppress(OSError), Path(left).open("rb") as file:
            if _lock(file.fileno()):
                Path(left).unlink()


def _lock(descriptor: int) -> bool:
    """Whether nobody else has locked the file, and the system can tell."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
