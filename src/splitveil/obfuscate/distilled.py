"""An encoder and a decoder tuned, without any label, so that the server's answers stay what they were."""

import math
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitveil.errors import RecipeError
from splitveil.obfuscate.affine import Affine
from splitveil.obfuscate.aware import ServerAware
from splitveil.obfuscate.encoder import Encoder, Layer, check_width, layers_to_try
from splitveil.obfuscate.features import Features
from splitveil.obfuscate.tuning import EPOCHS, MIXING, Lesson, Progress, Weights, check_mixing, divergence, part_of
from splitveil.split import SplitModel

TEMPERATURE = 2.0
"""Of the answers that are compared. Where the server is sure of nearly everything, as it is of what it was trained
on, little is left to learn from its answers as they are. `splitveil reproduce tuning` compares."""
BOTTLENECK = 0.01
"""Weight of the bottleneck: without it coefficients may follow the training features too closely."""
WHOLE = 0.5
"""Of the samples, the share that keeps all coefficients: what was asked for counts as much as all shorter prefixes."""


@dataclass(frozen=True, eq=False)
class Distilled(Affine):
    """`ServerAware` tuned so that the server's answers from decoded features stay those on the features themselves.

    KL(answer ‖ answer from the message), both softened, is minimised over unlabelled features. Half of the samples keep
    all coefficients, each other one a random prefix (nested dropout: Rippel, Gelbart and Adams 2014), so that one
    training serves every m. Fit it with `Distilled.fit`, or with `Distilled.fit_with_server` where the server's half
    may change too.

    Attributes:
        layer: of h units before the encoder, which is then (m, h); None: the encoder is affine.
    """

    layer: Layer | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None:
            self.layer.check(self.feature_shape)

    @property
    def encoder_inputs(self) -> int:
        """Units of the layer, or numbers of a feature without one."""
        return super().encoder_inputs if self.layer is None else len(self.layer.weight)

    def encode(self, z: Tensor) -> Tensor:
        """Coefficients (B, m) of features (B, *feature)."""
        return Encoder(self.mean, self.encoder, None, self.layer)(z)

    @classmethod
    def fit(
        cls, split: SplitModel, features: Features, *, m: int, epochs: int = EPOCHS, width: int | None = None,
        bottleneck: float = BOTTLENECK, temperature: float = TEMPERATURE, mixing: float = MIXING, whole: float = WHOLE,
        seed: int = 0, progress: Progress | None = None,
    ) -> "Distilled":  # fmt: skip
        """Tune encoder and decoder for the server as it is.

        Args:
            split: the trained model.
            features: of unlabelled images.
            m: coefficients at most; `keep` gives fewer.
            epochs: passes over the features; the best one on held-out features is kept, the start included.
            width: of a layer before the encoder that reads every number, 0 for none. Where not given, the layer is as
                wide as a tenth of the client's multiply-accumulates allows. Where that is less than 2m, one that reads
                averages over squares of the maps is tuned, and none, which may cost more; what keeps the answers
                better on held-out features is taken.
            bottleneck: weight β of KL(N(a, σ²) ‖ N(0, 1)) in nats, with coefficients that are sent through noise σ,
                learned for each, while training (a variational bottleneck without labels); the message is then a.
            temperature: T that logits are divided by where answers are compared.
            mixing: α of the shares Beta(α, α) by which features are mixed with others, the server answering the
                mixtures; 0: features as they are.
            whole: share of the samples that keep all coefficients while tuning; 1 where no fewer will be sent.
            seed: of the batches, mixtures, prefixes and first weights.
            progress: called as (epochs done, epochs in all, text).

        Raises:
            RankError: fewer than m directions matter to the server, or the width is too small for m, or too large.
            RecipeError: the number of epochs is negative, or bottleneck, temperature, mixing or whole is out of range.
            ModelError: the server's answer is not one row of logits, or not finite.
        """
        return _fit(
            split, features, tuned_along=False, m=m, epochs=epochs, width=width, bottleneck=bottleneck,
            temperature=temperature, mixing=mixing, whole=whole, seed=seed, progress=progress,
        )[1]  # fmt: skip

    @classmethod
    def fit_with_server(
        cls, split: SplitModel, features: Features, *, m: int, epochs: int = EPOCHS, width: int | None = None,
        bottleneck: float = BOTTLENECK, temperature: float = TEMPERATURE, mixing: float = MIXING, whole: float = WHOLE,
        seed: int = 0, progress: Progress | None = None,
    ) -> "tuple[SplitModel, Distilled]":  # fmt: skip
        """`fit`, with a copy of the server's half tuned along; gives the split model of that copy, and the obfuscator.

        The copy answers from messages; its client's half is unchanged.
        """
        copy, veil = _fit(
            split, features, tuned_along=True, m=m, epochs=epochs, width=width, bottleneck=bottleneck,
            temperature=temperature, mixing=mixing, whole=whole, seed=seed, progress=progress,
        )  # fmt: skip
        copy.model.zero_grad()
        return copy, veil


def _fit(
    split: SplitModel, features: Features, *, tuned_along: bool, m: int, epochs: int, width: int | None,
    bottleneck: float, temperature: float, mixing: float, whole: float, seed: int, progress: Progress | None,
) -> tuple[SplitModel, Distilled]:  # fmt: skip
    """With each encoder that is to be tried, and for each with a copy of the model where its server is tuned along."""
    if width is not None:
        check_width(width, m, "coefficients")
    if not 0.1 <= temperature <= 100:
        raise RecipeError(f"temperature={temperature} cannot be; take a number from 0.1 to 100")
    if not 0 <= bottleneck < math.inf:
        raise RecipeError(f"bottleneck={bottleneck} cannot be; take a finite number above 0, or 0 for none")
    check_mixing(mixing)
    if not 0 < whole <= 1:
        raise RecipeError(f"whole={whole} cannot be; take a share of the samples above 0, at most 1")
    start = ServerAware.fit(split, features, m=m, seed=seed)
    lesson = Lesson.of(split, features)
    layers = layers_to_try(features, m, m, width)
    found = []
    for index, (units, pool) in enumerate(layers):
        its = SplitModel(deepcopy(split.model).requires_grad_(), split.at) if tuned_along else split
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = Encoder.started(start, units, pool)
        weights = {**encoder.weights, "decoder": start.decoder, "offset": start.offset}
        if bottleneck:
            weights["log_noise"] = torch.full((m,), -2.0)  # little at first
        tuned_server = its.server if tuned_along else None
        server = lesson.teacher if tuned_server is None else lesson.as_logits(tuned_server)
        tuned = lesson.tune(
            weights, _Objective(server, encoder, bottleneck, temperature, whole), epochs=epochs, seed=seed,
            mixing=mixing, server=tuned_server, progress=part_of(progress, index, len(layers)),
        )  # fmt: skip
        found.append((tuned, encoder, its))
    tuned, encoder, its = min(found, key=lambda one: one[0].loss)
    encoder = encoder.with_weights(tuned.weights)
    veil = Distilled(
        encoder.weight, start.mean, tuned.weights["decoder"], tuned.weights["offset"], start.energy,
        start.feature_shape, "distilled", encoder.layer,
    )  # fmt: skip
    return its, veil


@dataclass(frozen=True, eq=False)
class _Objective:
    """KL between the server's answers to features and to what messages decode to, over prefixes of them.

    While training every sample keeps a prefix of its own; on held-out features the mean that is expected of it counts.
    """

    server: nn.Module
    encoder: Encoder
    bottleneck: float
    temperature: float
    whole: float

    def __call__(self, weights: Weights, z: Tensor, answers: Tensor, training: bool) -> Tensor:
        a = self.encoder.with_weights(weights)(z)
        sizes, shares = prefixes(a.shape[1], self.whole)
        order = torch.arange(a.shape[1])
        if not training:
            losses = [self._loss(weights, a, (order < size).expand_as(a).to(a), z, answers, False) for size in sizes]
            return torch.stack(losses) @ shares.to(a)
        drawn = sizes[torch.multinomial(shares, len(z), replacement=True)]
        return self._loss(weights, a, (order < drawn[:, None]).to(a), z, answers, True)

    def _loss(self, weights: Weights, a: Tensor, kept: Tensor, z: Tensor, answers: Tensor, training: bool) -> Tensor:
        penalty = a.new_zeros(())
        if self.bottleneck:
            penalty = self.bottleneck * _surplus(a, weights["log_noise"], kept)
            if training:
                a = a + weights["log_noise"].exp() * torch.randn_like(a)
        decoded = weights["offset"] + (a * kept) @ weights["decoder"]
        return divergence(answers, self.server(decoded.reshape(z.shape)), self.temperature) + penalty


def prefixes(m: int, whole: float) -> tuple[Tensor, Tensor]:
    """Powers of two below m, and m; and the share of the samples that keeps each, of which ``whole`` keeps all m."""
    shorter = [2**power for power in range((m - 1).bit_length())]
    each = (1 - whole) / max(len(shorter), 1)
    return torch.tensor([*shorter, m]), torch.tensor([*[each] * len(shorter), whole if shorter else 1.0])


def _surplus(a: Tensor, log_noise: Tensor, kept: Tensor) -> Tensor:
    """KL(N(a, σ²) ‖ N(0, 1)) in nats, summed over the coefficients that are kept, mean over samples."""
    each = (a.square() + (2 * log_noise).exp() - 1) / 2 - log_noise
    return (each * kept).sum(1).mean()
