"""The client for programs without an event loop: the asynchronous one, on a loop in a thread of its own."""

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from splitveil.budget import Budget
from splitveil.client.access import Access
from splitveil.client.answer import Answer
from splitveil.client.encoder import EdgeEncoder, Photo
from splitveil.client.patience import Clock, Patience
from splitveil.client.remote import AsyncEdgeClient, answered
from splitveil.codec import Coding
from splitveil.errors import RemoteError
from splitveil.forking import keep_in_children, undivided

T = TypeVar("T")


class EdgeClient:
    """Answers for photos, of which a server sees nothing but the frames; see `AsyncEdgeClient`.

    May be used by several threads at once, and in a notebook; ``with`` closes its connections. Only an event loop can
    bound the time that a request takes as a whole (name look-up and a server that dribbles included), so it has one,
    in a thread that begins with the first request. In a child after `os.fork()` it has another one.

    Args:
        bundle, url, m, coding, public_key, access, patience, budget, transport, clock: as of `AsyncEdgeClient`.

    Attributes:
        encoder: what makes the frames.
        batch: photos in one request at most.

    Raises:
        BundleError, WireError, BudgetError, RemoteError: as of `AsyncEdgeClient`.
    """

    def __init__(
        self,
        bundle: str | Path,
        url: str,
        *,
        m: int | None = None,
        coding: Coding | None = None,
        public_key: str | Path | None = None,
        access: Access | None = None,
        patience: Patience | None = None,
        budget: Budget | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._client = AsyncEdgeClient(
            bundle, url, m=m, coding=coding, public_key=public_key, access=access, patience=patience,
            budget=budget, transport=transport, clock=clock,
        )  # fmt: skip
        self.encoder: EdgeEncoder = self._client.encoder
        self.batch: int = self._client.batch
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = False

    def answer(self, photo: Photo, *, subject: str | None = None) -> Answer:
        """The answer for one photo; arguments and errors as of `AsyncEdgeClient.answers`."""
        return self.answers([photo], subject=subject)[0]

    def answers(self, photos: Iterable[Photo], *, subject: str | None = None) -> list[Answer]:
        """Answers for photos, in their order; arguments and errors as of `AsyncEdgeClient.answers`."""
        found: list[Answer] = []
        with answered(found):
            for frames in self._client.requests(photos, subject=subject):
                found += self.ask(frames, subject=subject)
        return found

    def check_budget(self, photos: int, *, subject: str | None = None) -> None:
        """As `AsyncEdgeClient.check_budget`."""
        self._client.check_budget(photos, subject=subject)

    def ask(self, frames: Sequence[bytes], *, subject: str | None = None) -> list[Answer]:
        """Answers for frames of this client's encoder, in one request; debits and raises as `answers` does."""
        return self._run(self._client.ask(frames, subject=subject))

    def close(self) -> None:
        """Close all connections; a client that is closed cannot be used again."""
        with undivided(), self._lock:
            self._closed = True
            # In a child, the loop and its connections are the parent's.
            loop, self._loop = self._loop if self._process == os.getpid() else None, None
        if loop is None:
            return
        self._wait(self._client.close(), loop)
        loop.call_soon_threadsafe(loop.stop)
        assert self._thread is not None
        self._thread.join()
        loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            loop = self._running()
        except BaseException:
            work.close()
            raise
        return self._wait(work, loop)

    def _running(self) -> asyncio.AbstractEventLoop:
        """The loop of this process, begun where there is none yet; raises `RemoteError` after `close`."""
        with undivided(), self._lock:
            if self._closed:
                raise RemoteError("this client was closed; open another one")
            if self._loop is None or self._process != os.getpid():
                self._loop, self._process = asyncio.new_event_loop(), os.getpid()
                keep_in_children(self._loop)
                self._thread = threading.Thread(target=self._loop.run_forever, name="splitveil-client", daemon=True)
                self._thread.start()
            return self._loop

    @staticmethod
    def _wait(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # who stops waiting with Ctrl-C leaves no request behind
            raise
