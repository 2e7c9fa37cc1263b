"""From a trained model to an edge bundle and a server bundle."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splitveil.bundle import (
    NAME,
    EdgeManifest,
    Messages,
    Picture,
    ServerManifest,
    check_free,
    file_facts,
    identity_of,
    write_bundle,
)
from splitveil.codec import CODINGS, FrameCoding
from splitveil.data import Dataset, Unlabelled, photo_crop
from splitveil.errors import ExportError
from splitveil.export.graphs import to_onnx
from splitveil.export.halves import EdgeHalf, ServerHalf, Veil
from splitveil.export.policies import check_profile, policy_of, profile_of, rows_in
from splitveil.export.veils import Sent, Wish, choose_veil
from splitveil.files import check_writable
from splitveil.linear import Operator
from splitveil.obfuscate import Affine, Tables
from splitveil.profile import Profile
from splitveil.profile.schema import Reference
from splitveil.profiling.samples import Samples, samples_of
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
        reference: the model that drops are measured against.
        frame_bytes: of one query under the policy.
        edge_bytes, server_bytes: of all files of a bundle.
    """

    edge: EdgeManifest
    server: ServerManifest
    folder: Path
    reference: Reference
    frame_bytes: int
    edge_bytes: int
    server_bytes: int


def export(
    model: nn.Module,
    data: Dataset | Unlabelled | Tensor,
    out: str | Path,
    *,
    cut: int | str,
    method: Sent = "distilled",
    m: int | None = None,
    messages: int | None = None,
    obfuscator: Affine | Tables | None = None,
    operator: Operator | None = None,
    codings: Sequence[FrameCoding] | None = None,
    coding: FrameCoding | None = None,
    max_drop: float | None = None,
    confidence: float = 0.95,
    profile: Profile | None = None,
    reference: nn.Module | None = None,
    classes: Sequence[str] | None = None,
    name: str = "splitveil",
    private_key: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Exported:
    """Write ``out/edge`` and ``out/server``: graphs, preprocessing, profile, policy, manifests.

    The edge bundle serves every number of components up to m, and the server bundle answers all of them. Bundles of
    finite messages serve these alone, as certified bundles.

    Args:
        model: trained; it is cut, not changed.
        data: that it was trained on: obfuscators and integer scales are fitted to the training part, a missing
            profile is measured on the validation part. No hidden label is read, and for all but the profile no label.
            Or images (N, C, H, W) in [0, 1], for scales and profile; what is sent must then be known before.
        out: a folder that is new, empty, or holds bundles.
        cut: number or layer's name.
        method: of the obfuscator: "top" and "free" send components of the server's first layer, the m strongest or
            all that it sees; for the others see `fit_obfuscator`.
        m: components at most; all of the obfuscator's where one is given.
        messages: different messages at most, of finite ones.
        obfuscator: that was fitted at this cut, in place of ``method`` and ``messages``.
        operator: of convolutions, for "top" and "free"; patch where not given.
        codings: how clients may write coefficients; all where not given.
        coding: how they write them where their user does not say otherwise; int8 where not given.
        max_drop: points of accuracy that may be lost: the policy is then the smallest number of components up to m
            that is proven to keep that, by `profile.choose`; without it the policy is m.
        confidence: of that proof.
        profile: of this model; measured at this cut where not given, or where it lacks the rows.
        reference: the model that drops are measured against, trained plainly on the same data; that of the profile,
            or else the uncut model itself, where not given.
        classes: names of the answers; the data set's, or numbers, where not given.
        name: under which the server offers the model.
        private_key: PEM file of an Ed25519 key to sign both bundles with.
        seed: of a fit.
        progress: called as (steps done, steps in all, text).

    Raises:
        ExportError: the settings contradict each other, or ONNX cannot say what the model does.
        ProfileError: the profile is of another model, or the obfuscator of another cut; `NoChoiceError` where
            nothing keeps ``max_drop``.
        SplitError, RankError: the cut or m does not exist.
        BundleError: the folder holds something else, or the key cannot be read.
    """
    folder = Path(out)
    check_writable(folder)
    for side in (EDGE, SERVER):
        check_free(folder / side)
    if not re.fullmatch(NAME, name):
        raise ExportError(
            f"a model is not to be called {name!r}; take at most 100 letters, digits, dots, hyphens and underscores"
        )
    wish = Wish(method, m, messages, operator, seed, obfuscator)
    codings, coding = _codings(wish, codings, coding)
    check_profile(profile, model)
    split, samples = SplitModel(model, at=cut), samples_of(data)
    chosen = choose_veil(wish, split, data, samples, progress)
    profile = profile_of(model, data, split, chosen, codings, profile, reference, progress)
    names = _classes(profile, data, classes)
    policy = policy_of(profile, split, chosen, coding, max_drop, confidence)
    if progress:
        progress(0, 2, "exporting")
    read, files = _server(split, chosen.veil, samples, codings)
    facts = file_facts(files)
    same: dict[str, Any] = {
        "schema_version": 1, "splitveil": __version__, "name": name, "messages": read,
        "identity": identity_of(read, facts["server.onnx"].sha256),
    }  # fmt: skip
    server = ServerManifest(kind="server", files=facts, n_classes=len(names), **same)
    if progress:
        progress(1, 2, "exporting")
    example = torch.zeros(2, *samples.shape, device=split.device)
    edge_files = {
        "edge.onnx": to_onnx(EdgeHalf(split, chosen.veil), example, "image", _inside(read)),
        "profile.json": (json.dumps(profile.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode(),
    }
    row = rows_in(profile, split, chosen)[0]
    edge = EdgeManifest(
        kind="edge", files=file_facts(edge_files), model=profile.model, cut=row.cut, layer=row.layer,
        operator=row.operator, method=chosen.veil.name, classes=names, picture=_picture(profile, data), policy=policy,
        **same,
    )  # fmt: skip
    write_bundle(folder / SERVER, server, files, private_key)
    write_bundle(folder / EDGE, edge, edge_files, private_key)
    if progress:
        progress(2, 2, "exported")
    sizes = [sum(len(content) for content in each.values()) for each in (edge_files, files)]
    return Exported(edge, server, folder, profile.reference, read.frame_bytes(policy.m, policy.coding), *sizes)


def _codings(
    wish: Wish, codings: Sequence[FrameCoding] | None, coding: FrameCoding | None
) -> tuple[tuple[FrameCoding, ...], FrameCoding]:
    """How messages may be written, and how they are where nobody says otherwise."""
    if wish.finite:
        if tuple(codings or ("index",)) != ("index",) or coding not in (None, "index"):
            raise ExportError("finite messages are coded as index alone; leave the coding out")
        return ("index",), "index"
    allowed: tuple[FrameCoding, ...] = tuple(CODINGS if codings is None else codings)
    wanted = coding or "int8"
    if wanted not in allowed or "index" in allowed:
        raise ExportError(
            f"the policy's coding {wanted} is not among the codings {', '.join(allowed)}; add it"
            if wanted not in allowed
            else "only finite messages are coded as index; take float32, int8 or int4"
        )
    return allowed, wanted


def _server(
    split: SplitModel, veil: Veil, samples: Samples, codings: Sequence[FrameCoding]
) -> tuple[Messages, dict[str, bytes]]:
    coefficients = [coding for coding in codings if coding != "index"]
    scales = coding_scales(split, veil, samples.training, coefficients)
    components, *positions = veil.message.shape
    messages = Messages(
        components=components, positions=tuple(positions), codings=tuple(codings), levels=veil.message.levels,
        certified=veil.message.levels is not None,
        scales={name: tuple(map(float, scale)) for name, scale in scales.items()},
    )  # fmt: skip
    half = ServerHalf(split, veil, {name: torch.from_numpy(scale) for name, scale in scales.items()})
    example = torch.zeros(2, *veil.message.shape)
    return messages, {"server.onnx": to_onnx(half, example, _inside(messages), "logits")}


def _inside(messages: Messages) -> str:
    """The name of what the edge's graph gives and the server's takes."""
    return "coefficients" if messages.levels is None else "digits"


def _classes(profile: Profile, data: Dataset | Unlabelled | Tensor, given: Sequence[str] | None) -> tuple[str, ...]:
    count = profile.model.classes
    if given is None:
        given = data.classes if isinstance(data, Dataset) else list(map(str, range(count)))
    if len(given) != count:
        raise ExportError(f"{len(given)} names of classes are given, but the model has {count} answers; name them all")
    return tuple(given)


def _picture(profile: Profile, data: Dataset | Unlabelled | Tensor) -> Picture:
    crop = photo_crop(data.name) if isinstance(data, Dataset) else None
    return Picture(shape=profile.model.input_shape, crop=crop, resampling="bicubic", divisor=255)
