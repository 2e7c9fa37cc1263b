"""What a connection writes to, and how it stops and goes on reading."""

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl

DROP_PAUSE_SECONDS = 0.02
"""After each piece, of at most 256 KiB, that is read and dropped."""


class Joined:
    """A transport that sends the head and the body of an answer at once: a system call less on either side."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self._ended = False
        self.is_closing, self.abort = transport.is_closing, transport.abort

    def write(self, data: bytes) -> None:
        """Send it in this turn of the loop; nothing, once the last was sent."""
        if self._ended:
            return  # an application that reads on would ask the client to send its body
        if not self._held:
            self._loop.call_soon(self.flush)  # at the latest
        self._held.append(data)

    def flush(self) -> None:
        """Send it now."""
        if self._held and not self._transport.is_closing():  # or the loop would log a line for each
            self._transport.write(b"".join(self._held))
        self._held.clear()

    def end_writing(self) -> None:
        """Send it, and that it was the last."""
        self.flush()
        self._ended = True
        if not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        """Send it, and end."""
        self.flush()
        self._transport.close()


class Flow(FlowControl):
    """Reads no more while there is something that has been read, but not yet been parsed.

    Attributes:
        held: whether there is.
    """

    held = False

    def resume_reading(self) -> None:
        """Read on."""
        if self.read_paused and not self.held:
            super().resume_reading()

    def drop_slowly(self, loop: asyncio.AbstractEventLoop) -> None:
        """What was read is of no use: wait before more is read, or it would cost much time."""
        self.pause_reading()
        loop.call_later(DROP_PAUSE_SECONDS, self._read_on)

    def _read_on(self) -> None:
        if not self._transport.is_closing():
            self.resume_reading()
