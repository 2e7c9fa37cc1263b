"""What a cut costs: the edge's arithmetic and parameters, and bytes per query."""

from dataclasses import dataclass

import torch
from torch import Tensor

from splitveil.counting import multiply_accumulates
from splitveil.exchange import Client
from splitveil.message import Obfuscator
from splitveil.obfuscate import Identity
from splitveil.split import SplitModel


@dataclass(frozen=True)
class EdgeCost:
    """What one query costs on the edge.

    Attributes:
        client_macs: multiply-accumulates of the client's half (products of convolutions and linear layers).
        encoder_macs: multiply-accumulates of the obfuscator.
        parameters: numbers in the client's half.
        raw_bytes: one frame with the feature as it is.
        message_bytes: one frame with the message.
    """

    client_macs: int
    encoder_macs: int
    parameters: int
    raw_bytes: int
    message_bytes: int


def edge_cost(split: SplitModel, veil: Obfuscator, x: Tensor) -> EdgeCost:
    """Count the cost for one image ``x`` (1, C, H, W); the bytes are those of its real frames."""
    with torch.no_grad():
        z = split.client(x)
    raw = Identity(tuple(z.shape[1:]))
    return EdgeCost(
        client_macs=multiply_accumulates(split.client, x),
        encoder_macs=multiply_accumulates(veil.encode, z),
        parameters=sum(p.numel() for p in split.client.parameters()),
        raw_bytes=len(Client(split, raw).send_features(z)[0]),
        message_bytes=len(Client(split, veil).send_features(z)[0]),
    )
