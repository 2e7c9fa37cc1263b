"""What is exported: the edge's half and the server's half, each a folder that is checked whole; free of torch."""

from splitveil.bundle.coding import check_form, from_frames, to_frames
from splitveil.bundle.folder import Bundle, check_free, file_facts, read_edge, read_server, write_bundle
from splitveil.bundle.graph import Graph
from splitveil.bundle.manifest import (
    NAME,
    EdgeManifest,
    Messages,
    Picture,
    Policy,
    ServerManifest,
    identity_of,
)
from splitveil.bundle.memory import give_back_memory

__all__ = [
    "NAME",
    "Bundle",
    "EdgeManifest",
    "Graph",
    "Messages",
    "Picture",
    "Policy",
    "ServerManifest",
    "check_form",
    "check_free",
    "file_facts",
    "from_frames",
    "give_back_memory",
    "identity_of",
    "read_edge",
    "read_server",
    "to_frames",
    "write_bundle",
]
