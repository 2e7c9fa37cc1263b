"""How the command line speaks: results on stdout, progress and errors on stderr."""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

MISTAKE = 2
SECONDS_BETWEEN_LINES = 10.0


def prepare() -> None:
    """Let no character end a command: what a terminal cannot show is written as Python would escape it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def fail(sentence: str, code: int = MISTAKE) -> NoReturn:
    """Say what is wrong and leave, with the exit code of a user's mistake where no other is given."""
    _write(f"splitveil: {shown(sentence, sys.stderr)}", sys.stderr)
    sys.exit(code)


def note(sentence: str) -> None:
    """Say something that is not a result."""
    _write(f"note: {shown(sentence, sys.stderr)}", sys.stderr)


def print_json(content: Any) -> None:
    """One machine-readable object."""
    _write(json.dumps(content, indent=2, allow_nan=False), sys.stdout)  # in ASCII, which every terminal shows


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for people; numbers are to be formatted before, and what does not apply is None."""
    # Text, because names and paths may hold what rich would read as markup.
    table = Table()
    for column in columns:
        table.add_column(Text(shown(column, sys.stdout)))
    for row in rows:
        table.add_row(*(Text(shown("–" if cell is None else str(cell), sys.stdout)) for cell in row))
    _write(shown(title, sys.stdout), sys.stdout)
    with closed_quietly(sys.stdout):
        _Console(width=None if sys.stdout.isatty() else 140).print(table)


def shown(text: str, stream: TextIO) -> str:
    """A text with escapes for what a stream cannot carry, and for what would move a terminal's cursor."""
    plain = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return plain.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def closed_quietly(stream: TextIO) -> Iterator[None]:
    """Around writing: who reads no more, as ``| head``, ends no command; what else would be written goes nowhere."""
    try:
        yield
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _write(line: str, stream: TextIO) -> None:
    with closed_quietly(stream):
        typer.echo(line, file=stream)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `closed_quietly`, where rich would end the command with an error."""
        raise BrokenPipeError


class Stopped(BaseException):
    """The user ended the command; says in a sentence what became of the work."""


@contextmanager
def going_on(where: str) -> Iterator[None]:
    """Around long work that resumes: who stops it learns that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped(f"stopped; the same command goes on {where}") from error


Report = Callable[[int, int, str], None]


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Report | None]:
    """A function to report (done, in all, text) to: a bar on stderr, lines where that is no terminal, None if quiet."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _lines()


def _lines() -> Report:
    last_text, last_time = "", 0.0

    def report(done: int, total: int, text: str) -> None:
        nonlocal last_text, last_time
        # Decoding reports every image with the same words: a line now and then will do.
        if text != last_text or done == total or time.monotonic() - last_time > SECONDS_BETWEEN_LINES:
            _write(f"{done}/{total} {shown(text, sys.stderr)}", sys.stderr)
            last_text, last_time = text, time.monotonic()

    return report


@contextmanager
def _bar() -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bars = Bars(*columns, console=Console(stderr=True))

    def report(done: int, total: int, text: str) -> None:
        if not bars.task_ids:  # a mistake found before the first report shows its sentence alone
            bars.add_task(text)
            bars.start()
        bars.update(bars.task_ids[0], completed=done, total=total, description=text)

    try:
        yield report
    finally:
        if bars.task_ids:
            bars.stop()
