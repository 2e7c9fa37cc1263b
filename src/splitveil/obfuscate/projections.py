"""The paper's obfuscators: projections onto the singular vectors of the server's first layer (section 4.2)."""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from splitveil.errors import DistortionError, OperatorError, RankError, ShapeError
from splitveil.linear import Factors
from splitveil.message import Message


class PrivacyWarning(UserWarning):
    """It runs, but protects less than its name suggests."""


@dataclass(frozen=True, eq=False)
class Identity:
    """No defence: the feature itself is sent.

    Args:
        feature_shape: shape of one feature.
    """

    feature_shape: tuple[int, ...]
    name: str = "none"

    @property
    def message(self) -> Message:
        """The feature's own shape."""
        return Message(tuple(self.feature_shape))

    def encode(self, z: Tensor) -> Tensor:
        """The feature."""
        return z

    def decode(self, message: Tensor) -> Tensor:
        """The feature."""
        return message

    def finish(self, message: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002 (the interface's)
        """Never offered: the message is the feature itself."""
        raise OperatorError("an undefended message is the feature itself; decode it and run the server on it")


class _Projection:
    """What the obfuscators on factors share; ``m`` is the number of components that may be sent."""

    factors: Factors
    m: int

    @property
    def message(self) -> Message:
        """Public facts about the messages."""
        carries: Literal["feature", "pre-activation"] = (
            "pre-activation" if self.factors.operator == "patch" else "feature"
        )
        return Message(self.factors.message_shape(self.m), carries)

    def encode(self, z: Tensor) -> Tensor:
        """Coefficients a_k = v_kᵀ z (paper equation 7) of the first m components: (B, m), or (B, m, *positions)."""
        return self.factors.project(z, self.m)

    def decode(self, message: Tensor) -> Tensor:
        """z' = Σ a_k v_k in z's shape; a patch message has none and raises `OperatorError`."""
        return self.factors.reconstruct(message)

    def finish(self, message: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the server's first layers without bias: U S a."""
        return self.factors.finish(message)


@dataclass(frozen=True, eq=False)
class TopComponents(_Projection):
    """Keep the m components with the largest singular values: a fixed m' (paper section 4.3).

    Among linear maps of rank m it minimises E‖W(z − z')‖² for isotropic features (Eckart and Young); real
    features are not isotropic, see docs/maths.md.

    Args:
        factors: of the server's first layer.
        m: components kept, 0 to the number of factors.

    Raises:
        RankError: there are not that many factors.
    """

    factors: Factors
    m: int
    name: str = "top"

    def __post_init__(self) -> None:
        available = len(self.factors.s)
        if not 0 <= self.m <= available:
            raise RankError(f"m={self.m} is outside 0 to {available}, the number of factors computed for this layer")


@dataclass(frozen=True, eq=False)
class DistortionFree(_Projection):
    """Remove the null content alone: z' = z_S (paper Definition 2), m' = rank; the answer does not change.

    What is sent is an invertible function of Wz, so it leaks what running one more linear layer would leak. Where
    the operator has no null space nothing can be removed: the message is then the feature itself, with a warning.

    Args:
        factors: all factors of the server's first layer, or factors known to have no null space.

    Raises:
        RankError: the factors are truncated, so that the null space is not known.
    """

    factors: Factors
    name: str = "free"

    def __post_init__(self) -> None:
        if not self.is_identity and not self.factors.complete:
            raise RankError(
                f"distortion-free needs every factor of the layer, but only {len(self.factors.s)} were computed; "
                f"call factorise(…, rank={min(self.factors.in_features, self.factors.out_features)}) or use "
                "TopComponents"
            )
        if self.factors.null_dimension == 0:
            warnings.warn(
                f"the {self.factors.operator} operator has no null space here, so distortion-free obfuscation "
                "removes nothing: the message determines the feature",
                PrivacyWarning,
                stacklevel=3,
            )

    @property
    def is_identity(self) -> bool:
        """Whether the feature itself is sent, because the dense operator has no null space."""
        return self.factors.operator == "dense" and self.factors.null_dimension == 0

    @cached_property
    def m(self) -> int:  # type: ignore[override]
        """Number of components kept: the rank."""
        return self.factors.in_features if self.is_identity else int(self.factors.rank or 0)

    @property
    def message(self) -> Message:
        """Public facts about the messages."""
        return Message(self.factors.feature_shape) if self.is_identity else super().message

    def encode(self, z: Tensor) -> Tensor:
        """All coefficients with a singular value above zero; the feature itself where there is no null space."""
        return z if self.is_identity else super().encode(z)

    def decode(self, message: Tensor) -> Tensor:
        """The signal content z_S (paper equation 9)."""
        return message if self.is_identity else super().decode(message)


@dataclass(frozen=True, eq=False)
class DistortionBounded(_Projection):
    """Theorem 1: the shortest prefix of components whose removal moves Wz by at most ε, the last one shrunk.

    ``‖Wz − Wz'‖ = min(ε, ‖Wz‖)`` for every query; m' depends on the query, so a message's length is part of the
    message. On the patch operator, component k is the map of coefficients of filter k, and the theorem holds for
    the norms of these maps. Choosing m' needs ‖Wz‖: the edge then computes the whole layer.

    Args:
        factors: of the server's first layer.
        epsilon: distortion of the layer's output, in its units; with ``relative`` a fraction of ‖Wz‖.
        relative: whether epsilon counts in units of the query's own ‖Wz‖.

    Raises:
        DistortionError: epsilon is negative or not finite; on encoding, also when the factors are truncated and
            too few for this epsilon.
    """

    factors: Factors
    epsilon: float
    relative: bool = False
    name: str = "bounded"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise DistortionError(f"epsilon must be a finite number of at least 0, not {self.epsilon}")

    @cached_property
    def m(self) -> int:  # type: ignore[override]
        """The longest message that can occur."""
        computed = len(self.factors.s)
        return computed if self.factors.rank is None else min(computed, self.factors.rank)

    @property
    def message(self) -> Message:
        """Public facts about the messages."""
        fixed = super().message
        return Message(fixed.shape, fixed.carries, fixed_length=False)

    def encode(self, z: Tensor) -> Tensor:
        """Coefficients a' of equation 8, zero beyond each query's own m': (B, m), or (B, m, *positions)."""
        a = self.factors.project(z, self.m)
        length = a.flatten(2).norm(dim=2) if a.dim() > 2 else a.abs()
        shrink = self._shrink(z, length)
        return a * shrink.reshape(*shrink.shape, *(1,) * (a.dim() - 2)).to(a.dtype)

    def _shrink(self, z: Tensor, length: Tensor) -> Tensor:
        """Factor (B, m) on every component, from the components' lengths |a_k|."""
        s = self.factors.s[: self.m].to(length.device, torch.float64)
        length = length.double()
        tails, total = self._tails(z, (s * length) ** 2)
        budget = self.epsilon**2 * (total if self.relative else torch.ones_like(total))
        kept = self._kept(tails, budget)[:, None]
        order = torch.arange(1, self.m + 1, device=length.device)
        last = order == kept
        room = (budget[:, None] - tails.gather(1, kept)).clamp(min=0)
        # Where there is nothing to shrink, 0/0 must not reach the gradient through sqrt or the division.
        safe = last & (room > 0) & (length > 0)
        gamma = torch.where(safe, room, 1.0).sqrt() / torch.where(safe, s * length, 1.0)
        return (order <= kept).double() - torch.where(safe, gamma, 0.0)

    def _tails(self, z: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """ε_k² for k = 0 … m, shape (B, m + 1), and ‖Wz‖², shape (B,)."""
        known = energy.flip(1).cumsum(1).flip(1)
        tails = torch.cat([known, torch.zeros_like(known[:, :1])], dim=1) if self.m else energy.new_zeros(len(z), 1)
        if self.factors.complete:
            return tails, tails[:, 0]
        total = self.factors.apply(z).double().square().sum(1)
        rest = (total - tails[:, 0]).clamp(min=0)
        return tails + rest[:, None], total

    def _kept(self, tails: Tensor, budget: Tensor) -> Tensor:
        """m' = min{k : ε_k ≤ ε} for every query."""
        within = tails <= budget[:, None]
        if not bool(within[:, -1].all()):
            worst = float((tails[:, -1] / tails[:, 0]).nan_to_num().max().sqrt())  # 0/0 where a layer's output is 0
            raise DistortionError(
                f"the {self.m} factors at hand leave a relative distortion of up to {worst:.3g}, above the epsilon "
                f"{self.epsilon:g} asked for; factorise with a larger rank or allow more distortion"
            )
        return within.long().argmax(1)


def kept_components(message: Tensor) -> Tensor:
    """Number of leading components of each message that are to be sent: up to the last that is not zero, (B,)."""
    if message.dim() < 2:
        raise ShapeError(f"messages need a batch axis and a component axis, not the shape {tuple(message.shape)}")
    present = message.flatten(2).ne(0).any(2) if message.dim() > 2 else message.ne(0)
    order = torch.arange(1, message.shape[1] + 1, device=message.device)
    return (present * order).amax(1) if message.shape[1] else present.sum(1)
