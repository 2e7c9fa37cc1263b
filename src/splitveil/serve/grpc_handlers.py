"""What gRPC calls: handlers that decode requests, record exchanges, and turn what goes wrong into a status."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from tritonclient.grpc import service_pb2

from splitveil.serve.access import LONGEST_NAME, Control, Exchange, note, recording
from splitveil.serve.grpc_calls import caller_of, client_of, refuse, request_id_of
from splitveil.serve.grpc_service import GrpcService
from splitveil.serve.refusal import GRPC_STATUS, RefusedError, fault
from splitveil.serve.service import Service

# Messages and grpc.aio.ServicerContext: neither grpc nor the messages have types.
Answer = Callable[[Any, Any], Awaitable[Any]]
Health = Literal[1, 2]
"""SERVING or NOT_SERVING, as grpc.health.v1 numbers them."""
_CONTROL: dict[str, Control] = {"RepositoryModelLoad": "load", "RepositoryModelUnload": "unload"}


def grpc_handlers(service: Service) -> list[Any]:
    """Handlers of all calls for a grpc.aio.Server.

    Calls of the protocol that make no sense for bundles have none, so that gRPC's core answers UNIMPLEMENTED; the
    stubs' own methods for those would raise, and gRPC would log each time.
    """
    rpc = GrpcService(service)
    (protocol,) = service_pb2.DESCRIPTOR.services_by_name.values()
    methods = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _entry(service, method.name, getattr(rpc, method.name)),
            request_deserializer=partial(_decode, GetMessageClass(method.input_type)),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        for method in protocol.methods
        if hasattr(rpc, method.name)
    }
    # The two messages of this protocol have one field each: a text, as the first of ModelReadyRequest, and a number.
    # The package that carries them wants a newer protobuf than tritonclient does.
    check = grpc.unary_unary_rpc_method_handler(
        _entry(service, "Check", partial(_health, rpc, protocol.full_name)),
        request_deserializer=partial(_decode, service_pb2.ModelReadyRequest),
        response_serializer=lambda health: bytes((8, health)),
    )
    return [
        grpc.method_handlers_generic_handler(protocol.full_name, methods),
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),
    ]


def _decode(message: Any, content: bytes) -> Any:
    """The message; None where these bytes are none: gRPC would log what a deserialiser raises."""
    try:
        return message.FromString(content)
    except DecodeError:
        return None


def _entry(service: Service, name: str, call: Answer) -> Answer:
    """What gRPC calls: records the exchange where it is to be, and turns what goes wrong into a status."""
    control, access_log = _CONTROL.get(name), service.settings.access_log

    async def checked(request: Any, context: Any) -> Any:
        try:
            if request is None:
                service.metrics.undecodable.labels("grpc").inc()
                service.metrics.refusals.labels("invalid").inc()
                raise RefusedError("invalid", f"the request is no message that {name} takes")
            return await call(request, context)
        except RefusedError as refusal:
            reason, sentence = refusal.reason, str(refusal)
        except Exception as error:
            reason, sentence = "fault", str(fault(error))
        # The error is gone by now: kept in this frame, which its traceback holds, it would keep the model.
        note(reason=reason, status=GRPC_STATUS[reason])
        return await refuse(context, reason, sentence)

    async def recorded(request: Any, context: Any) -> Any:
        exchange = Exchange("grpc", name, client_of(service, context), request_id_of(context), control, status="OK")
        if request is not None:
            model = getattr(request, "model_name", getattr(request, "name", ""))
            exchange.model, exchange.received = model[:LONGEST_NAME], request.ByteSize()
        with recording(exchange, service.metrics, access_log):
            answer = await checked(request, context)
            exchange.sent = answer.ByteSize() if hasattr(answer, "ByteSize") else 0
            return answer

    return recorded if access_log or control else checked


async def _health(rpc: GrpcService, protocol: str, request: Any, context: Any) -> Health:
    """Of the server, for whoever asks; of one model for those with a token."""
    if request.name in ("", protocol):
        return 1 if rpc.service.ready_for(caller_of(rpc.service, context)) else 2
    rpc.let_in(context)
    rpc.service.models.get(request.name)
    return 1 if rpc.service.open_to(caller_of(rpc.service, context)) else 2
