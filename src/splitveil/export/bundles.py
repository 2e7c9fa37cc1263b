"""From a trained model to an edge bundle and a server bundle."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitveil import profile as profiles
from splitveil.bundle import (
    NAME,
    EdgeManifest,
    Messages,
    Picture,
    Policy,
    ServerManifest,
    check_free,
    file_facts,
    identity_of,
    write_bundle,
)
from splitveil.codec import CODINGS, Coding
from splitveil.data import Dataset, photo_crop
from splitveil.errors import ExportError
from splitveil.export.graphs import to_onnx
from splitveil.export.halves import EdgeHalf, ServerHalf, Veil
from splitveil.linear import Operator
from splitveil.obfuscate import DistortionFree, TopComponents
from splitveil.profile import Profile
from splitveil.profiling import measure_profile, model_digest
from splitveil.profiling.grid import factors_at
from splitveil.profiling.scaling import coding_scales
from splitveil.split import SplitModel
from splitveil.train import Progress
from splitveil.version import __version__

EDGE, SERVER = "edge", "server"


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        edge, server: the manifests.
        folder: that holds ``edge`` and ``server``.
        frame_bytes: of one query under the policy.
        edge_bytes, server_bytes: of all files of a bundle.
    """

    edge: EdgeManifest
    server: ServerManifest
    folder: Path
    frame_bytes: int
    edge_bytes: int
    server_bytes: int


def export(
    model: nn.Module,
    data: Dataset,
    out: str | Path,
    *,
    cut: int | str,
    m: int | None = None,
    operator: Operator = "patch",
    codings: Sequence[Coding] = CODINGS,
    coding: Coding = "int8",
    max_drop: float | None = None,
    confidence: float = 0.95,
    profile: Profile | None = None,
    name: str = "splitveil",
    private_key: Path | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write ``out/edge`` and ``out/server``: graphs, preprocessing, profile, policy, manifests.

    The edge bundle serves every number of components up to m, and the server bundle answers all of them.

    Args:
        model: trained; it is cut, not changed.
        data: that it was trained on: integer scales come from the training part, a missing profile is measured on
            the validation part. No hidden label is read.
        out: a folder that is new, empty, or holds bundles.
        cut: number or layer's name.
        m: components at most; all of the layer's where not given ("distortion-free").
        operator: of convolutions.
        codings: how clients may write coefficients.
        coding: how they write them where their user does not say otherwise.
        max_drop: points of accuracy that may be lost: the policy is then the smallest number of components up to m
            that is proven to keep that, by `profile.choose`; without it the policy is m.
        confidence: of that proof.
        profile: of this model; measured at this cut where not given, or where it lacks the rows.
        name: under which the server offers the model.
        private_key: PEM file of an Ed25519 key to sign both bundles with.
        progress: called as (steps done, steps in all, text).

    Raises:
        ExportError: the settings contradict each other, or ONNX cannot say what the model does.
        ProfileError: the profile is of another model; `NoChoiceError` where nothing keeps ``max_drop``.
        SplitError, RankError: the cut or m does not exist.
        BundleError: the folder holds something else, or the key cannot be read.
    """
    folder = Path(out)
    for side in (EDGE, SERVER):
        check_free(folder / side)
    if not re.fullmatch(NAME, name):
        raise ExportError(
            f"a model is not to be called {name!r}; take at most 100 letters, digits, dots, hyphens and underscores"
        )
    if coding not in codings:
        raise ExportError(f"the policy's coding {coding} is not among the codings {', '.join(codings)}; add it")
    split = SplitModel(model, at=cut)
    example = data.val.images(slice(0, 2)).to(split.device)
    factors = factors_at(split, example, operator)
    if m == 0 or (m is None and factors.null_dimension == 0):
        raise ExportError("a message needs at least one component, and nothing can be left out without --m here")
    veil: Veil = DistortionFree(factors) if m is None else TopComponents(factors, m=m)
    profile = _profile(model, data, split, veil, cut, operator, codings, profile, progress)
    policy = _policy(profile, cut, veil, coding, max_drop, confidence)
    if progress:
        progress(0, 2, "exporting")
    messages, files = _server(split, veil, data, codings)
    facts = file_facts(files)
    same: dict[str, Any] = {
        "schema_version": 1, "splitveil": __version__, "name": name, "messages": messages,
        "identity": identity_of(messages, facts["server.onnx"].sha256),
    }  # fmt: skip
    server = ServerManifest(kind="server", files=facts, n_classes=data.n_classes, **same)
    if progress:
        progress(1, 2, "exporting")
    edge_files = {
        "edge.onnx": to_onnx(EdgeHalf(split, veil), example, "image", "coefficients"),
        "profile.json": (json.dumps(profile.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode(),
    }
    edge = EdgeManifest(
        kind="edge", files=file_facts(edge_files), model=profile.model, cut=_row(profile, split, veil).cut,
        layer=split.layer_name, operator=factors.operator, method=veil.name, classes=tuple(data.classes),
        picture=Picture(shape=profile.model.input_shape, crop=photo_crop(data.name), resampling="bicubic", divisor=255),
        policy=policy, **same,
    )  # fmt: skip
    write_bundle(folder / SERVER, server, files, private_key)
    write_bundle(folder / EDGE, edge, edge_files, private_key)
    if progress:
        progress(2, 2, "exported")
    sizes = [sum(len(content) for content in each.values()) for each in (edge_files, files)]
    return Exported(edge, server, folder, messages.frame_bytes(policy.m, policy.coding), *sizes)


def _server(
    split: SplitModel, veil: Veil, data: Dataset, codings: Sequence[Coding]
) -> tuple[Messages, dict[str, bytes]]:
    scales = coding_scales(split, veil, data.train, codings)
    components, *positions = veil.message.shape
    messages = Messages(
        components=components, positions=tuple(positions), codings=tuple(codings), certified=False,
        scales={name: tuple(map(float, scale)) for name, scale in scales.items()},
    )  # fmt: skip
    half = ServerHalf(split, veil, {name: torch.from_numpy(scale) for name, scale in scales.items()})
    example = torch.zeros(2, *veil.message.shape)
    return messages, {"server.onnx": to_onnx(half, example, "coefficients", "logits")}


def _profile(
    model: nn.Module, data: Dataset, split: SplitModel, veil: Veil, cut: int | str, operator: Operator,
    codings: Sequence[Coding], given: Profile | None, progress: Progress | None,
) -> Profile:  # fmt: skip
    """The profile of this model with rows of this obfuscator in all codings."""
    if given is not None:
        if given.model.weights != model_digest(model):
            raise ExportError("the profile is of another model; run 'splitveil profile' again")
        if {row.coding for row in _rows(given, split, veil)} >= set(codings):
            return given
    kept = [size for size in (1, 2, 4, 8, 16, 32, 64) if size < veil.m]
    return measure_profile(
        model, data, cuts=[cut], kept=[*kept, veil.m], epsilons=(), operator=operator, codings=codings,
        progress=progress,
    )  # fmt: skip


def _rows(profile: Profile, split: SplitModel, veil: Veil) -> list[profiles.Row]:
    return [
        row for row in profile.rows
        if (row.layer, row.operator, row.m) == (split.layer_name, veil.factors.operator, veil.m)
    ]  # fmt: skip


def _row(profile: Profile, split: SplitModel, veil: Veil) -> profiles.Row:
    return _rows(profile, split, veil)[0]


def _policy(
    profile: Profile, cut: int | str, veil: Veil, coding: Coding, max_drop: float | None, confidence: float
) -> Policy:
    if max_drop is None:
        return Policy(m=veil.m, coding=coding, max_drop=None, proven_drop=None, confidence=None)
    choice = profiles.choose(profile, cut=cut, max_drop=max_drop, confidence=confidence, coding=coding)
    if choice.row.m is None or choice.row.m > veil.m:
        raise ExportError(f"m'={choice.row.m} is needed to keep the drop, but {veil.m} are exported; give a larger --m")
    return Policy(
        m=choice.row.m, coding=coding, max_drop=max_drop, proven_drop=choice.proven, confidence=confidence
    )  # fmt: skip
