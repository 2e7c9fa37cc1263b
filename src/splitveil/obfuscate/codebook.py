"""A message that is one number among M, chosen so that the server's answer is kept."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitveil.errors import RankError, ShapeError
from splitveil.obfuscate.aware import ServerAware
from splitveil.obfuscate.clustering import clusters
from splitveil.obfuscate.encoder import Encoder, check_width, layers_to_try
from splitveil.obfuscate.features import Features
from splitveil.obfuscate.tables import Tables
from splitveil.obfuscate.tuning import EPOCHS, MIXING, Lesson, Progress, Weights, check_mixing, part_of
from splitveil.split import SplitModel

DIRECTIONS = 16
"""Directions of `ServerAware` that the first scores are made of, or as many as matter."""


@dataclass(frozen=True, eq=False)
class Codebook(Tables):
    """The index of a codeword, of M; the server looks the codeword up, a feature, and answers from it.

    The server's answers are clustered by KL divergence, for two classes by the best partition into intervals (over 512
    quantiles, where there are more different answers). Scores for the codewords and the codewords themselves are then
    tuned for the expected divergence of the server's answers.
    Fit it with `Codebook.fit`.

    Attributes:
        encoder: gives a score for each codeword.
        table: the codewords, (M, n).
    """

    encoder: Encoder
    table: Tensor
    feature_shape: tuple[int, ...]
    name: str = "codebook"

    def __post_init__(self) -> None:
        self._check_table()
        if len(self.encoder.weight) != len(self.table) or len(self.encoder.mean) != self.table.shape[1]:
            raise ShapeError("an encoder needs a score for every codeword, from features of the codewords' shape")
        if self.encoder.bias is None:
            raise ShapeError("scores need a bias, which says how far each codeword's cluster lies from the mean")
        if self.encoder.layer is not None:
            self.encoder.layer.check(self.feature_shape)

    @property
    def levels(self) -> tuple[int, ...]:  # type: ignore[override]
        """One digit of M values."""
        return (len(self.table),)

    def encode(self, z: Tensor) -> Tensor:
        """Indices (B, 1), int64, of features (B, *feature)."""
        return self.encoder(z).argmax(1, keepdim=True)

    @staticmethod
    def directions(split: SplitModel, features: Features, seed: int = 0) -> ServerAware:
        """What the scores of a codebook begin with; raises as `ServerAware.fit` does."""
        return ServerAware.fit(split, features, m=DIRECTIONS, seed=seed, fewer=True)

    @classmethod
    def fit(
        cls, split: SplitModel, features: Features, *, messages: int, epochs: int = EPOCHS, width: int | None = None,
        mixing: float = MIXING, start: ServerAware | None = None, seed: int = 0, progress: Progress | None = None,
    ) -> "Codebook":  # fmt: skip
        """Cluster, then tune.

        Args:
            split: the trained model.
            features: of unlabelled images.
            messages: codewords at most, M; clusters that nothing falls into are left out.
            epochs: of the tuning.
            width: of the encoder's hidden layer, see `Distilled.fit`.
            mixing: of features, see there.
            start: the directions that scores begin with, from `Codebook.directions`; many codebooks can share them.
            seed: of all that is drawn.
            progress: called as (epochs done, epochs in all, text).

        Raises:
            RankError: fewer than two messages are asked for, the width cannot be, or no direction matters.
            RecipeError: the number of epochs is negative, or the mixing out of range.
            ModelError: the server's answer is not one row of logits, or not finite.
        """
        if messages < 2:
            raise RankError(f"messages={messages}: an answer needs at least two different messages")
        check_mixing(mixing)
        start = start or cls.directions(split, features, seed)
        if width is not None:
            check_width(width, start.m, "directions that the scores are made of")
        lesson = Lesson.of(split, features)
        member = clusters(lesson.answers.cpu(), messages, seed)
        count = int(member.max()) + 1
        table = torch.stack([lesson.z[member == index].flatten(1).mean(0) for index in range(count)])
        layers = layers_to_try(features, start.m, count, width)
        found = []
        for index, (units, pool) in enumerate(layers):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                encoder = _scores(start, units, pool, start.encode(lesson.z), member)
            tuned = lesson.tune(
                encoder.weights | {"table": table}, _Expected(lesson.teacher, encoder), epochs=epochs, seed=seed,
                mixing=mixing, progress=part_of(progress, index, len(layers)),
            )  # fmt: skip
            found.append((tuned, encoder))
        tuned, encoder = min(found, key=lambda one: one[0].loss)
        return cls(encoder.with_weights(tuned.weights), tuned.weights["table"], features.shape)


def _scores(start: ServerAware, width: int, pool: int, a: Tensor, member: Tensor) -> Encoder:
    """Scores by distance from the clusters' means in the coefficients a (N, m): −½‖a − c‖² up to what all share."""
    centres = torch.stack([a[member == index].mean(0) for index in range(int(member.max()) + 1)])
    inner = Encoder.started(start, width, pool)
    return Encoder(start.mean, centres @ inner.weight, -centres.square().sum(1) / 2, inner.layer)


@dataclass(frozen=True, eq=False)
class _Expected:
    """The divergence of the answers to codewords: expected over the softmax of the scores while training, then of
    the best score alone. The expectation is linear in the chances, so that its minimum is a hard choice.
    """

    server: nn.Module
    encoder: Encoder

    def __call__(self, weights: Weights, z: Tensor, answers: Tensor, training: bool) -> Tensor:
        scores = self.encoder.with_weights(weights)(z)
        log_answers = self.server(weights["table"].clone().reshape(-1, *z.shape[1:])).log_softmax(1)
        costs: Tensor = torch.special.entr(answers).sum(1, keepdim=True).neg() - answers @ log_answers.mT
        if training:
            return (scores.softmax(1) * costs).sum(1).mean()
        return costs.gather(1, scores.argmax(1, keepdim=True)).mean()
