"""Pruning of the feature by the next layer's weights (Li et al. 2016; paper section 5)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from splitveil.baselines.defence import Defended, Undefended
from splitveil.baselines.finetuning import FeatureVeil, Start, at_most, finetune, whole
from splitveil.errors import BaselineError
from splitveil.message import Message
from splitveil.split import LinearLayer, SplitModel


@dataclass(frozen=True, eq=False)
class Kept(FeatureVeil):
    """Sends some elements of the feature, or some channels, and puts zeros for the others.

    Attributes:
        units: indices of what is kept, (m,).
        shape: shape of the feature as the units count along its first axis: (n,) for elements.
        feature_shape: shape of one feature.
    """

    units: Tensor
    shape: tuple[int, ...]
    feature_shape: tuple[int, ...]
    name: str = "pruning"

    @property
    def message(self) -> Message:
        """m numbers, or m channels."""
        return Message((len(self.units), *self.shape[1:]))

    def encode(self, z: Tensor) -> Tensor:
        """The kept elements (B, m), or channels (B, m, H, W)."""
        return z.reshape(len(z), *self.shape)[:, self.units.to(z.device)]

    def decode(self, message: Tensor) -> Tensor:
        """The feature with zeros for what was not sent, (B, *feature)."""
        z = message.new_zeros(len(message), *self.shape)
        z[:, self.units.to(z.device)] = message
        return z.reshape(len(z), *self.feature_shape)


@dataclass(frozen=True)
class Pruning:
    """Keep the m elements of z whose columns in the server's next layer have the largest L1 norms.

    Before a convolution m counts channels, and the norm is that of all weights that read one. The server's half is
    then fine-tuned.

    Attributes:
        m: elements, or channels, kept.

    Raises:
        BaselineError: m is not a whole number of at least 1; on fitting, there are fewer than m, or the layers that
            read the feature have no common columns.
    """

    m: int
    name: ClassVar[str] = "pruning"
    supervised: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("m", self.m)

    def fit(self, undefended: Undefended) -> Defended:
        """Choose what to keep by the weights alone, then fine-tune."""
        start = Start.of(undefended)
        norms = column_norms(start.split)
        per_channel = isinstance(_layers(start.split)[0], nn.Conv2d)
        shape = start.feature_shape if per_channel else (start.size,)
        if len(norms) != shape[0]:
            raise BaselineError(
                f"the layer that reads the feature has {len(norms)} columns, but the feature has {shape[0]} units; "
                "cut where it reads the whole feature"
            )
        at_most(self.m, len(norms), "channels" if per_channel else "elements")
        units = norms.sort(descending=True, stable=True).indices[: self.m].sort().values.cpu()
        veil = Kept(units, shape, start.feature_shape)
        tuned = finetune(undefended, start, veil)
        return Defended(start.split, veil, {"unit": "channel" if per_channel else "element", **tuned})


def column_norms(split: SplitModel) -> Tensor:
    """L1 norm of all weights of the server's first layers that read an element, or a channel, of the feature: (n,).

    Raises:
        NoLinearLayerError: no linear layer reads the feature.
        BaselineError: convolutions and fully connected layers both do, or a convolution has groups.
    """
    layers = _layers(split)
    if len({type(layer) for layer in layers}) > 1 or any(getattr(layer, "groups", 1) > 1 for layer in layers):
        raise BaselineError("pruning needs one kind of layer, without groups, to read the feature; choose another cut")
    norms = [layer.weight.detach().abs().transpose(0, 1).flatten(1).sum(1) for layer in layers]
    return torch.stack(norms).sum(0)


def _layers(split: SplitModel) -> tuple[LinearLayer, ...]:
    layers = split.server_layer
    return layers if isinstance(layers, tuple) else (layers,)
