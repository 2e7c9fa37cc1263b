"""What signals do while the server runs: SIGTERM and SIGINT stop it, SIGHUP makes it read its files again.

So nginx and gunicorn do. Only where the server was started from a terminal, SIGHUP means that this has gone, and stops
it; and where it was ignored at the start, as by nohup, it stays ignored.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asked:
    """What was asked by signals.

    Attributes:
        stop: set once the server is to stop.
        reload: set each time the files are to be read again.
    """

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    reload: asyncio.Event = field(default_factory=asyncio.Event)


@contextmanager
def listening() -> Iterator[Asked]:
    """Events that signals set; what they did before, they do again afterwards."""
    loop, asked = asyncio.get_running_loop(), Asked()
    effects = {signal.SIGTERM: asked.stop.set, signal.SIGINT: asked.stop.set}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        effects[signal.SIGHUP] = asked.stop.set if _in_terminal() else asked.reload.set
    before = {number: signal.getsignal(number) for number in effects}
    for number, effect in effects.items():
        loop.add_signal_handler(number, effect)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: Python does not know it


def _in_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:
        return False
