"""Obfuscators fitted in a second, as far as that goes."""

import splitveil as sv
from splitveil.data import Part
from splitveil.obfuscate import Affine, Codebook, CovarianceAware, Distilled, Features, Quantised, ServerAware, Tables
from splitveil.obfuscate.encoder import Encoder

AFFINE = ("covariance-aware", "server-aware", "distilled", "hidden")
FINITE = ("quantised", "codebook")


def made_veil(kind: str, split: sv.SplitModel, part: Part, *, m: int = 4) -> Affine | Tables:
    """A fit of one epoch; "hidden" is a distilled encoder with a hidden layer, "averaging" one that averages maps.

    Args:
        kind: a method's name, "hidden" or "averaging".
        split: the model, cut.
        part: images to fit to; a few hundred are taken.
        m: coefficients.
    """
    features = Features.of(split, part.images(slice(0, 300)))
    if kind == "covariance-aware":
        return CovarianceAware.fit(split, features, m=m)
    if kind == "server-aware":
        return ServerAware.fit(split, features, m=m)
    if kind == "distilled":
        return Distilled.fit(split, features, m=m, epochs=1, width=0)
    if kind == "hidden":
        return Distilled.fit(split, features, m=m, epochs=1, width=2 * m + 3)
    if kind == "averaging":
        start = ServerAware.fit(split, features, m=m)
        encoder = Encoder.started(start, 2 * m + 1, pool=2)
        return Distilled(
            encoder.weight, start.mean, start.decoder, start.offset, start.energy, start.feature_shape, "distilled",
            encoder.layer,
        )  # fmt: skip
    if kind == "quantised":
        return Quantised.fit(split, features, m=m, messages=300, epochs=1)
    return Codebook.fit(split, features, messages=9, epochs=1)
