"""Calls of gRPC under limits: how many are open, how long a request takes to come, and what reading one may cost.

gRPC's core has no time limit for a request that does not come. So each call is taken as a stream of requests, which
lets us wait for the first one as long as we like, and the rest never comes.
"""

from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from splitveil.serve.access import Exchange, plain_id, recording
from splitveil.serve.deadline import Deadline
from splitveil.serve.query import LARGE_BODY
from splitveil.serve.refusal import GRPC_STATUS, RETRY_AFTER, Reason, RefusedError
from splitveil.serve.service import Service
from splitveil.serve.shares import Caller

Handler = Any  # grpc.RpcMethodHandler; grpc has no types
MOST_FIELDS = 4096
"""Fields of a large message, those of the messages in it too. One of a query has about ten. A decoded field may take
fifty times the memory of its two bytes, and holds the interpreter."""
LONGEST_VARINTS = 2**20
"""Bytes of a list of numbers that are decoded one by one; each row of a frame has a few hundred."""
_VARINTS = {
    FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SINT64, FieldDescriptor.TYPE_BOOL,
}  # fmt: skip
_FIXED = {1: 8, 5: 4}


class Bounded(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Counts the calls of each caller, waits for a request no longer than the settings say, and decodes it in bounds.

    Args:
        service: that answers.
        handlers: of the calls as they would be without bounds.
    """

    def __init__(self, service: Service, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._service, self._inner = service, list(handlers)
        self._handlers: dict[str, Handler] = {}
        self._deadline = Deadline(service.settings.timeout)

    def service(self, handler_call_details: Any) -> Handler:
        """The bounded handler of a call; None where there is no such method."""
        method = handler_call_details.method
        if method not in self._handlers:
            found = (inner.service(handler_call_details) for inner in self._inner)
            handler = next((each for each in found if each), None)
            if handler is None:
                return None  # strangers make up names without end
            self._handlers[method] = grpc.stream_unary_rpc_method_handler(
                partial(self._answer, handler, method.rpartition("/")[2]),
                response_serializer=handler.response_serializer,
            )
        return self._handlers[method]

    async def _answer(self, handler: Handler, name: str, _: Any, context: Any) -> Any:
        caller = caller_of(self._service, context)
        if not self._service.calls.take(caller):
            return await self._refuse(
                context, name, RefusedError("busy", "too many calls are open; come again in a second")
            )
        try:
            request = await self._request(handler, name, caller, context)
            return await handler.unary_unary(request, context)
        except RefusedError as refusal:
            return await self._refuse(context, name, refusal)
        finally:
            self._service.calls.give(caller)

    async def _request(self, handler: Handler, name: str, caller: Caller, context: Any) -> Any:
        try:
            content = await self._deadline.wait(context.read())
        except TimeoutError:
            raise RefusedError("slow", "the request did not come in time") from None
        if content is grpc.aio.EOF:
            raise RefusedError("invalid", f"the request is no message that {name} takes")
        if len(content) <= LARGE_BODY:
            return handler.request_deserializer(content)
        with self._service.holding(caller) as held:
            held.add(len(content))
            return await self._service.aside(caller, partial(_decode_large, handler, name, content))

    async def _refuse(self, context: Any, name: str, refusal: RefusedError) -> None:
        """What ends here was recorded nowhere."""
        service = self._service
        service.metrics.refusals.labels(refusal.reason).inc()
        exchange = Exchange(
            "grpc", name, client_of(service, context), request_id_of(context),
            status=GRPC_STATUS[refusal.reason], reason=refusal.reason,
        )  # fmt: skip
        with recording(exchange, service.metrics, service.settings.access_log):
            await refuse(context, refusal.reason, str(refusal))


def caller_of(service: Service, context: Any) -> Caller:
    """The address of a call, as it counts."""
    return service.addresses.caller(_address(context), _forwarded(service, context))


def client_of(service: Service, context: Any) -> str:
    """The address of a call's client."""
    return service.addresses.client(_address(context), _forwarded(service, context))


def request_id_of(context: Any) -> str:
    """The client's ``x-request-id``, if it is a plain one."""
    return plain_id(_metadata(context, "x-request-id").decode("latin-1"))


def let_in(service: Service, context: Any) -> Caller:
    """Under which names a call counts; raises `RefusedError` where it needs a token and has none."""
    token = _metadata(context, "authorization") if service.tokens.needed else b""
    return service.let_in(_address(context), token, _forwarded(service, context))


async def refuse(context: Any, reason: Reason, sentence: str) -> None:
    """End a call with a status of the protocol."""
    pushback = (("grpc-retry-pushback-ms", str(RETRY_AFTER * 1000)),) if reason == "busy" else ()
    await context.abort(grpc.StatusCode[GRPC_STATUS[reason]], sentence, pushback)


def check_fields(content: memoryview, message: Descriptor, left: int = MOST_FIELDS) -> int:
    """Look at the fields of a message without decoding it.

    Args:
        content: the message.
        message: its type.
        left: how many fields it may have.

    Returns:
        How many may still come. Negative: it has too many, or a list of numbers that is too long.
    """
    place = 0
    while place < len(content) and left >= 0:
        left -= 1
        tag, place = _varint(content, place)
        kind = tag & 7
        if kind == 0:
            _, place = _varint(content, place)
        elif kind in _FIXED:
            place += _FIXED[kind]
        elif kind == 2:
            length, place = _varint(content, place)
            field = message.fields_by_number.get((tag & 0xFFFF_FFFF) >> 3)  # as decoders drop the rest
            if field is not None and field.message_type is not None:
                left = check_fields(content[place : place + length], field.message_type, left)
            elif field is not None and field.type in _VARINTS and length > LONGEST_VARINTS:
                return -1
            place += length
        else:
            return -1  # a group: no message here has one
    return left


def _decode_large(handler: Handler, name: str, content: bytes) -> Any:
    types = _requests()
    # Nobody needs a large message for a call of another protocol.
    if name not in types or check_fields(memoryview(content), types[name]) < 0:
        raise RefusedError("large", "the message has too many parts; send numbers raw, or fewer rows")
    return handler.request_deserializer(content)


def _requests() -> dict[str, Descriptor]:
    from tritonclient.grpc import service_pb2

    (service,) = service_pb2.DESCRIPTOR.services_by_name.values()
    return {method.name: method.input_type for method in service.methods}


def _address(context: Any) -> str:
    return _address_of(context.peer() or "")


@lru_cache(maxsize=4096)
def _address_of(peer: str) -> str:
    """Of ``ipv4:127.0.0.1:50000`` or ``ipv6:%5B::1%5D:50000``."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _forwarded(service: Service, context: Any) -> bytes:
    return _metadata(context, "x-forwarded-for") if service.settings.trusted_proxies else b""


def _metadata(context: Any, name: str) -> bytes:
    found = [value for key, value in context.invocation_metadata() or () if key == name]
    if name == "authorization" and len(found) > 1:
        raise RefusedError("invalid", "authorization comes twice; send it once")
    return b",".join(value.encode("latin-1", "replace") if isinstance(value, str) else value for value in found)


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """A number of the wire format and the place behind it; what is cut off or too long the decoder will refuse."""
    value = shift = 0
    while place < len(content) and shift < 70:
        octet = content[place]
        value |= (octet & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if octet < 0x80:
            return value, place
    return 0, len(content)
