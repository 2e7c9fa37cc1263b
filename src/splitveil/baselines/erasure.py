"""Least-squares concept erasure (LEACE; Belrose et al. 2023, arXiv 2306.03819)."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from splitveil.baselines.defence import Defended, Undefended
from splitveil.baselines.finetuning import FeatureVeil, Start, answer_accuracy
from splitveil.message import Message

# Below this correlation a direction of the one-hot secret is rounding: its columns sum to one, so one is always empty.
_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Erased(FeatureVeil):
    """Sends z − L R (z − mean): the feature without what is linearly correlated with a concept.

    Attributes:
        left: L, (n, k).
        right: R, (k, n).
        mean: (n,).
        feature_shape: shape of one feature, n numbers.
    """

    left: Tensor
    right: Tensor
    mean: Tensor
    feature_shape: tuple[int, ...]
    name: str = "leace"

    @property
    def message(self) -> Message:
        """The feature's own shape."""
        return Message(self.feature_shape)

    def encode(self, z: Tensor) -> Tensor:
        """Erased features (B, *feature)."""
        coordinates = (z.flatten(1) - self.mean.to(z.device)) @ self.right.T.to(z.device)
        return z - (coordinates @ self.left.T.to(z.device)).reshape(z.shape)

    def decode(self, message: Tensor) -> Tensor:
        """The message: an erased feature."""
        return message


@dataclass(frozen=True)
class LeastSquaresErasure:
    """Erase the one hidden attribute that it is told: no linear classifier then beats a constant on training features.

    It is the smallest change of the feature that does so under the covariance that the package estimates, which is
    shrunk (Chen et al. 2010), and has no knob: one setting is the whole grid. A classifier that is not linear may
    still find the attribute. The server's half stays as it is.
    """

    name: ClassVar[str] = "leace"
    supervised: ClassVar[bool] = True

    def fit(self, undefended: Undefended) -> Defended:
        """Fit the eraser to training features and the told attribute; raises `BaselineError` where none is told."""
        secret = undefended.secret
        start = Start.of(undefended)
        one_hot = nn.functional.one_hot(undefended.data.train.hidden[secret]).double()
        left, right, mean = _eraser(start.train.flatten(1).double(), one_hot)
        used = right.abs().sum(1) > 0
        veil = Erased(left[:, used].float(), right[used].float(), mean.float(), start.feature_shape)
        facts = {"rank": int(used.sum()), "val_accuracy": answer_accuracy(undefended, start, veil)}
        return Defended(start.split, veil, facts)


def _eraser(x: Tensor, one_hot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L (n, k), R (k, n) and the mean (n,), in float64 since a feature's covariance is nearly singular."""
    with warnings.catch_warnings():
        # On import the package compiles functions in a way that newer versions of torch call deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        from concept_erasure import LeaceEraser
    # Without the trace's constraint, which would put a mixture of full rank in place of the paper's projection.
    eraser = LeaceEraser.fit(x, one_hot, constrain_cov_trace=False, svd_tol=_TOLERANCE)
    return eraser.proj_left, eraser.proj_right, eraser.bias
