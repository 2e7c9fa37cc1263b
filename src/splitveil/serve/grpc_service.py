"""The Open Inference Protocol v2 over gRPC, on the messages that tritonclient carries."""

import time
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2

from splitveil.serve.grpc_calls import caller_of, let_in
from splitveil.serve.metadata import (
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from splitveil.serve.model import Model
from splitveil.serve.query import LOGITS, Query, Tensor
from splitveil.serve.refusal import RefusedError, fault
from splitveil.serve.service import Service
from splitveil.serve.shares import Caller

# Requests, answers and grpc.aio.ServicerContext: neither grpc nor the messages have types.
Call = Callable[["GrpcService", Any, Any], Awaitable[Any]]
_CONTENTS = {"UINT8": "uint_contents", "FP32": "fp32_contents"}


def _guarded(call: Call) -> Call:
    """The call for those with a token; refusals are counted."""

    @wraps(call)
    async def answer(self: "GrpcService", request: Any, context: Any) -> Any:
        try:
            self.let_in(context)
            return await call(self, request, context)
        except RefusedError as refusal:
            self.service.metrics.refusals.labels(refusal.reason).inc()
            raise
        except Exception as error:
            self.service.metrics.refusals.labels("fault").inc()
            raise fault(error) from None

    return answer


class GrpcService:
    """The protocol's calls that make sense for bundles.

    Args:
        service: what is shared with REST.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    def let_in(self, context: Any) -> Caller:
        """Under which names a call counts.

        Raises `RefusedError` where the caller has no token, or the server is stopping.

        Refusing is kinder here than answering to the last moment: the core cancels calls that it has read when it
        stops, and clients repeat what was UNAVAILABLE, but not what was CANCELLED.
        """
        if self.service.draining:
            raise RefusedError("draining", "this server is stopping; ask another one")
        return let_in(self.service, context)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Logits of one query."""
        begin = time.perf_counter()
        service, size = self.service, request.ByteSize()
        model: Model | None = None
        try:
            caller = self.let_in(context)
            model = service.models.get(request.model_name, request.model_version)
            with service.holding(caller) as held:
                held.add(size)
                query, logits = await service.infer(model, partial(read_query, request), size, caller)
            answer = write_answer(query, model, logits)
            service.count(model, "grpc", None, begin, size, answer.ByteSize(), len(logits))
            return answer
        except RefusedError as refusal:
            service.count(model, "grpc", refusal.reason, begin, size, 0, 0)
            raise
        except Exception as error:
            service.count(model, "grpc", "fault", begin, size, 0, 0)
            raise fault(error) from None

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Whether the process answers; needs no token."""
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Whether requests should be sent here; needs no token."""
        return service_pb2.ServerReadyResponse(ready=self.service.ready_for(caller_of(self.service, context)))

    @_guarded
    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Whether a model is served."""
        self.service.models.get(request.name, request.version)
        return service_pb2.ModelReadyResponse(ready=self.service.open_to(caller_of(self.service, context)))

    @_guarded
    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Name, version and extensions."""
        return service_pb2.ServerMetadataResponse(**server_metadata())

    @_guarded
    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Inputs and outputs; the identity is in the model's configuration, since these messages have no place."""
        content = model_metadata(self.service.models.get(request.name, request.version), self.service.models)
        del content["identity"]
        return ParseDict(content, service_pb2.ModelMetadataResponse())

    @_guarded
    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Configuration in Triton's words, the identity among its parameters."""
        content = model_config(self.service.models.get(request.name, request.version))
        return service_pb2.ModelConfigResponse(config=ParseDict(content, model_config_pb2.ModelConfig()))

    @_guarded
    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """What one model, or all of them, have done."""
        if request.name:
            models = [self.service.models.get(request.name, request.version)]
        else:
            models = self.service.models.loaded
        content = {"model_stats": [model_statistics(model) for model in models]}
        return ParseDict(content, service_pb2.ModelStatisticsResponse())

    @_guarded
    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Every version of every model."""
        content = {"models": repository_index(self.service.models, request.ready)}
        return ParseDict(content, service_pb2.RepositoryIndexResponse())

    @_guarded
    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Read a model's bundles again."""
        self.service.check_control()
        if request.parameters:
            raise RefusedError("invalid", "a model is loaded from its own folder, without parameters")
        await self.service.models.load(request.model_name)
        return service_pb2.RepositoryModelLoadResponse()

    @_guarded
    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Serve a model no more."""
        self.service.check_control()
        await self.service.models.unload(request.model_name)
        return service_pb2.RepositoryModelUnloadResponse()


def read_query(request: Any) -> Query:
    """What a ModelInferRequest asks.

    Raises:
        RefusedError: it is not what the protocol says.
    """
    if len(request.inputs) != 1:
        raise RefusedError("invalid", "a request has exactly one input, 'frame' or 'coefficients'")
    for output in request.outputs:
        if output.name != LOGITS or len(request.outputs) > 1:
            raise RefusedError("invalid", f"output {output.name[:50]!r} is not known; it is '{LOGITS}'")
        if output.parameters:
            raise RefusedError("invalid", f"output '{LOGITS}' comes as numbers in the answer alone")
    given = request.inputs[0]
    if any(key.startswith("shared_memory") for key in given.parameters):
        raise RefusedError("invalid", f"input {given.name[:50]!r} lies in shared memory; send its data")
    raw = request.raw_input_contents
    if len(raw) > 1 or (raw and given.HasField("contents")):
        raise RefusedError("invalid", f"input {given.name[:50]!r} needs its data once, as contents or raw")
    data = raw[0] if raw else getattr(given.contents, _CONTENTS.get(given.datatype, "fp32_contents"))
    return Query(request.id, Tensor(given.name, given.datatype, list(given.shape), data), True)


def write_answer(query: Query, model: Model, logits: NDArray[np.float32]) -> Any:
    """The ModelInferResponse."""
    answer = service_pb2.ModelInferResponse(model_name=model.name, model_version=model.version, id=query.id)
    answer.outputs.add(name=LOGITS, datatype="FP32", shape=logits.shape)
    answer.raw_output_contents.append(logits.astype("<f4", copy=False).tobytes())
    return answer
