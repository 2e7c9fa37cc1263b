"""Obfuscators that send the leading coefficients of an affine map, and decode by another."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from splitveil.errors import OperatorError, RankError, ShapeError
from splitveil.message import Message


@dataclass(frozen=True, eq=False)
class Affine:
    """a = encoder (z − mean), and z' = offset + decoderᵀ a; the rows of neither need to be orthonormal.

    Rows are nested: the first m of them are an obfuscator too, see `keep`.

    Attributes:
        encoder: (m, n), float32.
        mean: (n,), of the features.
        decoder: (m, n).
        offset: (n,), the feature that no coefficient decodes to; the mean where nothing was tuned.
        energy: (m,), what leaving a direction out adds to the expected loss, in the fit's own units; where the maps
            were tuned since, that of the directions they began with.
        feature_shape: shape of one feature, n numbers.
        name: of the method.

    Raises:
        ShapeError: the shapes do not fit each other.
    """

    encoder: Tensor
    mean: Tensor
    decoder: Tensor
    offset: Tensor
    energy: Tensor
    feature_shape: tuple[int, ...]
    name: str

    def __post_init__(self) -> None:
        n = math.prod(self.feature_shape)
        check_shapes(
            encoder=(self.encoder, (self.m, self.encoder_inputs)), mean=(self.mean, (n,)),
            decoder=(self.decoder, (self.m, n)), offset=(self.offset, (n,)), energy=(self.energy, (self.m,)),
        )  # fmt: skip

    @property
    def encoder_inputs(self) -> int:
        """Numbers that the encoder's rows are multiplied with: those of a feature."""
        return math.prod(self.feature_shape)

    @property
    def m(self) -> int:
        """Coefficients in a message."""
        return len(self.encoder)

    @property
    def message(self) -> Message:
        """m real numbers that decode to a feature."""
        return Message((self.m,))

    def keep(self, m: int) -> "Affine":
        """The obfuscator of the first m coefficients; raises `RankError` where there are fewer, or m is below 1."""
        if not 1 <= m <= self.m:
            raise RankError(f"m={m} is outside 1 to {self.m}, the coefficients that were fitted")
        return replace(
            self, encoder=self.encoder[:m].clone(), decoder=self.decoder[:m].clone(), energy=self.energy[:m].clone()
        )

    def encode(self, z: Tensor) -> Tensor:
        """Coefficients (B, m) of features (B, *feature)."""
        return (z.flatten(1) - self.mean.to(z.device)) @ self.encoder.to(z.device).mT

    def decode(self, message: Tensor) -> Tensor:
        """Features z' (B, *feature) of coefficients (B, m)."""
        z = self.offset.to(message.device) + message @ self.decoder.to(message.device)
        return z.reshape(len(message), *self.feature_shape)

    def finish(self, message: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002 (the interface's)
        """Never offered; raises `OperatorError`."""
        raise OperatorError("these messages carry a feature; decode one and run the server on it")


def check_shapes(**parts: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Raises `ShapeError` where a tensor, if there is one, has another shape than the one beside it."""
    for name, (tensor, shape) in parts.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(f"{name} has the shape {tuple(tensor.shape)}, but the others need {shape}")
