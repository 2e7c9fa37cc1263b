"""What `splitveil.serve.connection` uses of uvicorn's private class, name by name: a change there fails here first."""

import ast
import asyncio
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from splitveil.serve.connection import Connection

ROOT = Path(__file__).parents[1]
SOURCE = Path(inspect.getfile(Connection)).read_text(encoding="utf-8")
# Callbacks that we extend, with their parameters.
EXTENDED = {
    "__init__": ["self", "config", "server_state", "app_state", "_loop"],
    "connection_made": ["self", "transport"], "connection_lost": ["self", "exc"], "data_received": ["self", "data"],
    "on_message_begin": ["self"], "on_headers_complete": ["self"], "on_message_complete": ["self"],
    "on_response_complete": ["self"], "pause_writing": ["self"], "resume_writing": ["self"],
    "timeout_keep_alive_handler": ["self"], "shutdown": ["self"], "eof_received": ["self"],
    "on_header": ["self", "name", "value"],
}  # fmt: skip
# Attributes of a connection and of an exchange on it.
USED = {
    "_start_asgi_task", "client", "cycle", "expect_100_continue", "flow", "headers", "loop",
    "parser", "pipeline", "scheme", "transport", "url",
}  # fmt: skip
OF_A_CYCLE = {"disconnected", "keep_alive", "message_event", "response_complete", "response_started"}
# Of the flow control that `splitveil.serve.transport` extends.
OF_THE_FLOW = {"_transport", "pause_reading", "read_paused", "resume_reading", "write_paused"}


async def made() -> HttpToolsProtocol:
    protocol = HttpToolsProtocol(Config(None), ServerState(), {}, asyncio.get_running_loop())
    protocol.on_message_begin()  # which makes the URL
    return protocol


def test_the_version_is_one_that_this_contract_was_read_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (bound,) = [wanted for wanted in project["optional-dependencies"]["serve"] if wanted.startswith("uvicorn")]
    below = tuple(map(int, bound.rpartition("<")[2].split(".")))
    assert tuple(map(int, version("uvicorn").split(".")[:2])) == (below[0], below[1] - 1)


def test_the_callbacks_that_are_extended_exist_with_their_parameters() -> None:
    found = {name: list(inspect.signature(getattr(HttpToolsProtocol, name)).parameters) for name in EXTENDED}
    assert found == EXTENDED


def test_the_attributes_that_are_used_exist() -> None:
    protocol = asyncio.run(made())
    assert {name for name in USED if hasattr(protocol, name)} == USED
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    assert {name for name in OF_A_CYCLE if f"self.{name}" in cycle} == OF_A_CYCLE
    flow = inspect.getsource(FlowControl)
    assert {name for name in OF_THE_FLOW if name in flow} == OF_THE_FLOW


def test_the_contract_is_whole() -> None:
    """A member of uvicorn's that the module begins to use has to be named above."""
    (connection,) = (node for node in ast.parse(SOURCE).body if getattr(node, "name", "") == "Connection")
    ours = {node.name for node in ast.walk(connection) if isinstance(node, ast.FunctionDef)}
    inherited = set(dir(HttpToolsProtocol)) | set(vars(asyncio.run(made())))
    used = {
        node.attr
        for node in ast.walk(connection)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    assert (ours & set(vars(HttpToolsProtocol))) == set(EXTENDED)
    assert (used - ours) & inherited == USED
