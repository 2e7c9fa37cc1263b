"""Changes of models that clients ask for: one at a time, and no more waiting than can be done soon."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from splitveil.serve.refusal import RefusedError

MOST_WAITING = 16
"""Changes that wait for their turn. They take no memory to speak of, but time: further ones are told to come back."""

Change = Literal["load", "unload"]
_Task = asyncio.Task[RefusedError | None]


class Changes:
    """Changes in the order in which they were asked for, so that only one bundle is being read.

    Whoever asks for what already waits to be done waits with it: a thousand calls to load a model read it twice, once
    for those that came before the reading began, and once for all others.

    Args:
        make: makes a change of the model of a name; returns why it was refused, if it was.

    Attributes:
        turn: held while a change is made; others that touch models take it, too.
    """

    def __init__(self, make: Callable[[Change, str], Awaitable[RefusedError | None]]) -> None:
        self.turn = asyncio.Lock()
        self._make = make
        self._tasks: set[_Task] = set()
        self._last: dict[str, tuple[Change, _Task]] = {}  # of those that wait, by model

    async def ask(self, change: Change, name: str) -> None:
        """Wait until a change is made; a client that leaves does not stop it.

        Raises:
            RefusedError: it was refused, or too many wait.
        """
        last, task = self._last.get(name, (None, None))
        if task is None or last != change:
            if len(self._tasks) > MOST_WAITING:
                raise RefusedError("busy", "too many models wait to be loaded or unloaded; come again in a second")
            task = asyncio.create_task(self._in_turn(change, name))
            self._last[name] = change, task
            self._tasks.add(task)
            task.add_done_callback(self._settled)
        if refused := await asyncio.shield(task):
            raise RefusedError(refused.reason, str(refused))

    async def _in_turn(self, change: Change, name: str) -> RefusedError | None:
        async with self.turn:
            # From here on the disk is read: who asks now wants what is there later.
            if self._last[name][1] is asyncio.current_task():
                del self._last[name]
            return await self._make(change, name)

    def _settled(self, task: _Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has heard of it; nobody may have
