"""The client for programs without an event loop: the asynchronous one, on a loop in a thread of its own."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from splitveil.budget import Budget
from splitveil.client.access import Access
from splitveil.client.answer import Answer
from splitveil.client.encoder import EdgeEncoder, Photo
from splitveil.client.patience import Clock, Patience
from splitveil.client.remote import AsyncEdgeClient
from splitveil.codec import Coding
from splitveil.errors import RemoteError

T = TypeVar("T")


class EdgeClient:
    """Answers for photos, of which a server sees nothing but the frames; see `AsyncEdgeClient`.

    May be used by several threads at once, and in a notebook; ``with`` closes its connections. Only an event loop can
    bound the time that a request takes as a whole (name look-up and a server that dribbles included), so it has one.

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
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="splitveil-client", daemon=True)
        self._thread.start()

    def answer(self, photo: Photo, *, subject: str | None = None) -> Answer:
        """The answer for one photo; arguments and errors as of `AsyncEdgeClient.answers`."""
        return self.answers([photo], subject=subject)[0]

    def answers(self, photos: Sequence[Photo], *, subject: str | None = None) -> list[Answer]:
        """Answers for photos, in their order; arguments and errors as of `AsyncEdgeClient.answers`."""
        frames: list[bytes] = []
        for start in range(0, len(photos), self.batch):
            frames += self.encoder.frames(photos[start : start + self.batch])
        self.check_budget(len(frames), subject=subject)
        found: list[Answer] = []
        for start in range(0, len(frames), self.batch):
            found += self.ask(frames[start : start + self.batch], subject=subject)
        return found

    def check_budget(self, photos: int, *, subject: str | None = None) -> None:
        """As `AsyncEdgeClient.check_budget`."""
        self._client.check_budget(photos, subject=subject)

    def ask(self, frames: Sequence[bytes], *, subject: str | None = None) -> list[Answer]:
        """Answers for frames of this client's encoder, in one request; debits and raises as `answers` does."""
        return self._run(self._client.ask(frames, subject=subject))

    def close(self) -> None:
        """Close all connections; a client that is closed cannot be used again."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise RemoteError("this client was closed; open another one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # who stops waiting with Ctrl-C leaves no request behind
            raise
