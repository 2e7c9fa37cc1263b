"""The edge: photos to frames, frames to a server, logits to answers; free of torch."""

from splitveil.client.access import Access, is_exposed
from splitveil.client.answer import Answer, Sent
from splitveil.client.encoder import EdgeEncoder, Photo, edge_folder
from splitveil.client.frame import describe
from splitveil.client.patience import Patience
from splitveil.client.remote import AsyncEdgeClient, check_certified
from splitveil.client.threaded import EdgeClient

__all__ = [
    "Access",
    "Answer",
    "AsyncEdgeClient",
    "EdgeClient",
    "EdgeEncoder",
    "Patience",
    "Photo",
    "Sent",
    "check_certified",
    "describe",
    "edge_folder",
    "is_exposed",
]
