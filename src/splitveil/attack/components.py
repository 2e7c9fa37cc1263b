"""What the adversaries that are no networks share: fewer inputs, and probabilities that are never zero."""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor, nn

from splitveil.attack.networks import Inputs
from splitveil.attack.view import View

WEIGHTS = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 0.99)
"""Shares of the prior in a mixture; never 0, so that every logarithm is finite."""


def leading(inputs: Inputs, train: View, count: int, seed: int) -> Inputs:
    """The leading principal components of inputs (N, elements) that are wider than ``count``; others stay as they are.

    Args:
        inputs: from a view to its rows.
        train: where the components are fitted.
        count: how many to keep at most.
        seed: of the randomised decomposition.
    """
    x = inputs(train).numpy()
    if x.shape[1] <= count:
        return inputs
    with np.errstate(divide="ignore", invalid="ignore"):  # constant messages have no variance to share out
        pca = PCA(min(count, len(x)), svd_solver="randomized", random_state=seed).fit(x)
    return lambda view: torch.from_numpy(pca.transform(inputs(view).numpy())).float()


def prior_of(secret: Tensor, n_values: int) -> Tensor:
    """Share of each value in the training part with one more sample of each (Laplace), (n_values,)."""
    counts = torch.bincount(secret, minlength=n_values).double() + 1
    return counts / counts.sum()


def spread(probabilities: NDArray[np.float64], classes: NDArray[np.int64], n_values: int) -> Tensor:
    """Probabilities of the values that were seen in training as those of all values, (N, n_values)."""
    full = torch.zeros(len(probabilities), n_values, dtype=torch.float64)
    full[:, torch.from_numpy(classes)] = torch.from_numpy(probabilities)
    return full


def mixed(probabilities: Tensor, prior: Tensor, weight: float) -> Tensor:
    """Logarithm of a mixture with the prior, (N, values); finite for every value."""
    return ((1 - weight) * probabilities + weight * prior).log().float().log_softmax(1)


def best_weight(probabilities: Tensor, prior: Tensor, secret: Tensor) -> tuple[float, float]:
    """The share of the prior with the best cross-entropy on validation, and that cross-entropy in nats."""
    losses = [float(nn.functional.nll_loss(mixed(probabilities, prior, weight), secret)) for weight in WEIGHTS]
    return WEIGHTS[int(np.argmin(losses))], min(losses)
