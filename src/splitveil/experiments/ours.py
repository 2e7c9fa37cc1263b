"""Our obfuscators at one cut, at all their settings: one fit serves as many of them as it can."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from splitveil.baselines import Defended
from splitveil.counting import multiply_accumulates
from splitveil.data import Dataset
from splitveil.errors import RankError
from splitveil.experiments.accuracy import Numbers
from splitveil.linear import factorise
from splitveil.measure import RawFeatures
from splitveil.message import Obfuscator
from splitveil.obfuscate import (
    FINITE,
    Affine,
    Codebook,
    DistortionBounded,
    DistortionFree,
    Features,
    Quantised,
    ServerAware,
    Tables,
    TopComponents,
    fit_obfuscator,
)
from splitveil.split import SplitModel
from splitveil.train import Progress

PROJECTIONS = ("top", "free", "bounded")
TUNED = {"distilled": 3, "quantised": 3, "codebook": 2}
"""Revision of each tuning, to be raised when what comes out of it changes: results of another do not compare."""
FITTED = ("covariance-aware", "server-aware", *TUNED)
OURS = (*PROJECTIONS, *FITTED)
LARGEST_DENSE = 1024
"""Components of a dense convolution that are computed at most where a distortion decides how many are sent."""
COEFFICIENTS = 8
"""Coefficients that "quantised" shares its messages out to, at most."""

Fitted = list[tuple[dict[str, Any], Defended]]


def fit_ours(
    defence: str,
    settings: Sequence[dict[str, Any]],
    split: SplitModel,
    data: Dataset,
    raw: RawFeatures,
    *,
    operator: str,
    seed: int,
    progress: Progress,
) -> tuple[Fitted, list[Numbers]]:
    """An obfuscator of ours at each setting.

    Args:
        defence: one of `OURS`; those of `FITTED` are fitted to the training part's images, without any label.
        settings: ``m``, ``messages``, ``epsilon`` or nothing, as the obfuscator needs; of ``m`` the largest first.
        split: the trained model.
        data: the data set.
        raw: its features.
        operator: of the projections at convolutions, "dense" or "patch".
        seed: of what is drawn.
        progress: called as (done, in all, text).

    Returns:
        The settings with their obfuscators, and the settings that are not possible here, each with the reason.
    """
    if defence in PROJECTIONS:
        return _projections(defence, settings, split, data, operator)
    macs = multiply_accumulates(split.client, data.train.images(slice(0, 1)).to(split.device))
    features = Features.known(raw.of(split, "train"), client_macs=macs)
    if defence in FINITE:
        return _finite(defence, settings, split, features, seed, progress), []
    return _prefixes(defence, settings, split, features, seed, progress)


def _projections(
    defence: str, settings: Sequence[dict[str, Any]], split: SplitModel, data: Dataset, operator: str
) -> tuple[Fitted, list[Numbers]]:
    x = data.val.images(slice(0, 64)).to(split.device)
    with torch.no_grad():
        z = split.client(x)
    # All factors of a dense convolution would take minutes and gigabytes.
    large = operator == "dense" and not isinstance(split.server_layer, nn.Linear)
    most = max(setting["m"] for setting in settings) if defence == "top" else LARGEST_DENSE
    rank = min(most, z[0].numel()) if large else None
    factors = factorise(split.server_layer, feature_shape=tuple(z.shape[1:]), operator=operator, rank=rank)  # type: ignore[arg-type]
    fitted: Fitted = []
    left_out: list[Numbers] = []
    for setting in settings:
        veil: Obfuscator
        if defence == "top":
            if setting["m"] > len(factors.s):
                left_out.append({"setting": setting, "why": f"the layer has {len(factors.s)} components"})
                continue
            veil = TopComponents(factors, **setting)
        elif defence == "free":
            veil = DistortionFree(factors)
        else:
            veil = DistortionBounded(factors, relative=True, **setting)
        fitted.append((setting, Defended(split, veil)))
    return fitted, left_out


def _prefixes(
    method: Any, settings: Sequence[dict[str, int]], split: SplitModel, features: Features, seed: int,
    progress: Progress,
) -> tuple[Fitted, list[Numbers]]:  # fmt: skip
    """Obfuscators whose coefficients are nested: the largest that there is gets fitted, the others are its prefixes."""
    veil: Any = None
    fitted: Fitted = []
    left_out: list[Numbers] = []
    for setting in settings:
        m = setting["m"]
        try:
            if veil is None:
                veil = fit_obfuscator(method, split, features, m=m, seed=seed, progress=progress)
        except RankError as error:
            left_out.append({"setting": setting, "why": str(error)})
            continue
        fitted.append((setting, Defended(split, veil.keep(m))))
    return fitted, left_out


def _finite(
    method: Any, settings: Sequence[dict[str, int]], split: SplitModel, features: Features, seed: int,
    progress: Progress,
) -> Fitted:  # fmt: skip
    """Obfuscators with so many messages, each tuned anew; what they begin with is fitted once."""
    inner: Affine | None = None
    start: ServerAware | None = None
    if method == "quantised":
        sizes = [{"m": m} for m in range(COEFFICIENTS, 0, -1)]
        found, _ = _prefixes("distilled", sizes, split, features, seed, progress)
        inner = cast(Affine, found[0][1].veil)
    else:
        start = Codebook.directions(split, features, seed)
    fitted: Fitted = []
    for setting in settings:
        messages = setting["messages"]
        veil: Tables
        if inner:
            veil = Quantised.fit(
                split, features, m=inner.m, messages=messages, inner=inner, seed=seed, progress=progress
            )
        else:
            veil = Codebook.fit(split, features, messages=messages, start=start, seed=seed, progress=progress)
        fitted.append((setting, Defended(split, veil, {"levels": list(veil.levels)})))
    return fitted
