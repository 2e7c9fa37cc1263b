"""What `os.fork()` must not tear apart: short work that it waits for, and objects that a child must never destroy."""

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LONGEST_WAIT = 5.0  # seconds for which a fork waits; what is under way takes milliseconds, but may hang on a disk


class _Gate:
    """Counts the work under way; whoever forks closes it first."""

    def __init__(self, running: int = 0) -> None:
        self.changed = threading.Condition()
        self.running = running
        self.closed = False


_gate = _Gate()
_mine = threading.local()  # .depth: how much of the running work is this thread's own
_not_for_children: weakref.WeakSet[Any] = weakref.WeakSet()


@contextmanager
def undivided() -> Iterator[None]:
    """Around work during which another thread must not fork.

    A child has the memory of its parent, but only the thread that forked: a lock that another one held stays locked
    for ever, and a transaction of SQLite stays half done. So a fork waits for such work. Do not wait for a network
    in it.
    """
    with _gate.changed:
        if not _depth():  # else the fork waits for this very thread
            _gate.changed.wait_for(lambda: not _gate.closed, _LONGEST_WAIT)
        _gate.running += 1
    _mine.depth = _depth() + 1
    try:
        yield
    finally:
        _mine.depth -= 1
        with _gate.changed:
            _gate.running -= 1
            _gate.changed.notify_all()


def keep_in_children(thing: object) -> None:
    """Never run the destructor of an object in a child, which inherits it.

    For objects whose destructor waits for threads that a child lacks, or writes to sockets that are the parent's.
    """
    with undivided():
        _not_for_children.add(thing)


def _depth() -> int:
    return getattr(_mine, "depth", 0)


def _before() -> None:
    _gate.changed.acquire()
    _gate.closed = True  # else, under load, there would always be some work
    _gate.changed.wait_for(lambda: _gate.running <= _depth(), _LONGEST_WAIT)


def _in_parent() -> None:
    _gate.closed = False
    _gate.changed.notify_all()
    _gate.changed.release()


def _in_child() -> None:
    global _gate
    _gate = _Gate(_depth())
    for thing in list(_not_for_children):  # one reference that nobody gives back, not even at the interpreter's end
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
