"""Every obfuscator that is fitted to unlabelled images, by its name."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from splitveil.data import Part
from splitveil.errors import RankError
from splitveil.linear import factorise
from splitveil.obfuscate.affine import Affine
from splitveil.obfuscate.aware import CovarianceAware, ServerAware
from splitveil.obfuscate.codebook import Codebook
from splitveil.obfuscate.distilled import Distilled
from splitveil.obfuscate.features import Features
from splitveil.obfuscate.quantised import Quantised
from splitveil.obfuscate.tables import Tables
from splitveil.obfuscate.tuning import Progress
from splitveil.split import SplitModel

Method = Literal["top", "covariance-aware", "server-aware", "distilled", "quantised", "codebook"]
METHODS: tuple[Method, ...] = get_args(Method)
FINITE: tuple[Method, ...] = ("quantised", "codebook")
WITH_WIDTH: tuple[Method, ...] = ("distilled", "codebook")


def fit_obfuscator(
    method: Method,
    split: SplitModel,
    images: Part | Tensor | Features,
    *,
    m: int | None = None,
    messages: int | None = None,
    width: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Affine | Tables:
    """Fit an obfuscator to unlabelled images.

    Args:
        method: its name.
        split: the trained model, cut.
        images: a part of a data set, whose labels are not read; images (N, C, H, W) in [0, 1]; or their features.
        m: coefficients; of "quantised" at most so many; "codebook" takes none.
        messages: different messages at most, for "quantised" and "codebook" alone.
        width: units of the encoder's hidden layer, 0 for none, for "distilled" and "codebook" alone; see
            `Distilled.fit` for how many there are where not given.
        seed: of what is drawn.
        progress: called as (done, in all, text), where something is tuned.

    Raises:
        RankError: m, messages or width do not go with the method, or there are not so many directions.
        NoLinearLayerError: the method needs a linear layer that reads the feature, and there is none.
        ModelError: the server's answer is not one row of logits.
        ShapeError: there are fewer than two images.
    """
    _check(method, m, messages, width)
    features = images if isinstance(images, Features) else Features.of(split, images)
    if m is not None and m > features.size:
        raise RankError(f"m={m} is more than the {features.size} numbers of the feature; choose a smaller m")
    same: dict[str, Any] = {"seed": seed, "progress": progress}
    if method in WITH_WIDTH:
        same["width"] = width
    given: Any = {name: value for name, value in (("m", m), ("messages", messages)) if value is not None}
    if method == "top":
        return _top(split, features, **given)
    if method == "covariance-aware":
        return CovarianceAware.fit(split, features, **given)
    if method == "server-aware":
        return ServerAware.fit(split, features, **given, seed=seed)
    if method == "distilled":
        return Distilled.fit(split, features, **given, **same)
    if method == "quantised":
        return Quantised.fit(split, features, **given, **same)
    return Codebook.fit(split, features, **given, **same)


def _check(method: Method, m: int | None, messages: int | None, width: int | None) -> None:
    if method not in METHODS:
        raise RankError(f"there is no method {method!r}; choose {', '.join(METHODS)}")
    for name, value, needed, least in (
        ("m", m, method != "codebook", 1), ("messages", messages, method in FINITE, 2)
    ):  # fmt: skip
        if needed and (not isinstance(value, int) or value < least):
            raise RankError(f"the method {method!r} needs {name}, a whole number of at least {least}")
        if not needed and value is not None:
            raise RankError(f"the method {method!r} takes no {name}; leave it out")
    if width is not None and method not in WITH_WIDTH:
        raise RankError(f"the method {method!r} takes no width; leave it out")


def _top(split: SplitModel, features: Features, m: int) -> Affine:
    """`TopComponents` of the dense operator, as an affine map about zero."""
    factors = factorise(split.server_layer, feature_shape=features.shape, operator="dense", rank=None)
    if m > len(factors.s):
        raise RankError(f"m={m} is more than the {len(factors.s)} components of this layer; choose a smaller m")
    rows, zero = factors.vh[:m].float(), torch.zeros(features.size)
    energy = factors.s[:m].float().square()
    return Affine(rows, zero, rows, zero, energy, features.shape, "top")
