"""Ends what takes longer than it may; one thread for all, that lives only while there is something to watch."""

import os
import threading
import time
from collections.abc import Callable

CHECK_SECONDS = 0.5  # between two looks; limits are of half a minute and more


class Watchdog:
    """Calls a function once a deadline has passed, unless the work has ended before.

    A timer for each run would cost a thread each, which is more than many graphs take.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[object, tuple[float, Callable[[], None]]] = {}
        self._alive = False

    def begin(self, seconds: float, stop: Callable[[], None]) -> object:
        """Call ``stop``, again and again, from so many seconds on until `end` gets what this returns."""
        key = object()
        with self._lock:
            self._watched[key] = (time.monotonic() + seconds, stop)
            if not self._alive:
                self._alive = True
                threading.Thread(target=self._watch, name="splitveil-watchdog", daemon=True).start()
        return key

    def end(self, key: object) -> None:
        """The work has ended."""
        with self._lock:
            self._watched.pop(key, None)

    def _watch(self) -> None:
        while True:
            time.sleep(CHECK_SECONDS)
            with self._lock:
                if not self._watched:
                    self._alive = False
                    return
                now = time.monotonic()
                late = [stop for deadline, stop in self._watched.values() if now >= deadline]
            for stop in late:
                stop()


WATCHDOG = Watchdog()
# A fork has neither the thread nor the work, and might have got the lock as another thread held it.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WATCHDOG.__init__)  # type: ignore[misc]
