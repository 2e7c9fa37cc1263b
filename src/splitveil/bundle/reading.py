"""The files of a bundle's folder: opened once, never through a link, sized before they are read."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from splitveil.bundle.memory import Content, releasable
from splitveil.errors import BundleError

# Without waiting: who opens a pipe otherwise waits for its writer. Windows has neither flag, but needs the third.
_FLAGS = (
    os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
)  # fmt: skip


def read_file(folder: Path, name: str, most: int, size: int | None = None) -> bytes:
    """The bytes of one file inside a folder.

    The folder itself may be a link, as one release is often switched to the next by one: who can change it can change
    what it leads to. A file in it may not be: a bundle comes from others, and would name files of this machine.

    Args:
        folder: of the bundle.
        name: of the file, without folders.
        most: bytes that it may have.
        size: bytes that it has according to its manifest, if that is known.

    Raises:
        FileNotFoundError: there is no such file.
        BundleError: it is a link, a pipe or the like, of another size, or cannot be read.
    """
    with _opened(folder, name, most, size) as (file, length):
        return file.read(length)


def read_to_load(folder: Path, name: str, most: int, size: int) -> Content:
    """As `read_file`; a large file comes as memory that is given back while it is loaded."""
    with _opened(folder, name, most, size) as (file, length):
        memory = releasable(length)
        if memory is None:
            return file.read(length)
        file.readinto(memory)  # a file that was cut meanwhile leaves zeros, of another SHA-256
        return memory


@contextlib.contextmanager
def _opened(folder: Path, name: str, most: int, size: int | None) -> Iterator[tuple[io.BufferedReader, int]]:
    """A file and its length in bytes; raises as `read_file` does."""
    path = folder / name
    try:
        with os.fdopen(os.open(path, _FLAGS), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise BundleError(f"{path} is no file, but a pipe or the like; export again")
            if size is not None and facts.st_size != size:
                raise BundleError(
                    f"{path} is not what its bundle says it is: it was changed and has {facts.st_size} bytes, not "
                    f"{size}; export again"
                )
            if facts.st_size > most:
                raise BundleError(f"{path} has {facts.st_size} bytes, but at most {most} are read; export again")
            yield file, facts.st_size
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(str(error)) from error
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        if path.is_symlink():
            raise BundleError(f"{path} is a link, which leads out of its bundle; export again") from error
        raise BundleError(f"{path} cannot be read ({error}); export again") from error
