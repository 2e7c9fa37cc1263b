"""Adversarial training (Feutry et al. 2018, arXiv 1802.09386; paper equation 3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from splitveil.baselines.defence import Defended, Undefended
from splitveil.baselines.finetuning import positive
from splitveil.baselines.training import Secret, adversary, feature, fresh, reader, train
from splitveil.obfuscate import Identity
from splitveil.split import SplitModel
from splitveil.train import Precision, products

STEPS = 3
"""Steps of the adversary for each step of the model."""
_RATE = 3e-3  # faster than the model, so that it keeps up with a feature that changes


class Opponent:
    """An adversary that learns beside the model, and the penalty −γ · min(CE, H(secret)) of its cross-entropy.

    Args:
        block: whose input is the feature.
        network: the adversary M_a; its own Adam follows the feature with `STEPS` steps for each of the model's.
        secret: what it is to find.
        gamma: weight of the penalty.
        precision: of its products.
    """

    def __init__(
        self, block: nn.Module, network: nn.Module, secret: Secret, gamma: float, precision: Precision
    ) -> None:  # fmt: skip
        self.heads = nn.ModuleList()
        self._block, self._network, self._secret, self._gamma = block, network, secret, gamma
        self._precision = precision
        self._optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        device = next(network.parameters()).device
        self._values, self._most = secret.values.to(device), secret.entropy

    @contextmanager
    def step(self, _number: int, rows: Tensor) -> Iterator[list[Tensor]]:
        """See `Addition.step`."""
        features: list[Tensor] = []
        penalties: list[Tensor] = []
        with self._block.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0])):
            yield penalties
        (z,) = features
        secret = self._values[rows.to(self._values.device)]
        self._learn(z.detach(), secret)
        self._network.requires_grad_(False)
        penalties.append(-self._gamma * self._loss(z, secret).clamp(max=self._most))
        self._network.requires_grad_(True)

    def _learn(self, z: Tensor, secret: Tensor) -> None:
        for _ in range(STEPS):
            loss = self._loss(z, secret)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def _loss(self, z: Tensor, secret: Tensor) -> Tensor:
        with products(z.device, self._precision):
            logits = self._network(z)
        return nn.functional.cross_entropy(logits.float(), secret)


@dataclass(frozen=True)
class AdversarialTraining:
    """Train a network against an adversary who looks for one hidden attribute.

    Equation 3 lets the model maximise the adversary's cross-entropy, which has no bound: the model would win by
    making that adversary err with confidence, and a fresh one would read the secret from it. So the cross-entropy
    counts up to the entropy of the secret's prior, where the adversary knows nothing. Feutry et al. pull the
    adversary's answers towards the prior instead, which hid less from a fresh adversary on validation here.

    Attributes:
        gamma: γ.

    Raises:
        BaselineError: γ is not a finite number above 0; on fitting, no hidden attribute is told.
    """

    gamma: float
    name: ClassVar[str] = "adversarial"
    supervised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("gamma", self.gamma)

    def fit(self, undefended: Undefended) -> Defended:
        """Train a fresh network of the same architecture with the same recipe."""
        secret, recipe = Secret.of(undefended), undefended.recipe
        network = fresh(undefended.model, recipe.seed)
        opponent = Opponent(
            reader(network, undefended.at), adversary(undefended, secret.n_values), secret, self.gamma,
            recipe.precision,
        )  # fmt: skip
        found = train(undefended, network, opponent)
        shape = tuple(feature(undefended).shape[1:])
        return Defended(SplitModel(network, undefended.at), Identity(shape), {"val_accuracy": found})
