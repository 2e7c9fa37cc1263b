"""How much may be logged of what strangers cause: a budget of bytes for each kind of line, and one for all of them."""

import logging
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

KINDS = 256
"""Kinds of lines whose budgets are remembered; the one that was not used for longest is forgotten first."""
LABELS = 64
"""Pairs of logger and event that are counted apart, so that no metric grows without end."""


@dataclass
class Bucket:
    """A budget that fills up again with time.

    Attributes:
        burst: bytes that it holds at most, and at first.
        hourly: bytes that it gains in an hour.
    """

    burst: int
    hourly: int
    _left: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._at = self.burst, time.monotonic()

    def open(self) -> bool:
        """Whether anything is left. The last line may take more than that, and is paid for later."""
        now = time.monotonic()
        self._left = min(self.burst, self._left + (now - self._at) * self.hourly / 3600)
        self._at = now
        return self._left > 0

    def spend(self, size: int) -> None:
        """Take note of a line of so many bytes."""
        self._left -= size


@dataclass
class Budget:
    """What all lines of one sort may take: a share for each kind, and less for all than the sum of many shares.

    In an hour at most ``burst + hourly`` bytes, and one line more for each of the two.
    """

    burst: int
    hourly: int
    kind_burst: int
    kind_hourly: int
    _all: Bucket = field(init=False)
    _kinds: OrderedDict[object, Bucket] = field(init=False, default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._all = Bucket(self.burst, self.hourly)

    def open(self, kind: object) -> bool:
        """Whether a line of this kind may be written."""
        bucket = self._kinds.get(kind)
        if bucket is None:
            if len(self._kinds) >= KINDS:
                self._kinds.popitem(last=False)
            bucket = self._kinds[kind] = Bucket(self.kind_burst, self.kind_hourly)
        self._kinds.move_to_end(kind)
        return bucket.open() and self._all.open()

    def spend(self, kind: object, size: int) -> None:
        """Take note of a line of so many bytes, for which `open` was asked."""
        self._kinds[kind].spend(size)
        self._all.spend(size)


class Throttle:
    """Decides which records are written. Not locked: its handler is.

    A record that says ``own`` is the operator's and always written. One that names a ``caller`` is of an audit, which
    has a budget of its own, so that no other flood hides a control call. Everything else may be caused by strangers.
    Together they stay below 1 MB an hour.

    Attributes:
        suppressed: lines that were not written, by logger and event, since the start.
    """

    def __init__(self) -> None:
        self.suppressed: Counter[tuple[str, str]] = Counter()
        self._unsaid: Counter[tuple[str, str]] = Counter()
        kibibyte = 2**10
        # A fault's line has some 2 kB, an audit's 0.25: a dozen of each fault at once, hundreds of control calls.
        self._strangers = Budget(96 * kibibyte, 384 * kibibyte, 24 * kibibyte, 64 * kibibyte)
        self._audit = Budget(160 * kibibyte, 192 * kibibyte, 96 * kibibyte, 96 * kibibyte)

    def open(self, record: logging.LogRecord) -> bool:
        """Whether a record is written; if not, it is counted."""
        if getattr(record, "own", False):
            return True
        budget, kind = self._place(record)
        if budget.open(kind):
            return True
        self.count(record)
        return False

    def spend(self, record: logging.LogRecord, size: int) -> None:
        """Take note of what `open` let through."""
        if not getattr(record, "own", False):
            budget, kind = self._place(record)
            budget.spend(kind, size)

    def count(self, record: logging.LogRecord) -> None:
        """Count a record that is not written."""
        # Events of our own are constants; those of libraries may hold what a stranger sent.
        label = (record.name, record.msg if record.name.startswith("splitveil") else "")
        if label not in self.suppressed and len(self.suppressed) >= LABELS:
            label = ("other", "")
        self.suppressed[label] += 1
        self._unsaid[label] += 1

    def unsaid(self) -> dict[str, int]:
        """How many lines were suppressed since the last call, by logger and event, for a line that says so."""
        said = {f"{logger} {event}".rstrip(): number for (logger, event), number in self._unsaid.most_common(16)}
        if rest := self._unsaid.total() - sum(said.values()):
            said["others"] = rest
        self._unsaid.clear()
        return said

    def _place(self, record: logging.LogRecord) -> tuple[Budget, object]:
        caller = getattr(record, "caller", None)
        if caller is not None:
            return self._audit, caller
        return self._strangers, (record.name, record.levelno, record.pathname, record.lineno)
