"""Obfuscators that know how features spread, and what the server does with them: in its first layer, or in all."""

from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from splitveil.errors import ModelError, RankError
from splitveil.linear.layers import read_layers
from splitveil.obfuscate.affine import Affine
from splitveil.obfuscate.directions import Product, nested_directions
from splitveil.obfuscate.features import Features, check_finite, logits_of
from splitveil.obfuscate.moments import Moment, mean_of
from splitveil.split import SplitModel

Metric = Literal["fisher", "logits"]
_EVERY_CLASS = 16
"""Up to so many classes the expectation over them is exact; beyond it is an average over as many drawn ones."""


class CovarianceAware(Affine):
    """The optimal affine map of rank m for E‖W(z − z')‖², W the server's first layer and z as it really spreads.

    What `TopComponents` is for isotropic features. Fit it with `CovarianceAware.fit`.
    """

    @classmethod
    def fit(cls, split: SplitModel, features: Features, *, m: int) -> "CovarianceAware":
        """Directions from Σ^½ WᵀW Σ^½.

        Args:
            split: the trained model.
            features: of unlabelled images.
            m: coefficients.

        Raises:
            NoLinearLayerError: no linear layer reads the feature.
            RankError: the layer has fewer than m directions.
        """
        layer = read_layers(split.server_layer, features.shape).to(torch.zeros(0, dtype=torch.float64))

        def metric(vectors: Tensor) -> Tensor:
            return layer.adjoint(layer.apply(vectors.mT.reshape(-1, *features.shape))).flatten(1).mT

        return _enough(cls(**_fitted(features, metric, m), name="covariance-aware"), m, features.count)


class ServerAware(Affine):
    """Directions that the whole server cares about, where features really spread; at every cut, linear layer or not.

    From Σ^½ G Σ^½ with G = E[Jᵀ F J]: J the Jacobian of the server's logits at a feature, F the metric of its
    answers. With features of unit covariance these are the active subspaces of Constantine, Dow and Wang (2014).
    Fit it with `ServerAware.fit`.
    """

    @classmethod
    def fit(
        cls, split: SplitModel, features: Features, *, m: int, metric: Metric = "logits", isotropic: bool = False,
        seed: int = 0, fewer: bool = False,
    ) -> "ServerAware":  # fmt: skip
        """Three passes over the features: for the gradients, the mean and the covariance.

        Args:
            split: the trained model; its logits are (B, classes).
            features: of unlabelled images.
            m: coefficients.
            metric: "fisher": diag(p) − ppᵀ, by which the answer's distribution changes to second order in KL;
                "logits": I − 11ᵀ/K, logits up to a constant, which does not fade where the model is sure.
            isotropic: take features as uncorrelated, each number of unit variance: the active subspaces.
            seed: of the classes that are drawn where there are many.
            fewer: whether fewer coefficients are fine where fewer than m directions matter.

        Raises:
            ModelError: the server's answer is not one row of logits per feature, or not finite.
            RankError: fewer than m directions matter.
        """
        server = logits_of(split, features)
        draws = _draws(server, split.device, features)
        rows = _gradients(server, split.device, features, metric, seed)
        gradients = Moment.of(rows, features.size, features.count * draws)
        fitted = cls(**_fitted(features, gradients.product, m, isotropic=isotropic), name="server-aware")
        return fitted if fewer and fitted.m else _enough(fitted, m, features.count)


A = TypeVar("A", bound=Affine)


def _enough(fitted: A, m: int, images: int) -> A:
    if fitted.m < m:
        if not fitted.m:
            raise RankError(
                "no direction of the feature matters: the features are all equal, or the server's answers are"
            )
        those = "direction of the feature matters" if fitted.m == 1 else "directions of the feature matter"
        if images <= m:
            raise RankError(
                f"{images} images show only {fitted.m} directions of the feature, and m={m} are asked for; give more "
                f"images than {m}, better a thousand, or choose m of at most {fitted.m}"
            )
        raise RankError(f"only {fitted.m} {those} to the server; choose m of at most that")
    return fitted


def _fitted(features: Features, metric: Product, m: int, *, isotropic: bool = False) -> dict[str, Any]:
    if m < 1:
        raise RankError(f"m={m} coefficients cannot be; take at least 1")
    mean = check_finite(mean_of((z.flatten(1) for z in features.batches()), features.size), "features")
    encoder, decoder, energy = nested_directions(
        _same if isotropic else _covariance(features, mean), metric, features.size, m
    )
    return {
        "encoder": encoder.float(), "mean": mean.float(), "decoder": decoder.float(), "offset": mean.float(),
        "energy": energy.float(), "feature_shape": features.shape,
    }  # fmt: skip


def _covariance(features: Features, mean: Tensor) -> Product:
    centred = ((z.flatten(1) - mean.to(z)) for z in features.batches())
    return Moment.of(centred, features.size, features.count).shrunk().product


def _same(vectors: Tensor) -> Tensor:
    return vectors


def _draws(server: nn.Module, device: torch.device, features: Features) -> int:
    with torch.no_grad():
        logits = server(next(features.batches())[:2].clone().to(device))
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ModelError(
            f"the server answers a feature with the shape {tuple(logits.shape[1:])}, but directions are chosen for "
            "logits of two or more classes"
        )
    return min(int(logits.shape[1]), _EVERY_CLASS)


def _gradients(
    server: nn.Module, device: torch.device, features: Features, metric: Metric, seed: int
) -> Iterator[Tensor]:
    """Rows g with E[g gᵀ] = E[Jᵀ F J], after the factor for their number; a batch for each class or draw."""
    generator = torch.Generator().manual_seed(seed)
    for z in features.batches():
        z = z.detach().to(device).requires_grad_()
        with torch.enable_grad():
            logits = server(z.clone())  # a copy, because a server may work in place on what it is given
            classes = logits.shape[1]
            draws = min(classes, _EVERY_CLASS)
            scores = logits.log_softmax(1) if metric == "fisher" else logits - logits.mean(1, keepdim=True)
            chance = scores.detach().exp() if metric == "fisher" else torch.ones_like(scores)
            for draw in range(draws):
                if draws == classes:
                    picked, weight = torch.full((len(z),), draw), chance[:, draw] * draws
                else:
                    drawn = torch.multinomial(chance.cpu(), 1, generator=generator)[:, 0]
                    picked, weight = drawn, chance.sum(1)
                score = scores.gather(1, picked[:, None].to(scores.device)).sum()
                (gradient,) = torch.autograd.grad(score, z, retain_graph=draw + 1 < draws)
                yield check_finite(gradient.flatten(1) * weight.sqrt()[:, None], "the server's gradients")
