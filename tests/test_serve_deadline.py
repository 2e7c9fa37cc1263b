"""Time limits, by a clock that the test sets."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

import pytest

from splitveil.serve.deadline import Deadline, Idle


class Loop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(selectors.SelectSelector())

    def time(self) -> float:
        return self.now

    async def at(self, now: float) -> None:
        """Set the clock, and let everything happen that is due."""
        self.now = now
        for _ in range(5):
            await asyncio.sleep(0)


def run(loop: Loop, work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(work)


def test_idleness_is_told_once_after_the_last_beginning() -> None:
    loop = Loop()
    told: list[float] = []
    idle = Idle(loop, 10.0, lambda: told.append(loop.now))

    async def work() -> None:
        idle.begin()
        await loop.at(6.0)
        idle.begin()
        for now in (10.5, 15.5):
            await loop.at(now)
            assert told == []
        await loop.at(16.5)
        await loop.at(50.0)
        assert told == [16.5]
        idle.begin()
        idle.end()
        await loop.at(100.0)
        assert told == [16.5]

    run(loop, work())


def test_what_takes_too_long_ends_in_time_and_nothing_else_does() -> None:
    loop = Loop()
    deadline = Deadline(10.0)

    async def work() -> None:
        never: asyncio.Future[int] = loop.create_future()
        tasks = []
        for now in (0.0, 4.0, 8.0):
            await loop.at(now)
            tasks.append(asyncio.create_task(deadline.wait(asyncio.shield(never))))
            await loop.at(now)
        first, second, third = tasks
        last = asyncio.create_task(deadline.wait(loop.create_future()))
        await loop.at(9.0)
        await loop.at(10.5)
        assert first.done()
        assert not second.done()
        with pytest.raises(TimeoutError):
            await first
        second.cancel()  # by somebody else, as where a client goes away
        await loop.at(11.0)
        assert second.cancelled()
        never.set_result(7)
        await loop.at(12.0)
        await loop.at(19.5)
        assert third.result() == 7
        assert last.done()
        assert isinstance(last.exception(), TimeoutError)

    run(loop, work())
