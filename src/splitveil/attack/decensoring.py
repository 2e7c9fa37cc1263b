"""De-censoring: restore the raw feature from the message first, then classify it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from splitveil.attack.components import leading
from splitveil.attack.networks import Inputs, Perceptron, Training, standardised
from splitveil.attack.regression import regress
from splitveil.attack.view import Guess, Job, View


@dataclass(frozen=True)
class Decensoring:
    """The attack of Song and Shmatikov (2020), "Overlearning reveals sensitive attributes", on censored features.

    A map from messages to raw features is learnt on the adversary's own samples, and a classifier that was trained on
    raw features reads what it restores. Raw features are standardised and brought down to their leading principal
    components. Where the adversary has no raw features (there was no message, as with the server's answer), the
    classifier is trained on what was sent.

    Attributes:
        name: for tables.
        components: of the raw feature, that are restored.
        restoring: how the map is trained.
        classifier: what guesses the secret.
    """

    name: str = "de-censoring"
    components: int = 64
    restoring: Training = field(default_factory=lambda: Training(epochs=20, learning_rate=2e-3, weight_decays=()))
    classifier: Perceptron = field(default_factory=Perceptron)

    def fit(self, train: View, secret: Tensor, val: View, val_secret: Tensor, *, n_values: int, seed: int) -> Guess:
        """See `Attack.fit`."""
        return self.fit_many([Job(train, secret, val, val_secret, n_values, seed)])[0]

    def fit_many(self, jobs: Sequence[Job]) -> list[Guess]:
        """See `fit_all`; what reads raw features is trained once for all messages of the same features."""
        known: dict[tuple[object, ...], tuple[Inputs, Guess]] = {}
        guesses = []
        for job in jobs:
            if job.train.features is None or job.val.features is None:
                guesses.append(_fitted(self.classifier, job))
                continue
            # The length is read beside the feature; where it never varies, it says nothing.
            lengths = job.train.kept - job.train.kept[0]
            key = (id(job.train.features), job.seed, job.secret.numpy().tobytes(), lengths.numpy().tobytes())
            if key not in known:
                known[key] = self._on_raw(job)
            guesses.append(self._restoring(job, *known[key]))
        return guesses

    def _on_raw(self, job: Job) -> tuple[Inputs, Guess]:
        raw = leading(standardised(_features, job.train), job.train, self.components, job.seed)
        train, val = (replace(view, sent=raw(view)) for view in (job.train, job.val))
        return raw, _fitted(self.classifier, replace(job, train=train, val=val))

    def _restoring(self, job: Job, raw: Inputs, guess: Guess) -> Guess:
        targets, val_targets = raw(job.train), raw(job.val)
        restore = regress(job.train, targets, job.val, val_targets, training=self.restoring, seed=job.seed)
        return lambda view: guess(replace(view, sent=restore(view), features=None))


def _fitted(classifier: Perceptron, job: Job) -> Guess:
    return classifier.fit(job.train, job.secret, job.val, job.val_secret, n_values=job.n_values, seed=job.seed)


def _features(view: View) -> Tensor:
    assert view.features is not None
    return view.features.flatten(1)
