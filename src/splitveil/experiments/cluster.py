"""Computing cells on a Ray cluster: one task per cell, rows written by the driver as they land."""

import os
import secrets
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from splitveil.data import Progress
from splitveil.errors import ExperimentError, MissingExtraError, SplitveilError
from splitveil.experiments.cells import Cell, Compute, Place, Row, compute_row, row_path, slug, write_row
from splitveil.experiments.sweep import Failure
from splitveil.files import is_there
from splitveil.telemetry import switch_off

_UNITS = 100  # of progress per cell
_POLL = 1.0  # seconds between two looks at the progress within cells
_QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # of a Ray that we start: no accelerator is hidden


def sweep_on_ray(
    experiment: str,
    compute: Compute,
    cells: Sequence[Cell],
    folder: Path,
    place: Place,
    *,
    address: str | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> list[Failure]:
    """Compute the cells that have no file in ``folder`` yet, as `sweep` does, by tasks of a Ray cluster.

    Every cell is a task with one CPU, one torch thread (and one GPU where the place's device is one) in a fresh
    process. The workers return rows and this process writes them, so ``folder`` may be local. What the cells
    themselves use must be visible to every worker under the same paths: ``place.runs`` with its trained models, the
    data root, and an installed splitveil. A connection that this process has already made is used, and left open.

    Args:
        experiment: the name for the rows.
        compute: a function of a module that the workers can import, called as (cell, place, report).
        cells: the most important first.
        folder: of the rows.
        place: where to compute.
        address: of a running cluster, such as "auto" or "host:6379"; None: the connection that this process has, else
            a Ray on this machine alone, which is shut down in the end.
        jobs: tasks at once; the cluster's CPUs where not given.
        progress: called as (done, in all, text), in hundredths of a cell.

    Returns:
        The cells that failed; the others are there.

    Raises:
        MissingExtraError: Ray is not installed.
        ExperimentError: jobs is below 1, no cluster answers, or this process is connected to one already.
    """
    if jobs is not None and jobs < 1:
        raise ExperimentError(f"jobs must be at least 1, not {jobs}")
    missing = [cell for cell in cells if not is_there(row_path(folder, cell))]
    if not missing:
        return []
    with _connected(address) as ray:
        board = _Board(ray, len(missing), progress)
        start = _starter(ray, experiment, compute, place, board)
        most = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting, running, failures = list(missing), dict[Any, Cell](), list[Failure]()
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    cell = waiting.pop(0)
                    running[start(cell)] = cell
                ready, _ = ray.wait(list(running), timeout=_POLL)
                for task in ready:
                    cell = running.pop(task)
                    failed = _land(_outcome(ray, task, cell), cell, folder)
                    failures += failed
                    board.end(cell, "failed" if failed else "done")
                board.look()
        finally:
            for task in running:
                ray.cancel(task, force=True)
            board.close()
    return failures


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """The module ray, connected; what was started or connected here ends here."""
    switch_off()  # Ray's processes inherit it
    if address is None:
        # Who reaches Ray's ports runs code, so that they ask for a token, which is known here alone.
        guarded = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        for name, value in (_QUIET if "RAY_AUTH_MODE" in os.environ else _QUIET | guarded).items():
            os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("a sweep on a cluster needs the package 'ray': pip install 'splitveil[ray]'") from error
    ours = not ray.is_initialized()
    if not ours and address is not None:
        raise ExperimentError("this process is connected to a Ray cluster already; leave the address out to use it")
    if ours:
        # "local" also where the variable RAY_ADDRESS names a cluster: nobody asked for that one here.
        options = {"address": "local", "include_dashboard": False} if address is None else {"address": address}
        try:
            ray.init(**options, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ExperimentError(f"no Ray cluster answers at {address or 'this machine'} ({error})") from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _starter(ray: Any, experiment: str, compute: Compute, place: Place, board: "_Board") -> Any:
    """A function that starts a cell's task."""
    options = {"num_cpus": 1, "num_gpus": int(place.device.startswith("cuda")), "max_retries": 0}
    # A process ends with its cell, and gives its memory back. No retries: a cell that kills its process would again.
    remote = ray.remote(**options, max_calls=1)(_work)
    return lambda cell: remote.remote(experiment, compute, cell, place, board.actor)


def _work(experiment: str, compute: Compute, cell: Cell, place: Place, actor: Any) -> Row | Failure:
    """A task: one cell's row, or why there is none."""
    torch.set_num_threads(1)

    def report(share: float, text: str) -> None:
        if actor is not None:
            actor.tell.remote(slug(cell), share, f"{cell.label}: {text}")

    try:
        return compute_row(experiment, compute, cell, place, report)
    except SplitveilError as error:
        return Failure(slug(cell), str(error), True)
    except Exception:
        return Failure(slug(cell), traceback.format_exc(), False)


def _outcome(ray: Any, task: Any, cell: Cell) -> Row | Failure:
    try:
        found: Row | Failure = ray.get(task)
    except ray.exceptions.RayTaskError as error:  # before or after our code, such as a compute that is not there
        return Failure(slug(cell), str(error), False)
    except ray.exceptions.RayError as error:
        kind = type(error).__name__
        return Failure(
            slug(cell), f"its worker died ({kind}: killed, or out of memory); run again, with fewer jobs", True
        )
    return found


def _land(outcome: Row | Failure, cell: Cell, folder: Path) -> list[Failure]:
    if isinstance(outcome, Failure):
        return [outcome]
    try:
        write_row(row_path(folder, cell), outcome)
    except SplitveilError as error:
        return [Failure(slug(cell), str(error), True)]
    return []


class _Shares:
    """An actor: how far each cell is, and the last word of any."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self.text = ""

    def tell(self, cell: str, share: float, text: str) -> None:
        self.shares[cell], self.text = share, text

    def read(self) -> tuple[dict[str, float], str]:
        return self.shares, self.text


class _Board:
    """Adds up the progress of all cells; without anyone to show it to, it has no actor."""

    def __init__(self, ray: Any, cells: int, progress: Progress | None) -> None:
        self.ray, self.cells, self.progress = ray, cells, progress
        self.ended: set[str] = set()
        self.shown = 0
        # On the driver's machine, so that it lives as long as the sweep.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self.actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_Shares).remote() if progress else None
        self._show(0.0, f"{cells} cells to compute")

    def end(self, cell: Cell, how: str) -> None:
        self.ended.add(slug(cell))
        self._show(0.0, f"{cell.label}: {how}")

    def look(self) -> None:
        """Ask how far the cells are; an actor that is not up yet, or no more, stops nothing."""
        if self.actor is not None:
            with suppress(self.ray.exceptions.RayError):
                shares, text = self.ray.get(self.actor.read.remote(), timeout=_POLL)
                within = sum(share for cell, share in shares.items() if cell not in self.ended)
                if text:
                    self._show(within, text)

    def close(self) -> None:
        if self.actor is not None:
            self.ray.kill(self.actor)

    def _show(self, within: float, text: str) -> None:
        if self.progress:
            # A cell that has ended may still be counted by what it last told, so never backwards.
            self.shown = max(self.shown, int(_UNITS * (len(self.ended) + within)))
            self.progress(self.shown, _UNITS * self.cells, text)
