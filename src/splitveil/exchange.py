"""Client and server in one process, exchanging nothing but bytes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from splitveil import wire
from splitveil.message import Obfuscator
from splitveil.obfuscate import kept_components
from splitveil.split import SplitModel


@dataclass(frozen=True, eq=False)
class Client:
    """The edge side: images in, one frame per image out.

    Args:
        split: the model, of which only the client's half runs here.
        veil: the obfuscator.
    """

    split: SplitModel
    veil: Obfuscator
    identity: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", identity(self.split, self.veil))

    def send(self, x: Tensor) -> list[bytes]:
        """Frames of images (B, C, H, W)."""
        with torch.no_grad():
            return self.send_features(self.split.client(x))

    def send_features(self, z: Tensor) -> list[bytes]:
        """Frames of features (B, *feature) that were computed before."""
        with torch.no_grad():
            message = self.veil.encode(z)
        if self.veil.message.fixed_length:
            kept = [message.shape[1]] * len(message)
        else:
            kept = kept_components(message).tolist()
        rows = message.detach().cpu().numpy()
        return [wire.pack(row, count, self.identity) for row, count in zip(rows, kept, strict=True)]


@dataclass(frozen=True, eq=False)
class Server:
    """The server side: frames in, logits out; an adversary reads here.

    Args:
        split: the model, of which only the server's half runs here.
        veil: the obfuscator, of which only the decoder is used.
    """

    split: SplitModel
    veil: Obfuscator
    identity: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", identity(self.split, self.veil))

    def read(self, frames: Sequence[bytes]) -> tuple[Tensor, Tensor]:
        """Messages (B, *message.shape) and the number of components in each frame (B,)."""
        messages, kept = wire.unpack(frames, self.veil.message, self.identity)
        return torch.from_numpy(messages), torch.from_numpy(kept)

    def answer(self, frames: Sequence[bytes]) -> Tensor:
        """Logits (B, n_classes) for the frames of B queries."""
        messages, _ = self.read(frames)
        with torch.no_grad():
            return self.split.answer(self.veil, messages.to(self.split.device))


def identity(split: SplitModel, veil: Obfuscator) -> bytes:
    """4 bytes that change with the model's weights, the cut and the basis, but not with m'."""
    digest = hashlib.sha256(f"{split.layer_name}|{veil.message.carries}|{veil.message.shape[1:]}".encode())
    factors = getattr(veil, "factors", None)
    basis = [] if factors is None else [factors.vh]
    for tensor in [*split.model.state_dict().values(), *basis]:
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.digest()[: wire.IDENTITY_BYTES]
