"""Requests that are waiting are computed together; nobody waits for company longer than the settings say."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

INLINE_SECONDS = 0.002
"""Runs that are expected to be shorter take place in the event loop: a thread and the way back cost as much."""
QUIET_TURNS = 8
"""Turns of the event loop without a new request after which a batch starts: gRPC hands over one request a turn, so
that those which are there already would be computed one by one. A turn in which nothing happens takes microseconds."""
MOST_TURNS = 64


@dataclass(frozen=True, slots=True)
class Run:
    """What happened in one run.

    Attributes:
        rows: that were computed.
        seconds: that it took.
        waited: seconds that each of its requests had waited.
    """

    rows: int
    seconds: float
    waited: list[float]


@dataclass(slots=True)
class _Waiting:
    rows: Array
    future: asyncio.Future[Array]
    since: float


class Batcher:
    """Runs one model: one batch at a time, in the order in which requests came.

    All requests that have arrived are computed together, and while a long batch runs in its thread the next one
    gathers. The rows of one request are never torn apart.

    None of the callables may refer to whatever holds the batcher: a model that is replaced must be freed at once, and
    not when Python next looks for cycles.

    Args:
        run: rows (B, *inside) to results (B, *outside); may be called in a thread.
        mixes: whether rows of different requests are computed together. If not, each request runs alone, so that
            nobody's answer depends on others' rows, whatever the graph does with its batch.
        max_batch: rows in one run.
        max_delay: seconds that the first request of a batch waits for others.
        seconds: that a run of so many rows is expected to take.
        observe: told of each run.
    """

    def __init__(
        self,
        run: Callable[[Array], Array],
        *,
        mixes: bool,
        max_batch: int,
        max_delay: float,
        seconds: Callable[[int], float],
        observe: Callable[[Run], None],
    ) -> None:
        self._run, self._mixes, self._max_batch = run, mixes, max_batch
        self._max_delay = max_delay if mixes else 0.0
        self._seconds, self._observe = seconds, observe
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0  # of all that wait
        self._start: asyncio.Handle | None = None
        self._busy = False
        self._thread = ThreadPoolExecutor(1, "splitveil-run")  # which starts with the first long run

    async def submit(self, rows: Array) -> Array:
        """Results (B, *outside) of rows (B, *inside), B at most max_batch; raises what the run raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Array] = loop.create_future()
        self._waiting.append(_Waiting(rows, future, time.perf_counter()))
        self._rows += len(rows)
        self._plan(loop)
        try:
            return await future
        finally:
            del future  # an error's traceback holds this frame, which would hold the error

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        """See that the next batch will start."""
        if self._busy or not self._waiting:
            return
        if self._start is None and self._max_delay and self._rows < self._max_batch:
            self._start = loop.call_later(self._max_delay, self._next)
        elif self._start is None:
            # Not at once, but after everything that has arrived.
            quiet = QUIET_TURNS if self._mixes else 0
            self._start = loop.call_soon(self._gather, loop, self._rows, quiet, MOST_TURNS)
        elif self._max_delay and self._rows >= self._max_batch:
            self._start.cancel()
            self._start = loop.call_soon(self._next)

    def _gather(self, loop: asyncio.AbstractEventLoop, rows: int, quiet: int, most: int) -> None:
        """Start the batch once nothing new has come for some turns of the loop."""
        if self._rows > rows and self._mixes:
            quiet = QUIET_TURNS
        if self._rows >= self._max_batch or not quiet or not most:
            self._next()
        else:
            self._start = loop.call_soon(self._gather, loop, self._rows, quiet - 1, most - 1)

    def _next(self) -> None:
        self._start = None
        loop = asyncio.get_running_loop()
        batch = self._take()
        if not batch:
            return self._plan(loop)
        begin = time.perf_counter()
        waited = [begin - one.since for one in batch]
        rows = batch[0].rows if len(batch) == 1 else np.concatenate([one.rows for one in batch])
        if self._seconds(len(rows)) > INLINE_SECONDS:
            self._busy = True
            work = loop.run_in_executor(self._thread, self._timed, rows)
            return work.add_done_callback(partial(self._done, loop, batch, waited))
        try:
            results = self._timed(rows)
        except Exception as error:
            _fail(batch, error)
        else:
            self._answer(batch, waited, *results)
        return self._plan(loop)

    def _done(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting], waited: list[float],
        work: asyncio.Future[tuple[Array, float]],
    ) -> None:  # fmt: skip
        self._busy = False
        if work.cancelled() or (error := work.exception()):
            _fail(batch, RuntimeError("a run was cancelled") if work.cancelled() else error)
        else:
            self._answer(batch, waited, *work.result())
        self._plan(loop)

    def _take(self) -> list[_Waiting]:
        """As many whole requests as fit, or one alone; those whose client has left are dropped."""
        batch: list[_Waiting] = []
        count = 0
        while self._waiting:
            size = len(self._waiting[0].rows)
            gone = self._waiting[0].future.done()
            if batch and not gone and (not self._mixes or count + size > self._max_batch):
                break
            one = self._waiting.popleft()
            self._rows -= size
            if not gone:
                batch.append(one)
                count += size
        return batch

    def _timed(self, rows: Array) -> tuple[Array, float]:
        begin = time.perf_counter()
        return self._run(rows), time.perf_counter() - begin

    def _answer(self, batch: list[_Waiting], waited: list[float], results: Array, seconds: float) -> None:
        self._observe(Run(len(results), seconds, waited))
        place = 0
        for one in batch:
            if not one.future.done():
                one.future.set_result(results[place : place + len(one.rows)])
            place += len(one.rows)


def _fail(batch: list[_Waiting], error: BaseException | None) -> None:
    for one in batch:
        if not one.future.done():
            one.future.set_exception(error or RuntimeError("a run failed"))
    batch.clear()  # the error's traceback may hold the batch, which would hold the error
