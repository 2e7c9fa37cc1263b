"""Learned additive noise (Shredder; Mireshghallah et al. 2020; paper equation 1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from splitveil.baselines.defence import Defended, Undefended
from splitveil.baselines.finetuning import FeatureVeil, Start, answer_accuracy, positive
from splitveil.message import Message

TENSORS = 8
"""Noise tensors that are learned."""
_EPOCHS = 5
_RATE = 0.05  # in units of the feature's standard deviation
_BATCH = 256


@dataclass(frozen=True, eq=False)
class OrderedLaplace(FeatureVeil):
    """Adds noise drawn from a Laplace distribution, its values put in the order of a learned noise tensor.

    Attributes:
        ranks: of every element within each learned tensor, (tensors, n).
        location, scale: of the Laplace distribution fitted to each, (tensors,).
        feature_shape: shape of one feature, n numbers.
    """

    ranks: Tensor
    location: Tensor
    scale: Tensor
    feature_shape: tuple[int, ...]
    name: str = "noise"

    @classmethod
    def of(cls, noise: Tensor, feature_shape: tuple[int, ...]) -> "OrderedLaplace":
        """Fit by maximum likelihood to learned tensors (tensors, n)."""
        location = noise.median(1).values
        scale = (noise - location[:, None]).abs().mean(1)
        return cls(noise.argsort(1).argsort(1), location, scale, feature_shape)

    @property
    def message(self) -> Message:
        """The feature's own shape; another message each time."""
        return Message(self.feature_shape, random=True)

    def encode(self, z: Tensor) -> Tensor:
        """Noisy features (B, *feature), by torch's global generator."""
        chosen = torch.randint(len(self.ranks), (len(z),))
        # A difference of two exponential variables has a Laplace distribution.
        draws = torch.empty(2, len(z), self.ranks.shape[1]).exponential_().diff(dim=0)[0].sort(1).values
        values = self.location[chosen, None] + self.scale[chosen, None] * draws
        return z + values.gather(1, self.ranks[chosen]).reshape(z.shape).to(z)

    def decode(self, message: Tensor) -> Tensor:
        """The message: a noisy feature."""
        return message


@dataclass(frozen=True)
class LearnedNoise:
    """Learn noise that the frozen server's half bears, as large as it can be.

    Several noise tensors η minimise ``CE(M_s(z + η), y) − weight · mean|η| / std(z)``; a Laplace distribution is
    fitted to each, and a query's noise is drawn from one of them with the order of its elements kept, as in
    Shredder. This is equation 1 without its second, supervised term, the loss of an adversary who knows the hidden
    attribute: Shredder's own objective has none.

    Attributes:
        weight: of the noise's size.

    Raises:
        BaselineError: the weight is not a finite number above 0.
    """

    weight: float
    name: ClassVar[str] = "noise"
    supervised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("weight", self.weight)

    def fit(self, undefended: Undefended) -> Defended:
        """Learn the noise; the facts hold its mean size, ``noise``, in units of the feature's standard deviation."""
        start = Start.of(undefended)
        unit = float(start.train.std()) or 1.0
        noise = self._learn(undefended, start, unit)
        veil = OrderedLaplace.of(noise, start.feature_shape)
        facts = {
            "tensors": TENSORS, "noise": float(noise.abs().mean()) / unit,
            "val_accuracy": answer_accuracy(undefended, start, veil),
        }  # fmt: skip
        return Defended(start.split, veil, facts)

    def _learn(self, undefended: Undefended, start: Start, unit: float) -> Tensor:
        """Noise tensors (tensors, n); every sample of a batch trains one of them."""
        y, server, device = undefended.data.train.y, start.split.server.eval(), start.split.device
        generator = torch.Generator().manual_seed(undefended.recipe.seed)
        first = torch.empty(2, TENSORS, start.size).exponential_(generator=generator).diff(dim=0)[0]
        noise = (unit * first).to(device).requires_grad_()
        optimizer = torch.optim.Adam([noise], lr=_RATE * unit)
        for epoch in range(_EPOCHS):
            for rows in torch.split(torch.randperm(len(y), generator=generator), _BATCH):
                chosen = torch.randint(TENSORS, (len(rows),), generator=generator)
                z = start.train[rows].to(device)
                logits = server(z + noise[chosen.to(device)].reshape(z.shape))
                loss = nn.functional.cross_entropy(logits, y[rows].to(device))
                loss = loss - self.weight * noise.abs().mean() / unit
                optimizer.zero_grad(set_to_none=True)
                loss.backward(inputs=[noise])  # type: ignore[no-untyped-call]
                optimizer.step()
            if undefended.progress:
                undefended.progress(epoch + 1, _EPOCHS, f"noise {float(noise.detach().abs().mean()) / unit:.2f}")
        return noise.detach().cpu()
