"""Projections that know nothing of the server: onto random directions, and onto the feature's principal components."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from splitveil.baselines.defence import Defended, Undefended
from splitveil.baselines.finetuning import FeatureVeil, Start, at_most, finetune, whole
from splitveil.message import Message


@dataclass(frozen=True, eq=False)
class OrthonormalProjection(FeatureVeil):
    """Sends the coefficients of z − mean in an orthonormal basis; decodes by the transpose.

    Attributes:
        basis: orthonormal rows, (m, n).
        mean: (n,).
        feature_shape: shape of one feature, n numbers.
        name: of the baseline.
    """

    basis: Tensor
    mean: Tensor
    feature_shape: tuple[int, ...]
    name: str

    @property
    def message(self) -> Message:
        """m numbers."""
        return Message((len(self.basis),))

    def encode(self, z: Tensor) -> Tensor:
        """Coefficients (B, m)."""
        return (z.flatten(1) - self.mean.to(z.device)) @ self.basis.T.to(z.device)

    def decode(self, message: Tensor) -> Tensor:
        """The nearest feature in the span of the basis, (B, *feature)."""
        z = self.mean.to(message.device) + message @ self.basis.to(message.device)
        return z.reshape(len(z), *self.feature_shape)


@dataclass(frozen=True)
class RandomProjection:
    """Keep m random orthonormal directions of z (QR of a Gaussian matrix), and fine-tune the server's half.

    Attributes:
        m: directions kept; the seed is the recipe's.

    Raises:
        BaselineError: m is not a whole number of at least 1; on fitting, the feature has fewer than m numbers.
    """

    m: int
    name: ClassVar[str] = "random"
    supervised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("m", self.m)

    def fit(self, undefended: Undefended) -> Defended:
        """Draw the directions, then fine-tune."""
        start = Start.of(undefended)
        at_most(self.m, start.size, "numbers of the feature")
        generator = torch.Generator().manual_seed(undefended.recipe.seed)
        directions = torch.linalg.qr(torch.randn(start.size, self.m, generator=generator)).Q.T.contiguous()
        veil = OrthonormalProjection(directions, torch.zeros(start.size), start.feature_shape, self.name)
        return Defended(start.split, veil, finetune(undefended, start, veil))


@dataclass(frozen=True)
class PrincipalComponents:
    """Keep the m principal components of z on the training part, and fine-tune the server's half.

    Attributes:
        m: components kept.

    Raises:
        BaselineError: m is not a whole number of at least 1; on fitting, features or samples are fewer than m.
    """

    m: int
    name: ClassVar[str] = "pca"
    supervised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("m", self.m)

    def fit(self, undefended: Undefended) -> Defended:
        """Find the components, then fine-tune; the facts hold the share of variance that they explain."""
        start = Start.of(undefended)
        at_most(self.m, min(start.size, len(start.train)), "components that the training features can have")
        # The covariance of thousands of numbers takes minutes; a few leading components take seconds.
        fitted = PCA(self.m, svd_solver="randomized", random_state=undefended.recipe.seed % 2**32)
        fitted.fit(start.train.flatten(1).numpy())
        basis, mean = (torch.from_numpy(each).float() for each in (fitted.components_, fitted.mean_))
        veil = OrthonormalProjection(basis, mean, start.feature_shape, self.name)
        explained = float(fitted.explained_variance_ratio_.sum())
        return Defended(start.split, veil, {"explained": explained, **finetune(undefended, start, veil)})
