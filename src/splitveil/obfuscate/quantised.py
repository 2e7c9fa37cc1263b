"""Coefficients as a few integers: as many messages as are asked for, shared out by what the server needs."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splitveil.errors import RankError, ShapeError
from splitveil.obfuscate.affine import Affine, check_shapes
from splitveil.obfuscate.distilled import Distilled
from splitveil.obfuscate.features import Features
from splitveil.obfuscate.tables import Tables, look_up
from splitveil.obfuscate.tuning import EPOCHS, Lesson, Progress, Weights, divergence
from splitveil.split import SplitModel

MOST_LEVELS = 256
_SAMPLES = 2048  # features that the allocation looks at
_ROUNDS = 50


@dataclass(frozen=True, eq=False)
class Quantised(Tables):
    """Each coefficient of another obfuscator as the number of an interval; a scalar quantiser per coefficient.

    Fit it with `Quantised.fit`.

    Attributes:
        inner: gives the coefficients; only those that got two values or more are left.
        thresholds: the upper ends of all intervals but the last, rising, +∞ where a coefficient has fewer: (m, L − 1).
        table: decoded features, see `Tables`.
        levels: intervals of each coefficient.
    """

    inner: Affine
    thresholds: Tensor
    table: Tensor
    levels: tuple[int, ...]
    feature_shape: tuple[int, ...]
    name: str = "quantised"

    def __post_init__(self) -> None:
        self._check_table()
        if len(self.levels) != self.inner.m or self.inner.feature_shape != self.feature_shape:
            raise ShapeError("every coefficient needs a number of values, and all features one shape")
        check_shapes(thresholds=(self.thresholds, (self.inner.m, max(self.levels) - 1)))

    def encode(self, z: Tensor) -> Tensor:
        """Digits (B, m) of features (B, *feature)."""
        return _digits(self.inner.encode(z), self.thresholds.to(z.device))

    @classmethod
    def fit(
        cls, split: SplitModel, features: Features, *, m: int, messages: int, inner: Affine | None = None,
        epochs: int = EPOCHS, seed: int = 0, progress: Progress | None = None,
    ) -> "Quantised":  # fmt: skip
        """Intervals by Lloyd and Max; how many, by the divergence that each coefficient's rounding brings about.

        Values are given out step by step to the coefficient whose divergence falls most per bit (a step may be several
        values, since one alone may gain nothing), as long as the product of all stays within ``messages``. What the
        digits decode to is then tuned as `Distilled` is.

        Args:
            split: the trained model.
            features: of unlabelled images.
            m: coefficients at most; those that are worth no bit are left out.
            messages: different messages at most, M.
            inner: gives the coefficients, of which the first m count; `Distilled` where not given, whose other settings
                can be had by fitting it first.
            epochs: of the tuning, and of the inner one.
            seed: likewise.
            progress: called as (epochs done, epochs in all, text).

        Raises:
            RankError: fewer than two messages are asked for, or fewer than m directions matter.
            RecipeError: the number of epochs is negative.
            ModelError: the server's answer is not one row of logits, or not finite.
        """
        if messages < 2:
            raise RankError(f"messages={messages}: an answer needs at least two different messages")
        inner = inner or Distilled.fit(split, features, m=m, epochs=epochs, seed=seed, progress=progress)
        inner = inner.keep(min(m, inner.m))
        lesson = Lesson.of(split, features)
        server = lesson.teacher
        rows = torch.linspace(0, len(lesson.z) - 1, min(_SAMPLES, len(lesson.z))).round().long()
        with torch.no_grad():
            a = inner.encode(lesson.z)
            levels = _allocated(lesson.answers[rows], a[rows], inner, server, messages)
        used = torch.tensor([index for index, count in enumerate(levels) if count > 1])
        kept = tuple(count for count in levels if count > 1)
        quantisers = [_lloyd(a[:, index], count) for index, count in zip(used.tolist(), kept, strict=True)]
        thresholds = torch.full((len(kept), max(kept) - 1), math.inf)
        for row, (ends, _) in zip(thresholds, quantisers, strict=True):
            row[: len(ends)] = ends
        constant = inner.offset + a.mean(0) @ inner.decoder - a.mean(0)[used] @ inner.decoder[used]
        parts = [values[:, None] * inner.decoder[index] for index, (_, values) in zip(used, quantisers, strict=True)]
        table = torch.cat([part + constant / len(kept) for part in parts])
        chosen = _only(inner, used)

        def loss(weights: Weights, z: Tensor, answers: Tensor, training: bool) -> Tensor:  # noqa: ARG001
            decoded = look_up(weights["table"], kept, _digits(chosen.encode(z), thresholds.to(z.device)))
            return divergence(answers, server(decoded.reshape(z.shape)))

        tuned = lesson.tune({"table": table}, loss, epochs=epochs, seed=seed, progress=progress)
        return cls(chosen, thresholds, tuned.weights["table"], kept, features.shape)


def _digits(a: Tensor, thresholds: Tensor) -> Tensor:
    """Which interval each coefficient (B, m) lies in."""
    return (a[:, :, None] > thresholds).sum(2)


def _only(inner: Affine, used: Tensor) -> Affine:
    """The obfuscator of some of the coefficients."""
    return replace(inner, encoder=inner.encoder[used], decoder=inner.decoder[used], energy=inner.energy[used])


def _allocated(answers: Tensor, a: Tensor, inner: Affine, server: torch.nn.Module, messages: int) -> list[int]:
    """Values of each coefficient, by greedy steps along the falling divergence."""

    def costs(index: int) -> list[float]:
        """Divergence with 1, 2, 4, … values of one coefficient, all others being exact."""
        found = []
        for count in _counts(messages):
            rounded = a.clone()
            ends, values = _lloyd(a[:, index], count)
            rounded[:, index] = values[(a[:, index, None] > ends).sum(1)]
            decoded = (inner.decode(part).to(answers.device) for part in torch.split(rounded, 512))
            found.append(float(divergence(answers, torch.cat([server(z) for z in decoded]))))
        return found

    tables = [costs(index) for index in range(inner.m)]
    steps, counts = [0] * inner.m, _counts(messages)
    while True:
        size = math.prod(counts[step] for step in steps)
        gains = {
            (index, after): (table[steps[index]] - table[after]) / math.log2(counts[after] / counts[steps[index]])
            for index, table in enumerate(tables)
            for after in range(steps[index] + 1, len(counts))
            if size // counts[steps[index]] * counts[after] <= messages
        }
        best = max(gains, key=lambda key: gains[key], default=None)
        if best is None or (gains[best] <= 0 and size > 1):
            return [counts[step] for step in steps]
        steps[best[0]] = best[1]


def _counts(messages: int) -> list[int]:
    """Numbers of values that a coefficient may get."""
    return [count for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, MOST_LEVELS) if count <= messages]


def _lloyd(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Thresholds (count − 1,) and values (count,) of a scalar quantiser of small squared error (Lloyd 1982).

    From intervals of equal chance on: every value becomes the mean of its interval, every threshold the middle
    between two values, which is a local optimum.
    """
    ordered = values.sort().values.double()
    points = torch.quantile(_thinned(ordered), (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    for _ in range(_ROUNDS):
        ends = torch.searchsorted(ordered, (points[1:] + points[:-1]) / 2, right=True)
        edges = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(ordered))])
        sizes = edges.diff()
        points = torch.where(sizes > 0, sums[edges].diff() / sizes.clamp(min=1), points)
    return ((points[1:] + points[:-1]) / 2).float(), points.float()


def _thinned(ordered: Tensor) -> Tensor:
    """At most 2**20 of the values, since torch.quantile takes no more than 2**24."""
    return ordered[:: max(1, len(ordered) >> 20)]
