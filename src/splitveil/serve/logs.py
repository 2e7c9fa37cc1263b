"""Structured logs: one JSON object per line on stderr, written by a thread, and never more than a disk can take."""

import io
import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from splitveil.serve.throttle import Throttle

LONGEST_TEXT = 1000
"""Characters of an event or of a field."""
LONGEST_TRACEBACK = 4000
"""Characters of a traceback, of which the end says most."""
HELD = 4 * 2**20
"""Bytes of lines that wait for a slow stderr; what comes beyond that is dropped and counted."""
PATIENCE = 2.0
"""Seconds that the end of a process waits for a slow stderr."""
SUMMARY_SECONDS = 60.0
"""Between two lines that say how many others were suppressed."""

_log = logging.getLogger("splitveil.serve")


def own(**fields: Any) -> dict[str, Any]:
    """For ``extra``: the fields of a line that no stranger can cause, which is always written."""
    return {"fields": fields, "own": True}


class JsonLines(logging.Formatter):
    """Records as JSON objects: time, level, logger, event, and the fields that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, in ASCII, without control characters."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        content = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage()[:LONGEST_TEXT],
            **{name: _short(name, value) for name, value in getattr(record, "fields", {}).items()},
        }
        if record.exc_info and record.exc_info[1]:
            content["traceback"] = places(record.exc_info[1])
        return json.dumps(content, default=lambda value: str(value)[:LONGEST_TEXT])


def places(error: BaseException) -> str:
    """Where an exception and those behind it came from: classes and places, not texts, which may hold values."""
    found: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        found += [type(cause).__qualname__, *traceback.format_tb(cause.__traceback__)]
        cause = cause.__cause__ or cause.__context__
    return "\n".join(found)[-LONGEST_TRACEBACK:]


class Lines(logging.Handler):
    """Writes lines to a file descriptor in a thread of its own, so that a slow reader of it stops nobody.

    Args:
        descriptor: of an open file, usually stderr.

    Attributes:
        throttle: decides what is written.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self.throttle = Throttle()
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._held = 0
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._write_on, name="splitveil-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line to the thread, if it may be written; never blocks, and never raises."""
        if not self.throttle.open(record):
            return None
        try:
            line = self.format(record).encode() + b"\n"
        except Exception:  # a library's arguments that do not fit its own text
            return self.throttle.count(record)
        if self._put(line):
            return self.throttle.spend(record, len(line))
        return self.throttle.count(record)

    def flush(self) -> None:
        """Wait until all is written, though not for long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held, PATIENCE)

    def close(self) -> None:
        """Say what was suppressed, write what waits, and end the thread."""
        self._summarise()
        self.flush()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        super().close()

    def _put(self, line: bytes) -> bool:
        with self._changed:
            if self._held + len(line) > HELD:
                return False
            self._waiting.append(line)
            self._held += len(line)
            self._changed.notify_all()
        return True

    def _write_on(self) -> None:
        due = time.monotonic() + SUMMARY_SECONDS
        while not self._ended:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended, max(0.0, due - time.monotonic()))
                lines = b"".join(self._waiting)
                self._waiting.clear()
            _write(self._descriptor, lines)
            with self._changed:
                self._held -= len(lines)
                self._changed.notify_all()
            if time.monotonic() >= due:
                self._summarise()
                due = time.monotonic() + SUMMARY_SECONDS

    def _summarise(self) -> None:
        self.acquire()
        try:
            lines = self.throttle.unsaid()
        finally:
            self.release()
        if lines:
            said = ("lines suppressed", (), None)
            record = _log.makeRecord(_log.name, logging.WARNING, __file__, 0, *said, extra=own(lines=lines))
            self._put(self.format(record).encode() + b"\n")


@contextmanager
def logging_to_stderr(level: str = "INFO") -> Iterator[Lines]:
    """Send all that this process logs to stderr as JSON lines: warnings and lost exceptions too."""
    plain = sys.stderr
    handler = Lines(plain.fileno())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    sys.stderr = _Printed()
    sys.unraisablehook = lambda lost: _lost(lost.exc_value)
    threading.excepthook = lambda lost: _lost(lost.exc_value)
    # What uvicorn says of each stranger's bad request is counted by the metrics.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    try:
        yield handler
    finally:
        sys.stderr = plain
        root.handlers[:] = [logging.NullHandler()]  # without any, Python would print what comes now as it is
        handler.close()
        sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
        logging.captureWarnings(False)


class _Printed(io.TextIOBase):
    """In place of stderr: what a library prints, as gRPC prints tracebacks of calls that strangers break off."""

    def write(self, text: str, /) -> int:
        """A line of the log for each of the text, under the same budget as all others."""
        for line in filter(None, map(str.strip, text.splitlines())):
            _log.warning("printed by a library", extra={"fields": {"text": line}})
        return len(text)


def _lost(error: BaseException | None) -> None:
    _log.error("lost exception", extra={"fields": {"traceback": places(error) if error else ""}})


def _short(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return value[-LONGEST_TRACEBACK:] if name == "traceback" else value[:LONGEST_TEXT]


def _write(descriptor: int, lines: bytes) -> None:
    """All of it, also where the descriptor does not block; what nobody can take is lost."""
    view = memoryview(lines)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError:
            return
