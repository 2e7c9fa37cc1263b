"""Where a data set's files lie, and how reading them is reported."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splitveil.errors import DataError

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Source:
    """What a loader needs to know: which data set, where, and whom to tell about progress.

    Attributes:
        name: The data set's name, which is also its folder's.
        root: The folder that holds the data sets' folders; None means the variable SPLITVEIL_DATA.
        progress: Called as progress(done, total, what), or None.
    """

    name: str
    root: Path | None = None
    progress: Progress | None = None

    def report(self, done: int, total: int, what: str) -> None:
        """Tell the progress callback, if there is one, that `done` of `total` steps of `what` are done."""
        if self.progress is not None:
            self.progress(done, total, what)

    def folder(self, *expected: str, home: str) -> Path:
        """The data set's folder, in which the expected files or folders lie.

        Args:
            expected: Paths relative to the folder that must exist; "a|b" means either.
            home: Where the data set is published, for the message.

        Raises:
            DataError: if no root is named, or something expected is missing.
        """
        wanted = (", ".join(expected) or "image files").replace("|", " or ")
        advice = f"{self.name} needs a folder {self.name}/ that holds {wanted}; {home}"
        named = self.root or os.environ.get("SPLITVEIL_DATA")
        if not named:
            raise DataError(f"no data folder is named: set SPLITVEIL_DATA, or pass root= (--data-root); {advice}")
        folder = Path(named).expanduser() / self.name
        missing = [item for item in expected if not any((folder / one).exists() for one in item.split("|"))]
        if missing or not folder.is_dir():
            absent = missing[0].replace("|", " or ") if missing else "the folder"
            raise DataError(f"{absent} was not found in {folder}: {advice}")
        return folder
