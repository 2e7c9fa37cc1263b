"""Gradient-boosted trees on the numbers of the message."""

import itertools
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from splitveil.attack.components import best_weight, leading, mixed, prior_of, spread
from splitveil.attack.networks import Inputs, standardised
from splitveil.attack.view import Guess, View


@dataclass(frozen=True)
class GradientBoosting:
    """Gradient-boosted trees (scikit-learn's histogram-based ones) on everything that was sent.

    Depth, learning rate and the number of rounds are chosen on validation. Every round grows one tree per value of the
    secret, so that secrets with many values get fewer rounds.

    Attributes:
        name: for tables.
        settings: depth and learning rate, each is tried.
        rounds: at most, for each setting.
        trees: at most, for each setting; but never fewer than ``least_rounds``.
        least_rounds: see ``trees``.
        components: wider messages are brought down to so many principal components.
    """

    name: str = "gradient-boosting"
    settings: tuple[tuple[int, float], ...] = ((3, 0.2), (6, 0.1))
    rounds: int = 100
    trees: int = 1000
    least_rounds: int = 10
    components: int = 128

    def fit(self, train: View, secret: Tensor, val: View, val_secret: Tensor, *, n_values: int, seed: int) -> Guess:
        """See `Attack.fit`."""
        inputs = leading(standardised(_varying(train), train), train, self.components, seed)
        x, val_x, prior = inputs(train).numpy(), inputs(val).numpy(), prior_of(secret, n_values)
        rounds = min(self.rounds, max(self.least_rounds, self.trees // n_values))
        found = []
        for depth, rate in self.settings:
            # Half of the inputs at each node: features that carry the same signal take turns.
            model = HistGradientBoostingClassifier(
                max_depth=depth, learning_rate=rate, max_iter=rounds, max_features=0.5, early_stopping=False,
                random_state=seed,
            ).fit(x, secret.numpy())  # fmt: skip
            for stage, probabilities in enumerate(model.staged_predict_proba(val_x)):
                full = spread(probabilities, model.classes_, n_values)
                weight, loss = best_weight(full, prior, val_secret)
                accuracy = float((mixed(full, prior, weight).argmax(1) == val_secret).float().mean())
                found.append((accuracy, -loss, weight, stage, model))
        _, _, weight, stage, best = max(found, key=lambda each: each[:2])

        def guess(view: View) -> Tensor:
            rows = np.ascontiguousarray(inputs(view).numpy())
            probabilities = next(itertools.islice(best.staged_predict_proba(rows), stage, None))
            return mixed(spread(probabilities, best.classes_, n_values), prior, weight)

        return guess


def _varying(train: View) -> Inputs:
    """What differs between messages: nodes that see half of the inputs are not to see what is always the same."""
    numbers = train.numbers()
    differs = (numbers != numbers[0]).any(0)
    differs[0] |= not differs.any()  # trees need something to read
    return lambda view: view.numbers()[:, differs]
