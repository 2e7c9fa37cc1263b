"""The Open Inference Protocol v2 over REST."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from splitveil.serve.access import Recorded, note
from splitveil.serve.body import read_body, read_head
from splitveil.serve.metadata import (
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from splitveil.serve.model import Model
from splitveil.serve.refusal import RefusedError, fault
from splitveil.serve.rest_infer import Infer, parse_object, refusal_parts
from splitveil.serve.service import Service

Handler = Callable[[Request], Awaitable[Response]]
_MODEL = "/v2/models/{name}"
_VERSION = _MODEL + "/versions/{version}"


def rest_application(service: Service) -> Starlette:
    """The application that answers REST for a service."""
    rest = _Rest(service)
    infer = Infer(service)
    routes = [
        Route(_MODEL + "/infer", infer, methods=["POST"]),
        Route(_VERSION + "/infer", infer, methods=["POST"]),
        Route("/v2/health/live", rest.live),
        Route("/v2/health/ready", rest.ready),
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
    recorded = Middleware(Recorded, service.metrics, service.settings.access_log)
    application = Starlette(routes=routes, middleware=[recorded], exception_handlers={HTTPException: _unrouted})
    application.state.service = service
    return application


class _Rest:
    """Every endpoint but inference."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def guarded(self, handler: Handler) -> Handler:
        """The endpoint for those with a token; what goes wrong becomes an error of the protocol."""

        async def answer(request: Request) -> Response:
            try:
                head = read_head(request.scope["headers"])
                self._service.tokens.check(head.authorization)
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
        return Response(status_code=200)

    async def ready(self, _: Request) -> Response:
        return Response(status_code=200 if self._service.ready else 503)

    async def server(self, _: Request) -> Response:
        return JSONResponse(server_metadata())

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(model_metadata(self._model(request), self._service.models))

    async def model_ready(self, request: Request) -> Response:
        self._model(request)
        return Response(status_code=503 if self._service.draining else 200)

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
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _model(self, request: Request) -> Model:
        return self._service.models.get(request.path_params["name"], request.path_params.get("version", ""))

    async def _object(self, request: Request) -> dict[str, Any]:
        body = await read_body(request.receive, read_head(request.scope["headers"]), self._service)
        return parse_object(body) if body.strip() else {}


def _refused(refusal: RefusedError) -> Response:
    status, headers, content = refusal_parts(refusal)
    return Response(content, status, {name.decode(): value.decode() for name, value in headers})


async def _unrouted(_: Request, error: Exception) -> Response:
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
    what = {404: "nothing is served under this path", 405: "this path takes another method"}
    return JSONResponse({"error": what.get(status, "the request was refused")}, status, headers)
