"""Computing cells on local processes: what is killed loses at most the cells in flight."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from splitveil.data import Progress
from splitveil.errors import ExperimentError, SplitveilError
from splitveil.experiments.cells import Cell, Compute, Place, compute_row, row_path, slug, write_row
from splitveil.files import is_there

_UNITS = 100  # of progress per cell


@dataclass(frozen=True)
class Failure:
    """A cell that could not be computed.

    Attributes:
        cell: its slug.
        why: the sentence of a user's mistake, or a traceback.
        mistake: whether it is the user's.
    """

    cell: str
    why: str
    mistake: bool


class Sweep(Protocol):
    """What computes cells: `sweep` on local processes, `sweep_on_ray` on a cluster."""

    def __call__(
        self,
        experiment: str,
        compute: Compute,
        cells: Sequence[Cell],
        folder: Path,
        place: Place,
        *,
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> list[Failure]:
        """See `sweep`."""
        ...


@dataclass(eq=False)
class _Running:
    cell: Cell
    process: BaseProcess
    share: float = 0.0


def sweep(
    experiment: str,
    compute: Compute,
    cells: Sequence[Cell],
    folder: Path,
    place: Place,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> list[Failure]:
    """Compute the cells that have no file in ``folder`` yet; each row is written as it lands.

    Every cell has a process of its own with one torch thread: on two cores, two of them are faster than one after the
    other with two threads, and the numbers do not depend on how many run at once. A process dies with its parent.

    Args:
        experiment: the name for the rows.
        compute: a function of a module, called as (cell, place, report).
        cells: the most important first.
        folder: of the rows.
        place: where to compute.
        jobs: processes at once; the number of cores where not given.
        progress: called as (done, in all, text), in hundredths of a cell.

    Returns:
        The cells that failed; the others are there.
    """
    if jobs is not None and jobs < 1:
        raise ExperimentError(f"jobs must be at least 1, not {jobs}")
    missing = [cell for cell in cells if not is_there(row_path(folder, cell))]
    board = _Board(len(missing), progress)
    waiting, running, failures = list(missing), dict[Connection, _Running](), list[Failure]()
    try:
        while waiting or running:
            while waiting and len(running) < (jobs or _cores()):
                channel, started = _start(experiment, compute, waiting.pop(0), folder, place)
                running[channel] = started
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                failures += _hear(ready, running, board)
    finally:
        for started in running.values():
            started.process.kill()
            started.process.join()
    return failures


class _Board:
    """Adds up the progress of all cells."""

    def __init__(self, cells: int, progress: Progress | None) -> None:
        self.cells, self.progress = cells, progress
        self.done = 0
        if cells:
            self.show([], f"{cells} cells to compute")

    def show(self, running: Sequence[_Running], text: str) -> None:
        if self.progress:
            shares = self.done + sum(one.share for one in running)
            self.progress(int(_UNITS * shares), _UNITS * self.cells, text)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(
    experiment: str, compute: Compute, cell: Cell, folder: Path, place: Place
) -> tuple[Connection, _Running]:  # fmt: skip
    # A fresh interpreter: a fork would copy torch's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    path = row_path(folder, cell)
    process = context.Process(target=_work, args=(theirs, experiment, compute, cell, place, path), daemon=True)
    process.start()
    theirs.close()
    return ours, _Running(cell, process)


def _hear(channel: Connection, running: dict[Connection, _Running], board: _Board) -> list[Failure]:
    """One message of a process, or its end."""
    one = running[channel]
    try:
        kind, *rest = channel.recv()
    except EOFError:
        kind, rest = "failed", ["its process died (killed, or out of memory); run again, with fewer jobs", True]
    if kind == "progress":
        one.share, text = rest
        board.show(list(running.values()), f"{one.cell.label}: {text}")
        return []
    del running[channel]
    one.process.join()
    board.done += 1
    board.show(list(running.values()), f"{one.cell.label}: {kind}")
    return [Failure(slug(one.cell), *rest)] if kind == "failed" else []


def _work(channel: Connection, experiment: str, compute: Compute, cell: Cell, place: Place, path: Path) -> None:
    """A process's whole life: one cell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and ends us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)

    def tell(*message: Any) -> None:
        with suppress(BrokenPipeError):
            channel.send(message)

    try:
        row = compute_row(experiment, compute, cell, place, lambda share, text: tell("progress", share, text))
        write_row(path, row)
    except SplitveilError as error:
        tell("failed", str(error), True)
    except Exception:
        tell("failed", traceback.format_exc(), False)
    else:
        tell("done")


def _die_with_parent() -> None:
    """Else a killed sweep's cells would train on, beside those of the sweep that goes on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
