"""What the server's first layers do to a feature, as linear maps with an adjoint and a patch matrix.

Each map reads one feature ``z`` of shape ``(B, *feature_shape)`` and never holds a bias. `LinearMap` stacks the
maps of all layers that read the same tensor: W = [W1; W2; …].
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Protocol, Self

import torch
from torch import Tensor


class Map(Protocol):
    """One layer without its bias, on features of one shape."""

    @property
    def weight(self) -> Tensor:
        """The layer's weight, as the layer stores it."""

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one feature."""

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one output, as the layer itself gives it."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Where the patch matrix is applied: ``(H', W')``, the token axes, or ``()``."""

    @property
    def geometry(self) -> tuple[object, ...]:
        """What two maps must have in common to see the same patches."""

    @property
    def disjoint(self) -> bool:
        """Whether the patches tile the feature: none overlap, and no number is left out or padded."""

    def to(self, like: Tensor) -> Self:
        """The same map in the dtype and on the device of `like`."""

    def apply(self, z: Tensor) -> Tensor:
        """``(B, *feature_shape)`` -> ``(B, *output_shape)``."""

    def adjoint(self, y: Tensor) -> Tensor:
        """``(B, *output_shape)`` -> ``(B, *feature_shape)``, with ⟨Wz, y⟩ = ⟨z, Wᵀy⟩."""

    def patch_matrix(self) -> Tensor:
        """``(out, d)``: what the layer does to one patch of d numbers."""

    def project(self, z: Tensor, rows: Tensor) -> Tensor:
        """Rows ``(k, d)`` applied to every patch: ``(B, k, *positions)``."""

    def scatter(self, a: Tensor, rows: Tensor) -> Tensor:
        """The adjoint of `project`: ``(B, k, *positions)`` -> ``(B, *feature_shape)``."""

    def arrange(self, y: Tensor) -> Tensor:
        """From ``(B, out, *positions)`` to the layer's own ``(B, *output_shape)``."""


@dataclass(frozen=True, eq=False)
class FullyConnected:
    """A linear layer that reads the whole feature, flattened: one patch, the vector itself."""

    weight: Tensor
    feature_shape: tuple[int, ...]

    positions = ()
    geometry = ("fully connected",)
    disjoint = True

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(out,)``."""
        return (self.weight.shape[0],)

    def to(self, like: Tensor) -> Self:
        """The same map in the dtype and on the device of `like`."""
        return replace(self, weight=self.weight.to(like))

    def apply(self, z: Tensor) -> Tensor:
        """``(B, *feature_shape)`` -> ``(B, out)``."""
        return z.flatten(1) @ self.weight.mT

    def adjoint(self, y: Tensor) -> Tensor:
        """``(B, out)`` -> ``(B, *feature_shape)``."""
        return (y @ self.weight).reshape(-1, *self.feature_shape)

    def patch_matrix(self) -> Tensor:
        """The weight itself, ``(out, n)``."""
        return self.weight

    def project(self, z: Tensor, rows: Tensor) -> Tensor:
        """``(B, k)``."""
        return z.flatten(1) @ rows.mT

    def scatter(self, a: Tensor, rows: Tensor) -> Tensor:
        """``(B, k)`` -> ``(B, *feature_shape)``."""
        return (a @ rows).reshape(-1, *self.feature_shape)

    def arrange(self, y: Tensor) -> Tensor:
        """``(B, out)`` as it is."""
        return y


@dataclass(frozen=True, eq=False)
class TokenWise:
    """A linear layer on the last axis of a feature ``(*tokens, D)``: the patches are the tokens."""

    weight: Tensor
    feature_shape: tuple[int, ...]

    geometry = ("token-wise",)
    disjoint = True

    @property
    def positions(self) -> tuple[int, ...]:
        """The token axes."""
        return self.feature_shape[:-1]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """``(*tokens, out)``."""
        return (*self.positions, self.weight.shape[0])

    def to(self, like: Tensor) -> Self:
        """The same map in the dtype and on the device of `like`."""
        return replace(self, weight=self.weight.to(like))

    def apply(self, z: Tensor) -> Tensor:
        """``(B, *tokens, D)`` -> ``(B, *tokens, out)``."""
        return z @ self.weight.mT

    def adjoint(self, y: Tensor) -> Tensor:
        """``(B, *tokens, out)`` -> ``(B, *tokens, D)``."""
        return y @ self.weight

    def patch_matrix(self) -> Tensor:
        """The weight itself, ``(out, D)``."""
        return self.weight

    def project(self, z: Tensor, rows: Tensor) -> Tensor:
        """``(B, k, *tokens)``: components on axis 1, as in a feature map."""
        return (z @ rows.mT).movedim(-1, 1)

    def scatter(self, a: Tensor, rows: Tensor) -> Tensor:
        """``(B, k, *tokens)`` -> ``(B, *tokens, D)``."""
        return a.movedim(1, -1) @ rows

    def arrange(self, y: Tensor) -> Tensor:
        """``(B, out, *tokens)`` -> ``(B, *tokens, out)``."""
        return y.movedim(1, -1)


@dataclass(frozen=True, eq=False)
class LinearMap:
    """All layers that read one tensor, stacked: W = [W1; W2; …], without biases.

    ::

        z (B, *feature_shape) ──┬─► W1 ──► flatten ──┐
                                └─► W2 ──► flatten ──┴─► Wz (B, m)
    """

    parts: tuple[Map, ...]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one feature."""
        return self.parts[0].feature_shape

    @property
    def in_features(self) -> int:
        """Elements n of one feature."""
        return prod(self.feature_shape)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements that each layer gives for one feature."""
        return tuple(prod(part.output_shape) for part in self.parts)

    @property
    def out_features(self) -> int:
        """Elements m of Wz, over all layers."""
        return sum(self.sizes)

    def to(self, like: Tensor) -> "LinearMap":
        """The same map in the dtype and on the device of `like`."""
        return LinearMap(tuple(part.to(like) for part in self.parts))

    def apply(self, z: Tensor) -> Tensor:
        """``(B, *feature_shape)`` -> ``(B, m)``."""
        return torch.cat([part.apply(z).flatten(1) for part in self.parts], dim=1)

    def adjoint(self, y: Tensor) -> Tensor:
        """``(B, m)`` -> ``(B, *feature_shape)``."""
        outputs = self.separate(y)
        return torch.stack([part.adjoint(o) for part, o in zip(self.parts, outputs, strict=True)]).sum(0)

    def separate(self, y: Tensor) -> tuple[Tensor, ...]:
        """``(B, m)`` -> one tensor per layer, each in that layer's own output shape."""
        pieces = torch.split(y, list(self.sizes), dim=1)
        return tuple(p.reshape(-1, *part.output_shape) for p, part in zip(pieces, self.parts, strict=True))

    def patch_matrix(self) -> Tensor:
        """``(Σ out, d)``: the layers' patch matrices, stacked; all parts must have one geometry."""
        return torch.cat([part.patch_matrix() for part in self.parts])

    def arrange(self, y: Tensor) -> tuple[Tensor, ...]:
        """``(B, Σ out, *positions)`` -> one tensor per layer, each in that layer's own output shape."""
        pieces = torch.split(y, [part.weight.shape[0] for part in self.parts], dim=1)
        return tuple(part.arrange(p) for p, part in zip(pieces, self.parts, strict=True))
