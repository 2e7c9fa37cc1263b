"""The sceptic's reference: a small head answers on the device, and only the label is sent."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from splitveil.baselines.defence import Defended, Undefended
from splitveil.baselines.finetuning import FeatureVeil, Start, train_network, whole
from splitveil.message import Message
from splitveil.split import SplitModel


@dataclass(frozen=True, eq=False)
class Label(FeatureVeil):
    """Sends the label of the largest of the logits that the device has found.

    Attributes:
        n_classes: how many labels there are.
    """

    n_classes: int
    name: str = "device"

    @property
    def message(self) -> Message:
        """One digit: the label."""
        return Message((1,), dtype="int64", levels=(self.n_classes,))

    def encode(self, z: Tensor) -> Tensor:
        """Labels (B, 1) of logits (B, n_classes)."""
        return z.argmax(1, keepdim=True)

    def decode(self, message: Tensor) -> Tensor:
        """The label as logits (B, n_classes): 1 for it, 0 for the others."""
        return nn.functional.one_hot(message[:, 0], self.n_classes).float()


@dataclass(frozen=True)
class AnswerOnDevice:
    """Answer on the device by a head on the client's feature, distilled from the whole model without hidden labels.

    The head belongs to the client's half: the feature at this cut is its logits, and the server's half is nothing.
    A width of up to 7 costs no more multiply-accumulates than our encoder with m' = 8, 8·n for a feature of n numbers,
    where n is at least 7 times the number of classes. The linear head costs n for each class.

    Each head is trained twice, with the feature and the hidden layer normalised over batches and without, and the one
    that is more accurate on validation is taken: without, a hidden layer may starve; with, a few units do less. What is
    normalised costs nothing, as it can be made part of the weights.

    Attributes:
        width: of the hidden layer; 0: a linear head.

    Raises:
        BaselineError: the width is not a whole number of at least 0.
    """

    width: int
    name: ClassVar[str] = "device"
    supervised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("width", self.width, least=0)

    def fit(self, undefended: Undefended) -> Defended:
        """Train the head on labels and on the whole model's probabilities.

        The facts hold its ``macs``, and whether it was trained ``normalised``.
        """
        start = Start.of(undefended)
        with torch.no_grad():
            batches = torch.split(start.train, 512)
            soft = torch.cat([start.split.server(z.to(start.split.device)).softmax(1).cpu() for z in batches])
        tried = [self._trained(start, undefended, soft, normalised) for normalised in (False, True)]
        head, found = max(tried, key=lambda each: each[1]["val_accuracy"])
        macs = sum(p.numel() for p in head.parameters() if p.dim() == 2)
        # The head is the last of the client's half, so the server's half is nothing.
        model = nn.Sequential(OrderedDict(client=start.split.client, head=head, server=nn.Identity()))
        return Defended(SplitModel(model, "server"), Label(undefended.data.n_classes), {"macs": macs, **found})

    def _trained(
        self, start: Start, undefended: Undefended, soft: Tensor, normalised: bool
    ) -> tuple[nn.Module, dict[str, Any]]:
        n_classes, epochs = undefended.data.n_classes, undefended.recipe.epochs
        with torch.random.fork_rng():
            torch.manual_seed(undefended.recipe.seed)
            head = self._head(start.size, n_classes, normalised).to(start.split.device)
        found = train_network(head, lambda: start.train, start.val, undefended, epochs=epochs, soft=soft)
        return head, {**found, "normalised": normalised}

    def _head(self, size: int, n_classes: int, normalised: bool) -> nn.Module:
        parts: list[nn.Module] = [nn.Flatten()]
        if normalised:
            parts.append(nn.BatchNorm1d(size, affine=False))
        if self.width:
            parts.append(nn.Linear(size, self.width))
            if normalised:
                parts.append(nn.BatchNorm1d(self.width))
            parts.append(nn.ReLU())
        return nn.Sequential(*parts, nn.Linear(self.width or size, n_classes))
