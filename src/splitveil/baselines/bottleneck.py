"""The variational information bottleneck (Osia et al. 2018; Moyer et al. 2018; paper equation 2)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from splitveil.baselines.defence import Defended, Undefended
from splitveil.baselines.finetuning import FeatureVeil, positive
from splitveil.baselines.training import Secret, feature, fresh, reader, train
from splitveil.data import Part
from splitveil.message import Message
from splitveil.split import SplitModel
from splitveil.train import predict
from splitveil.train.ingredients import LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE

_SPEED = 10.0  # numbers of the channel move so much faster than the optimiser's rate, or a short training never
_SIDE = 12  # the decoder's image is at most so many pixels high and wide
_WIDTH = 128  # of the decoder's hidden layer


class GaussianChannel(nn.Module):
    """q(message | z) = N(μ, σ²) for features of n numbers: μ = g∘z and log σ² = w∘μ + b, all learnt by element.

    The gain g lets elements that the answer does not need fall silent within a short training.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(n))
        self.weight = nn.Parameter(torch.zeros(n))
        self.bias = nn.Parameter(torch.full((n,), -2.0 / _SPEED))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log variances (B, n) of features (B, n)."""
        mean = z * (_SPEED * self.log_gain).exp()
        log_variance = _SPEED * (self.weight * mean + self.bias)
        return mean, log_variance.clamp(LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE)

    @staticmethod
    def draw(mean: Tensor, log_variance: Tensor) -> Tensor:
        """Messages (B, n) drawn from N(μ, σ²), by torch's global generator."""
        return mean + (log_variance / 2).exp() * torch.randn_like(mean)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of N(μ, σ²) from N(0, I) in nats, mean over samples (B, n): a bound on I(message; x)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2


class Decoder(nn.Module):
    """p(small image | message, secret): independent normal pixels with one learnt variance.

    Args:
        n: numbers in a message.
        n_values: of the secret.
        pixels: numbers in a small image.
    """

    def __init__(self, n: int, n_values: int, pixels: int) -> None:
        super().__init__()
        self.n_values = n_values
        self.network = nn.Sequential(nn.Linear(n + n_values, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, pixels))
        self.log_variance = nn.Parameter(torch.tensor(-2.0 / _SPEED))

    def forward(self, message: Tensor, secret: Tensor, image: Tensor) -> Tensor:
        """−log p in nats, mean over samples; the normal's constant is left out."""
        told = nn.functional.one_hot(secret, self.n_values).to(message.dtype)
        drawn = self.network(torch.cat([message, told], 1)).float()
        log_variance = _SPEED * self.log_variance
        error = (drawn - image).square() / log_variance.exp() + log_variance
        loss: Tensor = error.sum(1).mean() / 2
        return loss


class Bottleneck:
    """The channel at the cut in training, and its penalty: β KL + γ (KL − log p(small image | message, secret)).

    Args:
        network: in training.
        block: whose input is the feature.
        channel: adds the noise.
        decoder: of the small image.
        secret: of the training part.
        beta, gamma: weights, see `InformationBottleneck`.
    """

    def __init__(
        self, network: nn.Module, block: nn.Module, channel: GaussianChannel, decoder: Decoder, secret: Secret,
        beta: float, gamma: float,
    ) -> None:  # fmt: skip
        self.heads = nn.ModuleList([channel, decoder])
        self._network, self._block, self._channel, self._decoder = network, block, channel, decoder
        self._secret, self._beta, self._gamma = secret, beta, gamma

    @contextmanager
    def step(self, _number: int, rows: Tensor) -> Iterator[list[Tensor]]:
        """See `Addition.step`."""
        penalties: list[Tensor] = []
        images: list[Tensor] = []

        def noisy(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
            (z,) = inputs
            secret = self._secret.values[rows].to(z.device)
            with torch.autocast(z.device.type, enabled=False):  # sums of many squares
                mean, log_variance = self._channel(z.flatten(1).float())
                message = self._channel.draw(mean, log_variance)
                nats = divergence(mean, log_variance)
            unseen = self._decoder(message, secret, small(images[0]).flatten(1))
            penalties.append(self._beta * nats + self._gamma * (nats + unseen))
            out: Tensor = message.reshape(z.shape).to(z.dtype)
            return out

        with (
            self._network.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0])),
            self._block.register_forward_pre_hook(noisy),
        ):
            yield penalties


def small(images: Tensor) -> Tensor:
    """Images (B, C, H, W), averaged down to at most 12 by 12 pixels."""
    height, width = images.shape[2:]
    return nn.functional.adaptive_avg_pool2d(images, (min(_SIDE, height), min(_SIDE, width)))


@dataclass(frozen=True, eq=False)
class Noisy(FeatureVeil):
    """Sends a draw from N(μ, σ²), which a trained channel gives for the feature.

    Attributes:
        channel: see `GaussianChannel`.
        feature_shape: shape of one feature.
    """

    channel: GaussianChannel
    feature_shape: tuple[int, ...]
    name: str = "bottleneck"

    @property
    def message(self) -> Message:
        """The feature's own shape; another message each time."""
        return Message(self.feature_shape, random=True)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Messages (B, *feature), by torch's global generator."""
        return self.channel.draw(*self.channel(z.flatten(1))).reshape(z.shape)

    def decode(self, message: Tensor) -> Tensor:
        """The message: what the server was trained on."""
        return message


@dataclass(frozen=True)
class InformationBottleneck:
    """Train a network whose message carries little of the image, and least of one hidden attribute.

    Equation 2 with variational bounds: −I(z; y) ≤ the answer's cross-entropy; I(z; x) ≤ KL(q(z|x) ‖ N(0, I)); and,
    since the secret reaches z through x alone, I(z; s) = I(z; x) − I(z; x | s) ≤ KL − log p(t | z, s) up to a
    constant, as in Moyer et al., where t is the image averaged down to 12 by 12 pixels: the bound holds for every
    function t of the image, and a small one costs little. All are in nats per image. The client sends a noisy draw
    of z, since a mean without noise has no bound.

    Attributes:
        beta: weight of I(z; x).
        gamma: weight of I(z; s).

    Raises:
        BaselineError: a weight is not a finite number above 0; on fitting, no hidden attribute is told.
    """

    beta: float
    gamma: float
    name: ClassVar[str] = "bottleneck"
    supervised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        positive("gamma", self.gamma)

    def fit(self, undefended: Undefended) -> Defended:
        """Train a fresh network; the facts hold ``nats``, the bound on I(message; x) on validation."""
        secret, data, seed = Secret.of(undefended), undefended.data, undefended.recipe.seed
        network = fresh(undefended.model, seed)
        shape = tuple(feature(undefended).shape[1:])
        n, pixels = math.prod(shape), small(data.train.images(slice(0, 1))).numel()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            channel, decoder = GaussianChannel(n), Decoder(n, secret.n_values, pixels)
        block = reader(network, undefended.at)
        train(undefended, network, Bottleneck(network, block, channel, decoder, secret, self.beta, self.gamma))
        split, veil = SplitModel(network, undefended.at), Noisy(channel.eval().requires_grad_(False), shape)
        return Defended(split, veil, _facts(split, veil, data.val, seed))


@torch.no_grad()
def _facts(split: SplitModel, veil: Noisy, part: Part, seed: int) -> dict[str, float]:
    z = predict(split.client, part)
    nats, right = 0.0, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for rows in torch.split(torch.arange(len(z)), 512):
            batch = z[rows].to(split.device)
            nats += float(divergence(*veil.channel(batch.flatten(1)))) * len(rows)
            right += int((split.server(veil.encode(batch)).argmax(1).cpu() == part.y[rows]).sum())
    return {"nats": nats / len(z), "val_accuracy": right / len(z)}
