"""Structured logs: one JSON object per line."""

import json
import logging
import sys
import time
import traceback


class JsonLines(logging.Formatter):
    """Records as JSON objects: time, level, logger, event, and the fields that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        content = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            content["traceback"] = places(record.exc_info[1])
        return json.dumps(content, default=str)


def places(error: BaseException) -> str:
    """Where an exception and those behind it came from: classes and places, not texts, which may hold values."""
    found: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        found += [type(cause).__qualname__, *traceback.format_tb(cause.__traceback__)]
        cause = cause.__cause__ or cause.__context__
    return "\n".join(found)


def log_to_stderr(level: str = "INFO") -> None:
    """Send all logs of this process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line for each stranger's bad request would let them fill the disk; the metrics count those.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
