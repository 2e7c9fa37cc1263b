"""The inference server: the Open Inference Protocol v2 over REST and gRPC for server bundles; free of torch.

settings = Settings(...)                              # frozen; docs/serving.md describes them
models = open_models(["bundle/server"], settings)     # reads, checks and warms the bundles
app = application(models, settings)                   # -> Starlette, for any ASGI host; opens no socket
await serve(models, settings, on_ready)               # both protocols on sockets, until SIGTERM
"""

from starlette.applications import Starlette

from splitveil.serve.repository import Models, open_models
from splitveil.serve.rest import rest_application
from splitveil.serve.server import Addresses, serve
from splitveil.serve.service import Service
from splitveil.serve.settings import Settings

__all__ = ["Addresses", "Models", "Settings", "application", "open_models", "serve"]


def application(models: Models, settings: Settings) -> Starlette:
    """The REST server as an ASGI application without sockets, for another host or for tests.

    Args:
        models: of `open_models`; one application and one event loop per set of models.
        settings: of what concerns requests; those of addresses, TLS, connections and reading time are the host's.

    Raises:
        ServeError: the token file cannot be used.
    """
    return rest_application(Service(models, settings))
