"""Files that are read again while the server runs: at SIGHUP all of them, and bundles when they change on disk."""

import asyncio
import logging
from pathlib import Path

from splitveil.errors import ServeError
from splitveil.serve.logs import own
from splitveil.serve.refusal import fault
from splitveil.serve.service import Service
from splitveil.serve.tls import Certificates
from splitveil.serve.tokens import Tokens

_log = logging.getLogger("splitveil.serve")


async def reload_when_asked(service: Service, certificates: Certificates | None, asked: asyncio.Event) -> None:
    """Read tokens, certificate and bundles again each time the event is set; what is wrong leaves the old in place."""
    while True:
        await asked.wait()
        asked.clear()
        try:
            service.tokens = Tokens(service.settings.token_file)
            if certificates:
                certificates.reload()
            await service.models.reload()
        except ServeError as error:
            _log.error("reload refused", extra=own(reason=str(error)))
        except Exception as error:
            fault(error)  # whatever it is, the server goes on
        else:
            _log.info("reloaded", extra=own())


async def watch(service: Service) -> None:
    """Load bundles that change on disk."""
    looks: dict[Path, tuple[object, ...]] = {}
    while True:
        await asyncio.sleep(service.settings.reload)
        try:
            looks = await service.models.refresh(looks)
        except Exception as error:
            fault(error)  # whatever it is, looking goes on
