"""The Open Inference Protocol v2 over REST."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from splitveil.serve.access import Recorded, note
from splitveil.serve.body import decompress, let_in, read_body, read_head
from splitveil.serve.metadata import (
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from splitveil.serve.model import Model
from splitveil.serve.refusal import RefusedError, fault
from splitveil.serve.rest_infer import BYTES_PER_NUMBER, Infer, parse_object, refusal_parts
from splitveil.serve.service import Service
from splitveil.serve.shares import Caller

Handler = Callable[[Request], Awaitable[Response]]
METRICS_PAUSE = 10
"""Metrics are written anew after so many times what writing took, some milliseconds: who asks for them without end
gets the same text again, and takes a tenth of the time at most."""
_MODEL = "/v2/models/{name}"
_VERSION = _MODEL + "/versions/{version}"


def rest_application(service: Service) -> Starlette:
    """The application that answers REST for a service."""
    rest = _Rest(service)
    infer = Infer(service)
    routes = [
        Route(_MODEL + "/infer", infer, methods=["POST"]),
        Route(_VERSION + "/infer", infer, methods=["POST"]),
        Route("/v2/health/live", rest.free(rest.live)),
        Route("/v2/health/ready", rest.free(rest.ready)),
        *(
            Route(path, rest.guarded(handler), methods=[method])
            for method, path, handler in (
                ("GET", "/v2", rest.server),
                ("GET", "/v2/models/stats", rest.all_statistics),
                ("GET", _MODEL, rest.metadata),
                ("GET", _VERSION, rest.metadata),
                ("GET", _MODEL + "/ready", rest.model_ready),
                ("GET", _VERSION + "/ready", rest.model_ready),
                ("GET", _MODEL + "/config", rest.config),
                ("GET", _VERSION + "/config", rest.config),
                ("GET", _MODEL + "/stats", rest.statistics),
                ("GET", _VERSION + "/stats", rest.statistics),
                ("POST", "/v2/repository/index", rest.index),
                ("POST", "/v2/repository/models/{name}/load", rest.load),
                ("POST", "/v2/repository/models/{name}/unload", rest.unload),
                ("GET", "/metrics", rest.metrics),
            )
        ),
    ]
    recorded = Middleware(Recorded, service.metrics, service.addresses, service.settings.access_log)
    return _application(routes, service, [recorded])


def health_application(service: Service) -> Starlette:
    """Live, ready and metrics alone, for a port of their own, whose clients need no token and leave no line."""
    rest = _Rest(service)
    paths = {"/v2/health/live": rest.live, "/v2/health/ready": rest.ready_for_anybody, "/metrics": rest.metrics}
    return _application([Route(path, rest.free(handler)) for path, handler in paths.items()], service, [])


def _application(routes: list[Route], service: Service, middleware: list[Middleware]) -> Starlette:
    application = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _unrouted})
    # Its redirects would lead to whatever host the client names.
    application.router.redirect_slashes = False
    application.state.service = service
    return application


class _Rest:
    """Every endpoint but inference."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._metrics, self._metrics_until = b"", 0.0

    def guarded(self, handler: Handler) -> Handler:
        """The endpoint for those with a token."""

        async def answer(request: Request) -> Response:
            let_in(self._service, request.scope, read_head(request.scope["headers"]))
            return await handler(request)

        return self.free(answer)

    def free(self, handler: Handler) -> Handler:
        """The endpoint for everybody; what goes wrong becomes an error of the protocol."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except RefusedError as refusal:
                self._service.metrics.refusals.labels(refusal.reason).inc()
                note(reason=refusal.reason)
                return _refused(refusal)
            except Exception as error:
                self._service.metrics.refusals.labels("fault").inc()
                note(reason="fault")
                return _refused(fault(error))

        return answer

    async def live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether an inference of the same caller would be answered."""
        return _ready(self._service.ready_for(self._caller(request)))

    async def ready_for_anybody(self, _: Request) -> Response:
        """Whether an inference of a newcomer would be answered."""
        return _ready(self._service.ready and self._service.connections.fits(()))

    async def server(self, _: Request) -> Response:
        return JSONResponse(server_metadata())

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(model_metadata(self._model(request), self._service.models))

    async def model_ready(self, request: Request) -> Response:
        model = self._model(request)
        ready = self._service.open_to(self._caller(request))
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def config(self, request: Request) -> Response:
        return JSONResponse(model_config(self._model(request)))

    async def statistics(self, request: Request) -> Response:
        return JSONResponse({"model_stats": [model_statistics(self._model(request))]})

    async def all_statistics(self, _: Request) -> Response:
        return JSONResponse({"model_stats": [model_statistics(model) for model in self._service.models.loaded]})

    async def index(self, request: Request) -> Response:
        wishes = await self._object(request)
        return JSONResponse(repository_index(self._service.models, wishes.get("ready") is True))

    async def load(self, request: Request) -> Response:
        wishes = await self._object(request)
        self._service.check_control()
        if wishes.get("parameters"):
            raise RefusedError("invalid", "a model is loaded from its own folder, without parameters")
        await self._service.models.load(request.path_params["name"])
        return JSONResponse({})

    async def unload(self, request: Request) -> Response:
        self._service.check_control()
        await self._service.models.unload(request.path_params["name"])
        return JSONResponse({})

    async def metrics(self, _: Request) -> Response:
        now = time.perf_counter()
        if now >= self._metrics_until:
            self._metrics = self._service.metrics.text()
            end = time.perf_counter()
            self._metrics_until = end + METRICS_PAUSE * (end - now)
        return Response(self._metrics, media_type="text/plain; version=0.0.4; charset=utf-8")

    def _model(self, request: Request) -> Model:
        return self._service.models.get(request.path_params["name"], request.path_params.get("version", ""))

    def _caller(self, request: Request) -> Caller:
        client, head = request.scope.get("client"), read_head(request.scope["headers"])
        return self._service.addresses.caller(client[0] if client else "", head.forwarded)

    async def _object(self, request: Request) -> dict[str, Any]:
        service, head = self._service, read_head(request.scope["headers"])
        caller, numbers = self._caller(request), service.settings.max_json_numbers
        most = min(service.settings.max_body, BYTES_PER_NUMBER * numbers)
        with service.holding(caller) as held:
            body = await read_body(request.receive, head, held, most)
            if head.encoding:
                body = await decompress(body, head.encoding, held, most, service, caller)
            return parse_object(body, numbers) if body.strip() else {}


def _ready(ready: bool) -> Response:
    return JSONResponse({"ready": ready}, 200 if ready else 503)


def _refused(refusal: RefusedError) -> Response:
    status, headers, content = refusal_parts(refusal)
    return Response(content, status, {name.decode(): value.decode() for name, value in headers})


async def _unrouted(_: Request, error: Exception) -> Response:
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
    what = {404: "nothing is served under this path", 405: "this path takes another method"}
    return JSONResponse({"error": what.get(status, "the request was refused")}, status, headers)
