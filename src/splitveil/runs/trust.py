"""Which runs were made here: the model of a run from elsewhere may be code, and is not loaded unasked."""

import hashlib
from pathlib import Path

from splitveil.data.cache import if_writable
from splitveil.errors import RunError
from splitveil.files import cache_folder, write_bytes
from splitveil.runs.manifest import MANIFEST


def remember(folder: Path) -> None:
    """Note in the user's cache folder that the run in ``folder`` was made here, wherever it is moved to."""
    if_writable(lambda: write_bytes(_note(folder), b""))


def check_made_here(folder: Path, what: str) -> None:
    """Refuse the model of a run that was made elsewhere.

    The note goes by the content of ``run.json``, which names the function or holds the SHA-256 of the program.

    Args:
        folder: the run's.
        what: would be run.

    Raises:
        RunError: saying how to load it all the same.
    """
    if not _note(folder).is_file():
        raise RunError(
            f"the model of {folder} is code ({what}), and no note in {cache_folder()} says that you made the run on "
            "this machine; if you trust whoever made it, say --trust (in Python: Run(folder, trust=True))"
        )


def _note(folder: Path) -> Path:
    return cache_folder() / f"made-here-{hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()}"
