"""Results of a benchmark on their way to its file: what has been measured is kept, however the benchmark ends."""

from pathlib import Path
from typing import Any

from splitveil.files import write_json


def keep(out: Path | None, result: Any) -> None:
    """Write what there is so far beside the file, which holds whole results alone."""
    if out is not None:
        write_json(_beside(out), result)


def finish(out: Path | None, result: Any) -> None:
    """Write the whole result, in place of what was kept."""
    if out is not None:
        write_json(out, result)
        _beside(out).unlink(missing_ok=True)


def _beside(out: Path) -> Path:
    return out.with_suffix(".partial.json")
