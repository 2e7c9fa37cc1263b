"""Nearest neighbours among the messages of the adversary's own samples."""

from collections.abc import Iterator
from dataclasses import dataclass

from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from splitveil.attack.components import best_weight, leading, mixed, prior_of, spread
from splitveil.attack.networks import Inputs, standardised
from splitveil.attack.view import Guess, View


@dataclass(frozen=True)
class NearestNeighbours:
    """Votes of the nearest messages in Euclidean distance, standardised; nothing in it is drawn for narrow messages.

    The number of neighbours, their weighting, the number of principal components, and the share of the prior that is
    mixed in are chosen on validation; of digits also whether their distance or only their difference counts.

    Attributes:
        name: for tables.
        neighbours: each number is tried.
        weightings: scikit-learn's names, each is tried.
        components: wider messages are brought down to so many principal components, each is tried, rising.
    """

    name: str = "nearest-neighbours"
    neighbours: tuple[int, ...] = (1, 5, 15, 50)
    weightings: tuple[str, ...] = ("uniform", "distance")
    components: tuple[int, ...] = (16, 128)

    def fit(self, train: View, secret: Tensor, val: View, val_secret: Tensor, *, n_values: int, seed: int) -> Guess:
        """See `Attack.fit`."""
        prior = prior_of(secret, n_values)
        found = []
        for inputs in self._readings(train, seed):
            x, val_x = inputs(train).numpy(), inputs(val).numpy()
            for k in (k for k in self.neighbours if k <= len(x)):
                for weighting in self.weightings:
                    model = KNeighborsClassifier(k, weights=weighting, algorithm="brute").fit(x, secret.numpy())
                    full = spread(model.predict_proba(val_x), model.classes_, n_values)
                    weight, loss = best_weight(full, prior, val_secret)
                    accuracy = float((mixed(full, prior, weight).argmax(1) == val_secret).float().mean())
                    found.append((accuracy, -loss, weight, inputs, model))
        _, _, weight, inputs, best = max(found, key=lambda each: each[:2])
        return lambda view: mixed(
            spread(best.predict_proba(inputs(view).numpy()), best.classes_, n_values), prior, weight
        )

    def _readings(self, train: View, seed: int) -> Iterator[Inputs]:
        """What distances are taken of: digits as names, and as numbers; by their number of components, rising."""
        for reading in (View.vectors,) if train.levels is None else (View.vectors, View.numbers):
            scaled = standardised(reading, train)
            width = scaled(train).shape[1]
            for count in self.components[: 1 + sum(count < width for count in self.components)]:
                yield leading(scaled, train, count, seed)
