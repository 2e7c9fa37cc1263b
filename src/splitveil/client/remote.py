"""Photos to answers by way of a server, asynchronously; the synchronous client runs on it too."""

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from splitveil.budget import Budget
from splitveil.bundle import EdgeManifest, from_frames
from splitveil.client.access import Access
from splitveil.client.answer import Answer, Sent
from splitveil.client.connection import Connection
from splitveil.client.encoder import EdgeEncoder, Photo, in_batches
from splitveil.client.patience import Clock, Patience
from splitveil.client.protocol import configured_identity, inference_body, longest_answer, read_logits, read_object
from splitveil.codec import Coding
from splitveil.errors import BudgetError, RemoteError, SplitveilError

LARGEST_BATCH = 32
"""Frames in one request at most; more photos are sent in several."""
LARGEST_BODY = 2**20
"""Bytes of frames in one request at most, unless one frame has more."""
_MAY_BE_ANOTHER = (400, 404)  # what a server answers to frames of a bundle that it does not serve any more
_MOST_VERSIONS = 16  # looked through


class AsyncEdgeClient:
    """Answers for photos, of which a server sees nothing but the frames.

         photo ─► EdgeEncoder ─► frame ═ POST /v2/models/NAME/infer ═► logits ─► Answer

    Before the first frame leaves, the server must have said that it holds the other half of this very bundle.
    Requests that fail on the way are repeated, which is safe: an inference changes nothing on the server. May be used
    for many requests at once within one event loop; ``async with`` closes its connections. Another loop, or a child
    after `os.fork()`, opens connections of its own.

    Args:
        bundle: the folder ``edge`` that `splitveil export` wrote.
        url: https://HOST[:PORT], with a path where the server lies behind one. Proxies of the environment are not used.
        m: components to send; what the bundle's policy says where not given.
        coding: of the coefficients; likewise.
        public_key: PEM file of an Ed25519 key; the bundle must then carry its signature.
        access: certificates and token.
        patience: limits of each request.
        budget: debited for every request before its first byte leaves, once however often it is repeated, and whether
            or not an answer comes; what would exceed it is not sent. Only for certified bundles.
        transport: of httpx, in place of the network.
        clock: of the waits between attempts.

    Attributes:
        encoder: what makes the frames.
        batch: photos in one request at most.

    Raises:
        BundleError, WireError: see `EdgeEncoder`.
        BudgetError: there is a budget, but the bundle is not certified.
        RemoteError: the address or what it is to be reached with cannot be used.
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
        self.encoder = EdgeEncoder(bundle, m=m, coding=coding, public_key=public_key)
        self._manifest = self.encoder.manifest
        self._budget = budget
        if budget is not None:
            check_certified(self._manifest)
        frame_bytes = self._manifest.messages.frame_bytes(self.encoder.m, self.encoder.coding)
        self.batch = max(1, min(LARGEST_BATCH, LARGEST_BODY // frame_bytes))
        self._connection = Connection(url, access or Access(), patience or Patience(), transport, clock or Clock())
        self._known: str | None = None
        self._asking: tuple[object, asyncio.Lock] | None = None

    async def answer(self, photo: Photo, *, subject: str | None = None) -> Answer:
        """The answer for one photo; arguments and errors as of `answers`."""
        return (await self.answers([photo], subject=subject))[0]

    async def answers(self, photos: Iterable[Photo], *, subject: str | None = None) -> list[Answer]:
        """Answers for photos, in their order, in requests of at most `batch`.

        Of a list, all are read, and the budget is checked for all, before the first request leaves. Of a generator no
        more are taken than the next request carries, so that any number of photos fits into memory.

        Args:
            photos: of one subject, where there is a budget. Threads of this client read them.
            subject: whose budget is debited.

        Raises:
            DataError, ShapeError: a photo cannot be read or does not fit.
            BudgetSpentError: they would exceed the budget, and nothing was sent; or other programs spent it meanwhile,
                or it does not last for all photos of a generator, and this request was not sent.
            BudgetError: the budget cannot be used, or only one of it and a subject is given; nothing was sent.
            RemoteError: the server cannot be reached in time, fails, refuses, holds another bundle, or answers with
                what is no answer.

        An error after the first answers says how many there are, and holds them as its attribute ``answers``.
        """
        requests, found = self.requests(photos, subject=subject), list[Answer]()
        with answered(found):
            # In a thread, so that other requests go on while this one's photos are encoded.
            while (frames := await asyncio.to_thread(next, requests, None)) is not None:
                found += await self.ask(frames, subject=subject)
        return found

    def requests(self, photos: Iterable[Photo], *, subject: str | None = None) -> Iterator[list[bytes]]:
        """Frames of photos, request by request, as `answers` sends them; raises as it does before it sends."""
        self._check_subject(subject)
        batches = (self.encoder.frames(some) for some in in_batches(photos, self.batch))
        if isinstance(photos, Sized):
            all_ = list(batches)
            self.check_budget(sum(map(len, all_)), subject=subject)
            yield from all_
        else:
            yield from batches

    def check_budget(self, photos: int, *, subject: str | None = None) -> None:
        """See that a subject's budget allows for so many photos, where there is one; debits nothing.

        Raises:
            BudgetSpentError: it does not.
            BudgetError: as of `answers`.
        """
        self._check_subject(subject)
        if self._budget is not None and subject is not None and photos:
            self._budget.check(subject, distinct=check_certified(self._manifest), queries=photos)

    async def ask(self, frames: Sequence[bytes], *, subject: str | None = None) -> list[Answer]:
        """Answers for frames of this client's encoder, in one request; debits and raises as `answers` does."""
        self._check_subject(subject)
        if not frames:
            return []
        body, headers = inference_body(frames)
        rows, classes = len(frames), self._manifest.classes
        most = longest_answer(rows, len(classes))
        place = await self._place()
        if self._budget is not None and subject is not None:
            await asyncio.to_thread(self._debit, self._budget, subject, frames)
        with debited(rows if self._budget is not None else 0):
            reply = await self._connection.post(place + "/infer", body, headers, most)
            if reply.status in _MAY_BE_ANOTHER:
                # A bundle may have been replaced since the server was met; then look for ours once more.
                self._known = None
                if (moved := await self._place()) != place:
                    reply = await self._connection.post(moved + "/infer", body, headers, most)
            if reply.status != 200:
                raise self._connection.refusal(reply)
            logits = read_logits(reply.body, reply.headers, rows, len(classes))
        sent = Sent(reply.request_bytes, rows, reply.attempts)
        best = [int(row.argmax()) for row in logits]
        return [
            Answer(classes[index], index, row, frame, sent)
            for index, row, frame in zip(best, logits, frames, strict=True)
        ]

    async def close(self) -> None:
        """Close all connections."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _check_subject(self, subject: str | None) -> None:
        if (self._budget is None) != (subject is None):
            raise BudgetError("a budget and a subject whom it is debited for go together; give both or neither")

    def _debit(self, budget: Budget, subject: str, frames: Sequence[bytes]) -> None:
        # Whoever made them: only frames of the bundle's own form are of the number that is debited.
        from_frames(frames, self._manifest.messages, self._manifest.short_identity)
        budget.debit(subject, distinct=check_certified(self._manifest), queries=len(frames))

    async def _place(self) -> str:
        """The path below which the server serves the other half of this bundle; asked for once.

        Raises:
            RemoteError: it serves no such bundle.
        """
        here = asyncio.get_running_loop()
        if self._asking is None or self._asking[0] != (os.getpid(), here):
            # A lock belongs to one loop; and in a child it may be held by a task that is not there.
            self._asking = (os.getpid(), here), asyncio.Lock()
        async with self._asking[1]:
            if self._known is None:
                self._known = await self._find()
            return self._known

    async def _find(self) -> str:
        path, ours = f"/v2/models/{self._manifest.name}", self._manifest.identity
        served = await self._metadata(path)
        if served.get("identity") == ours:
            return path
        versions = served.get("versions")
        for version in versions[:_MOST_VERSIONS] if isinstance(versions, list) else ():
            # An older version may still be served beside the newest, which answers where none is named.
            older = f"{path}/versions/{version}"
            if isinstance(version, str) and version.isalnum() and (await self._metadata(older)).get("identity") == ours:
                return older
        theirs = served.get("identity")
        shown = f"{theirs[:12]}…" if isinstance(theirs, str) and theirs.isalnum() else "no identity"
        raise RemoteError(
            f"{self._connection.who} holds another bundle of {self._manifest.name} ({shown}) than this client "
            f"({ours[:12]}…); use the two that were exported together"
        )

    async def _metadata(self, path: str) -> dict[str, Any]:
        reply = await self._connection.get(path)
        if reply.status != 200:
            raise self._connection.refusal(reply)
        said = read_object(reply.body)
        if "identity" not in said:  # Triton has no room for it there, but among the parameters of its configuration
            reply = await self._connection.get(f"{path}/config")
            said["identity"] = configured_identity(read_object(reply.body)) if reply.status == 200 else None
        return said


@contextmanager
def answered(found: Sequence[Answer]) -> Iterator[None]:
    """An error within says how many photos were answered before, and keeps their answers: they are paid for."""
    try:
        yield
    except BaseException as error:
        if found:
            vars(error)["answers"] = list(found)
            _append(error, f"{len(found)} photos were answered before, see the error's attribute 'answers'")
        raise


@contextmanager
def debited(photos: int) -> Iterator[None]:
    """An error within says that so many photos stay debited, as nobody knows what arrived."""
    try:
        yield
    except SplitveilError as error:
        if photos:
            _append(error, f"{photos} {'photo stays' if photos == 1 else 'photos stay'} debited")
        raise


def _append(error: BaseException, sentence: str) -> None:
    if isinstance(error, SplitveilError):
        error.args = (f"{error}; {sentence}", *error.args[1:])
    else:
        error.add_note(sentence)


def check_certified(manifest: EdgeManifest) -> int:
    """How many different messages a bundle has; raises `BudgetError` where there is no such number to debit."""
    if manifest.messages.distinct is None:
        raise BudgetError(
            f"the bundle {manifest.name} is not certified: there is no finite number of messages to debit; "
            "use one of finite messages, or no budget"
        )
    return manifest.messages.distinct
