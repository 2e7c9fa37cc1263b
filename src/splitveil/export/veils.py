"""What a bundle is to send: an obfuscator that was fitted before, is fitted here, or that the model alone says."""

from dataclasses import dataclass
from typing import Literal

import torch

from splitveil.data import Dataset
from splitveil.errors import ExportError
from splitveil.export.halves import Veil
from splitveil.linear import Operator
from splitveil.obfuscate import FINITE, Affine, DistortionFree, Method, Tables, TopComponents, fit_obfuscator
from splitveil.profiling.fitted import check_fits, obfuscator_digest
from splitveil.profiling.grid import factors_at
from splitveil.profiling.samples import Samples
from splitveil.split import SplitModel
from splitveil.train import Progress

Sent = Literal[Method, "free"]
"""Names of what can be sent: what is fitted, and components of the server's first layer."""


@dataclass(frozen=True)
class Wish:
    """What was asked for; arguments of `export`."""

    method: Sent
    m: int | None
    messages: int | None
    operator: Operator | None
    seed: int
    obfuscator: Affine | Tables | None

    @property
    def of_the_model(self) -> bool:
        """Whether components of the server's first layer are sent, which nothing is fitted for."""
        return self.obfuscator is None and self.method in ("top", "free")

    @property
    def finite(self) -> bool:
        """Whether messages are whole numbers."""
        return self.method in FINITE if self.obfuscator is None else isinstance(self.obfuscator, Tables)


@dataclass(frozen=True, eq=False)
class Chosen:
    """What is sent.

    Attributes:
        veil: the obfuscator.
        whole: the fitted one whose first components it keeps; None where nothing was fitted.
    """

    veil: Veil
    whole: Affine | Tables | None = None

    @property
    def digest(self) -> str | None:
        """By which a profile's rows name it."""
        return None if self.whole is None else obfuscator_digest(self.whole)


def choose_veil(
    wish: Wish, split: SplitModel, data: object, samples: Samples, progress: Progress | None
) -> Chosen:  # fmt: skip
    """The obfuscator that was asked for, fitted to the training part where none is given.

    Raises:
        ExportError: the settings contradict each other, or there is nothing to fit to.
        ProfileError: the obfuscator is of another cut.
        RankError: m or messages do not go with the method, or there are not so many directions.
        NoLinearLayerError: the method needs a linear layer there.
    """
    if wish.of_the_model:
        return Chosen(_components(wish, split, samples))
    if wish.operator is not None:
        raise ExportError("only components of the server's first layer (top, free) have an operator; leave it out")
    if wish.obfuscator is not None:
        return _given(wish, wish.obfuscator, split, samples)
    if not isinstance(data, Dataset):
        raise ExportError("images alone are to measure on; give an obfuscator that was fitted to others of their kind")
    assert wish.method != "free"
    fitted = fit_obfuscator(
        wish.method, split, data.train, m=wish.m, messages=wish.messages, seed=wish.seed, progress=progress
    )
    return Chosen(fitted, fitted)


def _components(wish: Wish, split: SplitModel, samples: Samples) -> Veil:
    if wish.messages is not None:
        raise ExportError(f"the method {wish.method!r} takes no number of messages; leave it out")
    if (wish.m is None) != (wish.method == "free"):
        raise ExportError("the method 'top' needs m, and 'free' sends all that the server sees, without m")
    factors = factors_at(split, samples.images(slice(0, 1)), wish.operator or "patch")
    if wish.m == 0 or (wish.m is None and factors.null_dimension == 0):
        raise ExportError("a message needs at least one component, and nothing can be left out without m here")
    return DistortionFree(factors) if wish.m is None else TopComponents(factors, m=wish.m)


def _given(wish: Wish, whole: Affine | Tables, split: SplitModel, samples: Samples) -> Chosen:
    with torch.no_grad():
        check_fits(whole, split.client(samples.images(slice(0, 1)).to(split.device)).shape[1:])
    if wish.messages is not None or (wish.m is not None and isinstance(whole, Tables)):
        raise ExportError("the messages of this obfuscator were settled when it was fitted; leave m and messages out")
    if wish.m is None or isinstance(whole, Tables):
        return Chosen(whole, whole)
    return Chosen(whole.keep(wish.m), whole)
