"""From what was seen of an obfuscator to the rows of a profile."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splitveil.codec import FrameCoding, index_bytes
from splitveil.cost import edge_cost
from splitveil.obfuscate import Affine, DistortionBounded, Tables
from splitveil.profile import Row
from splitveil.profiling.fitted import encoder_numbers
from splitveil.profiling.grid import Veil
from splitveil.profiling.points import Point
from splitveil.profiling.samples import Samples
from splitveil.profiling.shares import drop, share
from splitveil.profiling.uncut import Before
from splitveil.split import SplitModel
from splitveil.wire import HEADER_BYTES, payload_bytes


def rows_of(
    split: SplitModel,
    point: Point,
    samples: Samples,
    before: Before,
    *,
    leak: Mapping[str, Mapping[str, Any]],
    obfuscator: str | None,
) -> list[Row]:
    """One row for each coding that the point was measured in.

    Args:
        split: the model, cut.
        point: what was seen.
        samples: what it was seen on.
        before: what is answered without any of it.
        leak: by attribute, what leaks of the exact messages.
        obfuscator: digest of the fitted obfuscator that the point is made of, if it is.
    """
    veil, kept = point.veil, torch.cat(point.kept)
    bounded = isinstance(veil, DistortionBounded)
    cost = edge_cost(split, veil, samples.images(slice(0, 1)).to(split.device))
    same = {
        "cut": _number(split), "layer": split.layer_name, "operator": operator_of(veil), "method": veil.name,
        "m": None if bounded else veil.message.shape[0],
        "epsilon": veil.epsilon if isinstance(veil, DistortionBounded) else None,
        "messages": veil.message.distinct, "obfuscator": obfuscator,
        "message_shape": veil.message.shape, "fixed_length": veil.message.fixed_length,
        "mean_components": float(kept.double().mean()), "raw_bytes": cost.raw_bytes,
        "client_macs": cost.client_macs, "encoder_macs": cost.encoder_macs, "client_parameters": cost.parameters,
    }  # fmt: skip
    rows = []
    for coding, answers in point.answers.items():
        exact = coding in ("float32", "index")
        sizes = [_frame_bytes(veil, int(k), coding) for k in kept]  # as of real frames: see tests
        rows.append(Row.model_validate({
            **same, "coding": coding, "bytes_mean": float(np.mean(sizes)), "bytes_most": max(sizes),
            # The bound needs the singular values too, and an integer coding its scales.
            "encoder_parameters": _stored(veil) + (0 if exact and not bounded else veil.message.shape[0]),
            **_worth(torch.cat(answers), samples, before), "leakage": leak if exact else {},
        }))  # fmt: skip
    return rows


def operator_of(veil: Veil) -> str:
    """How an obfuscator reads the feature: as maps, or as one vector."""
    return "dense" if isinstance(veil, Affine | Tables) else veil.factors.operator


def _stored(veil: Veil) -> int:
    return encoder_numbers(veil) if isinstance(veil, Affine | Tables) else veil.factors.vh[: veil.m].numel()


def _frame_bytes(veil: Veil, kept: int, coding: FrameCoding) -> int:
    levels, positions = veil.message.levels, math.prod(veil.message.shape[1:])
    return HEADER_BYTES + payload_bytes(positions * kept if levels is None else index_bytes(levels), coding)


def _worth(answers: Tensor, samples: Samples, before: Before) -> dict[str, Any]:
    """What the answers are worth: agreement always, the rest where there are labels."""
    same = answers == before.uncut
    agreed = {"samples": len(answers), "agreeing": int(same.sum()), "agreement": share(same)}
    if samples.y is None or before.reference_right is None:
        return {**agreed, "accuracy": None, "lost": None, "gained": None, "drop": None}
    right = answers == samples.y
    lost, gained = int((before.reference_right & ~right).sum()), int((right & ~before.reference_right).sum())
    return {
        **agreed,
        "accuracy": share(right),
        "lost": lost,
        "gained": gained,
        "drop": drop(len(right), lost, gained),
    }


def _number(split: SplitModel) -> int | None:
    points = tuple(getattr(split.model, "cut_points", ()))
    return points.index(split.layer_name) + 1 if split.layer_name in points else None
