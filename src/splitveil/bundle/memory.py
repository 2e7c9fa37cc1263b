"""Large graphs in memory: each of their bytes in one place at a time, from the file to ONNX Runtime.

A graph that is handed over as bytes is in memory three to four times while it is loaded: those bytes, ONNX Runtime's
copy of them, the tensors that it makes of these, and what the C library keeps of all that was freed. So a large graph
is read into memory that can be given back in parts, goes to ONNX Runtime through a pipe, and its memory goes back to
the system as it is written. What was hashed and checked is what is loaded, as the file is read once.

Weights of convolutions stay twice in memory for a moment: ONNX Runtime brings those of all into another order before
it frees one. Several sessions in a row would take less, but give other roundings, and slower runs on several threads.
"""

import contextlib
import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from splitveil.bundle.runtime import ort

Content = bytes | mmap.mmap
"""Of a file. A mapping is emptied by who loads it; it belongs to nobody else."""

LARGE = 8 * 2**20  # bytes; below, copies cost less than a thread and a pipe do
CHUNK = 2**20  # bytes that are written at once, and then given back; a multiple of every page's size
# Versions of ONNX Runtime, as tried, that let other threads of Python run while they read. With others nobody could
# write, and a load would wait for ever; they are given bytes.
LET_WRITE = ((1, 31), (1, 32))
PIPES = Path("/proc/self/fd")  # where a pipe has a path: Linux
_writing: set[int] = set()  # ends of pipes that graphs are being written to

# Parameters of the GNU C library's `mallopt`. Blocks above the first go back to the system once they are freed, as
# memory at the end of the heap does that is longer than the second.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_FIRST = 128 * 2**10  # bytes, the library's own value at the start of a process
_LATER = 32 * 2**20  # bytes, to which the library itself raises it, when a block of that length is freed


def releasable(size: int) -> mmap.mmap | None:
    """Memory for a file of so many bytes that can be given back in parts; None where `handed_over` does not do that."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if _in_parts(size) else None


@contextlib.contextmanager
def handed_over(content: Content) -> Iterator[bytes | str]:
    """What ONNX Runtime is to load within the context: bytes, or the path of a pipe that a large graph comes through.

    The path may be opened once.
    """
    if not _in_parts(len(content)):
        yield bytes(content)
        return
    reading, writing = os.pipe()
    _writing.add(writing)
    writer = threading.Thread(target=_write, args=(content, writing), name="splitveil-load", daemon=True)
    try:
        try:
            writer.start()
        except RuntimeError:  # the system has no more threads
            _close(writing)
            raise
        with _freed_at_once():
            yield str(PIPES / str(reading))
    finally:
        os.close(reading)  # ends the writer, too, should nobody have read all
        if writer.ident is not None:
            writer.join()


def give_back_memory() -> None:
    """Return to the system what was freed: the GNU C library keeps much of it, above all that of other threads."""
    _libc("malloc_trim", 0)


def _write(content: Content, pipe: int) -> None:
    """Write all of a file, and give back what was written."""
    try:
        with memoryview(content) as view:
            for begin in range(0, len(view), CHUNK):
                at, end = begin, min(begin + CHUNK, len(view))
                while at < end:
                    at += os.write(pipe, view[at:end])
                if isinstance(content, mmap.mmap):
                    content.madvise(mmap.MADV_DONTNEED, begin, end - begin)
    except BrokenPipeError:  # ONNX Runtime gave up; its error says why
        pass
    finally:
        _close(pipe)


def _close(pipe: int) -> None:
    _writing.discard(pipe)
    os.close(pipe)


def _close_all() -> None:
    """In a fork, which has no writer: a pipe ends once nobody can write to it."""
    while _writing:
        os.close(_writing.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)


@contextlib.contextmanager
def _freed_at_once() -> Iterator[None]:
    """Blocks as large as tensors go back to the system when they are freed; else each step of a load adds its own."""
    _libc("mallopt", _MMAP_THRESHOLD, _FIRST)
    try:
        yield
    finally:  # new pages for each array would slow a server down
        _libc("mallopt", _MMAP_THRESHOLD, _LATER)
        _libc("mallopt", _TRIM_THRESHOLD, 2 * _LATER)


def _libc(name: str, *values: int) -> None:
    """Call a function of the GNU C library, where there is one."""
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)
        if function is not None:
            function(*values)


def _in_parts(size: int) -> bool:
    """Whether a file of so many bytes goes to ONNX Runtime through a pipe."""
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    return size >= LARGE and PIPES.is_dir() and version in LET_WRITE
