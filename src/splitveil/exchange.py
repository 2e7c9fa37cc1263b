"""Client and server in one process, exchanging nothing but bytes."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass

import torch
from torch import Tensor

from splitveil import wire
from splitveil.errors import WireError
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
        """Frames of features (B, *feature) that were computed before; raises `WireError` where one is not finite."""
        if not torch.isfinite(z).all():  # digits would not show it
            raise WireError("a feature that is not finite has no message; check the input")
        with torch.no_grad():
            message = self.veil.encode(z)
        if (levels := self.veil.message.levels) is not None:
            return wire.pack_digits(message.cpu().numpy(), levels, self.identity)
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
        """Messages (B, *message.shape), digits as int64, and the number of components in each frame (B,)."""
        if (levels := self.veil.message.levels) is not None:
            digits = torch.from_numpy(wire.unpack_digits(frames, levels, self.identity))
            return digits, torch.full((len(digits),), len(levels))
        messages, kept = wire.unpack(frames, self.veil.message, self.identity)
        return torch.from_numpy(messages), torch.from_numpy(kept)

    def answer(self, frames: Sequence[bytes]) -> Tensor:
        """Logits (B, n_classes) for the frames of B queries."""
        messages, _ = self.read(frames)
        with torch.no_grad():
            return self.split.answer(self.veil, messages.to(self.split.device))


def identity(split: SplitModel, veil: Obfuscator) -> bytes:
    """4 bytes that change with the model's weights, the cut, the basis and the levels, but not with m' of one basis."""
    digest = hashlib.sha256(f"{split.layer_name}|{veil.message.carries}|{veil.message.shape[1:]}".encode())
    if veil.message.levels is not None:
        digest.update(repr(tuple(veil.message.levels)).encode())
    # Of factors the basis alone; of what has none, every tensor.
    basis = [veil.factors.vh] if hasattr(veil, "factors") else _tensors(veil)
    for tensor in [*split.model.state_dict().values(), *basis]:
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.digest()[: wire.IDENTITY_BYTES]


def _tensors(part: object) -> Iterator[Tensor]:
    """The tensors of an obfuscator and of those that it is made of."""
    for name in (each.name for each in fields(part)) if is_dataclass(part) else ():
        value = getattr(part, name)
        if isinstance(value, Tensor):
            yield value
        else:
            yield from _tensors(value)
