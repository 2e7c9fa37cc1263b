"""What the baselines share that train a network of their own: fresh weights, the same recipe, and an adversary."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitveil.attack.networks import perceptron
from splitveil.baselines.defence import Undefended
from splitveil.errors import BaselineError
from splitveil.split import SplitModel, layer_name
from splitveil.train import fit
from splitveil.train.ingredients import Addition


@dataclass(frozen=True, eq=False)
class Secret:
    """The hidden attribute of the training part, as a supervised baseline uses it.

    Attributes:
        values: (N,), 0 to n_values − 1.
        n_values: how many values there are.
    """

    values: Tensor
    n_values: int

    @classmethod
    def of(cls, undefended: Undefended) -> "Secret":
        """The attribute that the defence is told; raises `BaselineError` where none is."""
        name = undefended.secret
        return cls(undefended.data.train.hidden[name], len(undefended.data.hidden_classes[name]))

    @property
    def entropy(self) -> float:
        """Of the prior, in nats."""
        return float(torch.special.entr(torch.bincount(self.values) / len(self.values)).sum())


def fresh(model: nn.Module, seed: int) -> nn.Module:
    """A copy of a model with new weights; raises `BaselineError` where a module cannot make any."""
    network = deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in network.named_modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise BaselineError(
                    f"{name or type(module).__name__!r} has parameters but no reset_parameters(), so the network "
                    "cannot be trained afresh; give it one"
                )
    return network


def train(undefended: Undefended, network: nn.Module, addition: Addition | None = None) -> float:
    """Train a network in place as the undefended model was trained; returns its accuracy on validation."""
    device = next(undefended.model.parameters()).device
    history = fit(
        network, undefended.data, undefended.recipe, device=device, progress=undefended.progress, addition=addition
    )
    return history[-1].val_accuracy


def reader(network: nn.Module, at: int | str) -> nn.Module:
    """The module whose input crosses the cut."""
    return network.get_submodule(layer_name(network, at))


def feature(undefended: Undefended) -> Tensor:
    """The undefended feature of one training image, (1, *feature)."""
    split = SplitModel(undefended.model, undefended.at)
    with torch.no_grad():
        return split.client(undefended.data.train.images(slice(0, 1)).to(split.device))  # type: ignore[no-any-return]


def adversary(undefended: Undefended, n_values: int) -> nn.Module:
    """The paper's adversary: the server's architecture with fresh weights and one output per value of the secret.

    A perceptron with its widths (128, 64) where the server does not end with a fully connected layer.
    """
    split, seed = SplitModel(undefended.model, undefended.at), undefended.recipe.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        (output,) = (node for node in split.server.graph.nodes if node.op == "output")
        ends = output.args[0]
        last = split.server.get_submodule(ends.target) if ends.op == "call_module" else None
        if not isinstance(last, nn.Linear):
            size = feature(undefended).numel()
            return nn.Sequential(nn.Flatten(), perceptron((size, 128, 64), n_values)).to(split.device)
        network = fresh(split.server, seed)
        network.set_submodule(ends.target, nn.Linear(last.in_features, n_values))
        return network.to(split.device)
