"""Time limits without a new timer for each request, of which one costs a twentieth of what answering takes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Idle:
    """Tells when nothing has begun anew for so many seconds. Its timer looks again where it comes too early.

    Args:
        loop: of the timer.
        seconds: of idleness.
        tell: is called then, and not again before something has begun.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, tell: Callable[[], None]) -> None:
        self._loop, self._seconds, self._tell = loop, seconds, tell
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Wait from now on."""
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def end(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        until = self._since + self._seconds
        if until > self._loop.time():
            self._timer = self._loop.call_at(until, self._look)
        else:
            self._tell()


class Deadline:
    """Ends what takes longer than so many seconds, the same for everything; one timer serves all.

    Args:
        seconds: that a thing may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: dict[asyncio.Task[Any], float] = {}  # by the loop's clock; the first ends first
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, work: Awaitable[T]) -> T:
        """What the work returns; raises `TimeoutError` where it takes too long. Cancels the task that waits for it."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._until[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look, loop)
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._late and not task.uncancel():  # nobody else cancelled it
                raise TimeoutError from None
            raise
        finally:
            self._until.pop(task, None)
            self._late.discard(task)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is late, and come again when the next one would be."""
        self._timer = None
        for task, until in list(self._until.items()):
            if until > loop.time():
                self._timer = loop.call_at(until, self._look, loop)
                break
            del self._until[task]
            self._late.add(task)
            task.cancel()
