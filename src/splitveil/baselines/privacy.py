"""The local Gaussian mechanism: differential privacy for one query, by noise on a clipped feature."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr
from torch import Tensor

from splitveil.baselines.defence import Defended, Undefended
from splitveil.baselines.finetuning import FeatureVeil, Start, finetune, positive
from splitveil.errors import BaselineError
from splitveil.message import Message


def gaussian_delta(epsilon: float, sensitivity: float, sigma: float) -> float:
    """The smallest δ for which noise N(0, σ²I) is (ε, δ)-private (Balle and Wang 2018, theorem 8)."""
    half, shift = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    # e^ε times a tail, in logarithms: e^ε alone overflows above 709.
    return float(ndtr(half - shift) - math.exp(min(epsilon + float(log_ndtr(-half - shift)), 0.0)))


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """The smallest σ that is (ε, δ)-private: the analytic calibration (Balle and Wang 2018, arXiv 1805.06530).

    Args:
        epsilon, sensitivity: above 0.
        delta: between 0 and 1.

    Raises:
        BaselineError: a value is impossible.
    """
    positive("epsilon", epsilon)
    positive("sensitivity", sensitivity)
    _share("delta", delta)

    def above(exponent: float) -> float:
        return gaussian_delta(epsilon, 1.0, math.exp(exponent)) - delta

    low, high = -1.0, 1.0
    while above(low) < 0:
        low -= 1
    while above(high) > 0:
        high += 1
    return sensitivity * math.exp(float(brentq(above, low, high, xtol=1e-13)))


@dataclass(frozen=True, eq=False)
class ClippedGaussian(FeatureVeil):
    """Standardises z, clips it to an L2 norm, and adds normal noise to every number.

    Attributes:
        mean, scale: of the training features, by element, (n,).
        clip: largest L2 norm of a standardised feature.
        sigma: standard deviation of the noise, in standardised units.
        feature_shape: shape of one feature, n numbers.
    """

    mean: Tensor
    scale: Tensor
    clip: float
    sigma: float
    feature_shape: tuple[int, ...]
    name: str = "gaussian"

    @property
    def message(self) -> Message:
        """n numbers, other ones each time."""
        return Message((len(self.mean),), random=True)

    def encode(self, z: Tensor) -> Tensor:
        """Clipped and noisy standardised features (B, n), by torch's global generator."""
        x = (z.flatten(1) - self.mean.to(z.device)) / self.scale.to(z.device)
        norms: Tensor = x.norm(dim=1, keepdim=True)
        clipped = x * (self.clip / norms.clamp(min=self.clip))
        return clipped + self.sigma * torch.randn_like(clipped)

    def decode(self, message: Tensor) -> Tensor:
        """The noisy feature in its own units, (B, *feature)."""
        z = message * self.scale.to(message.device) + self.mean.to(message.device)
        return z.reshape(len(z), *self.feature_shape)


@dataclass(frozen=True)
class GaussianMechanism:
    """(ε, δ) local differential privacy of one query's feature; the server's half is fine-tuned on noisy features.

    Any two features are at most 2C apart after clipping to norm C, which is the sensitivity. The guarantee is for
    one message; q messages of one person are q times as revealing at most (basic composition). Mean and scale of
    the training features are taken as public.

    Attributes:
        epsilon: of one message.
        delta: of one message.
        clip: C, as the share of training features whose norm it leaves alone.

    Raises:
        BaselineError: a value is impossible; on fitting, the features do not vary.
    """

    epsilon: float
    delta: float = 1e-5
    clip: float = 0.5
    name: ClassVar[str] = "gaussian"
    supervised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("epsilon", self.epsilon)
        _share("delta", self.delta)
        _share("clip", self.clip)

    def fit(self, undefended: Undefended) -> Defended:
        """Calibrate the noise, then fine-tune; the facts hold epsilon, delta, sigma and the norm C as ``clip``."""
        start = Start.of(undefended)
        z = start.train.flatten(1)
        mean, spread = z.mean(0), z.std(0)
        scale = torch.where(spread > 0, spread, 1.0)
        bound = float(((z - mean) / scale).norm(dim=1).quantile(self.clip))
        if not bound > 0:
            raise BaselineError("the features at this cut are all the same, so there is nothing to clip; cut elsewhere")
        sigma = gaussian_sigma(self.epsilon, self.delta, 2 * bound)
        veil = ClippedGaussian(mean, scale, bound, sigma, start.feature_shape)
        facts = {"epsilon": self.epsilon, "delta": self.delta, "sigma": sigma, "clip": bound}
        return Defended(start.split, veil, facts | finetune(undefended, start, veil))


def _share(name: str, value: object) -> None:
    positive(name, value)
    if float(value) >= 1:  # type: ignore[arg-type]
        raise BaselineError(f"{name} must be below 1, not {value!r}")
