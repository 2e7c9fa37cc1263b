"""From a trained model to an edge bundle and a server bundle."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splitveil.bundle import EdgeManifest, Messages, Picture, ServerManifest, file_facts, identity_of
from splitveil.codec import CODINGS, Coding, FrameCoding
from splitveil.data import Dataset, Unlabelled, photo_crop
from splitveil.errors import ExportError, ModelError
from splitveil.export.agreeing import as_exported
from splitveil.export.graphs import to_onnx
from splitveil.export.halves import EdgeHalf, ServerHalf, Veil
from splitveil.export.pairs import BATCHES, Pair, check_pair
from splitveil.export.policies import check_profile, policy_of, profile_of, rows_in
from splitveil.export.veils import Sent, Wish, choose_veil
from splitveil.export.writing import check_target, write_pair
from splitveil.linear import Operator
from splitveil.models import are_probabilities
from splitveil.obfuscate import Affine, Tables
from splitveil.profile import Profile
from splitveil.profile.schema import Reference
from splitveil.profiling.samples import Samples, samples_of
from splitveil.profiling.scaling import coding_scales
from splitveil.soundness import BATCH, check_model
from splitveil.split import SplitModel
from splitveil.train import Progress
from splitveil.version import __version__


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        edge, server: the manifests.
        folder: that holds ``edge`` and ``server``.
        reference: the model that drops are measured against.
        probabilities: whether the model ends in a softmax; the server's graph then gives the logarithm, as logits.
        frame_bytes: of one query under the policy.
        edge_bytes, server_bytes: of all files of a bundle.
    """

    edge: EdgeManifest
    server: ServerManifest
    folder: Path
    reference: Reference
    probabilities: bool
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
    replace_signed: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Exported:
    """Write ``out/edge`` and ``out/server``: graphs, preprocessing, profile, policy, manifests.

    Both graphs are run on real images before anything is written, at batch sizes 1, 2 and 64, and compared with torch;
    the profile's row of what clients send is measured on them.

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
        replace_signed: let bundles without a signature take the place of signed ones.
        seed: of a fit.
        progress: called as (steps done, steps in all, text).

    Raises:
        ExportError: the settings contradict each other, ONNX cannot say what the model does, or the graphs give other
            messages, logits or agreement than torch; the sentence names the operation where it is found.
        ModelError: an answer depends on other images or on chance, or is not of float32.
        ProfileError: the profile is of another model, or the obfuscator of another cut; `NoChoiceError` where
            nothing keeps ``max_drop``.
        SplitError, RankError: the cut or m does not exist.
        BundleError: the folder holds something else or a signed bundle, or the key cannot be read.
        RunError: the folder cannot be written.
    """
    folder = Path(out)
    check_target(folder, name, private_key, replace_signed=replace_signed)
    wish = Wish(method, m, messages, operator, seed, obfuscator)
    codings, coding = _codings(wish, codings, coding)
    split, samples = SplitModel(model, at=cut), samples_of(data)
    answers = check_model(split, samples.some(2 * BATCH))
    check_profile(profile, model)
    names = _classes(answers, data, classes)
    chosen = choose_veil(wish, split, data, samples, progress)
    profile = profile_of(model, data, split, chosen, codings, profile, reference, progress)
    policy = policy_of(profile, split, chosen, coding, max_drop, confidence)
    pair = _converted(split, chosen.veil, samples, codings, answers, progress)
    profile = as_exported(pair, profile, policy, chosen, samples)
    if policy_of(profile, split, chosen, coding, max_drop, confidence) != policy:
        raise ExportError("the exported graphs do not keep the drop that the profile promises; profile the run again")
    server_files = {"server.onnx": pair.server.content}
    same: dict[str, Any] = {
        "schema_version": 1, "splitveil": __version__, "name": name, "messages": pair.messages,
        "identity": identity_of(pair.messages, file_facts(server_files)["server.onnx"].sha256),
    }  # fmt: skip
    server = ServerManifest(
        kind="server", files=file_facts(server_files), n_classes=len(names), rows_independent=True, **same
    )
    edge_files = {
        "edge.onnx": pair.edge.content,
        "profile.json": (json.dumps(profile.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode(),
    }
    row = rows_in(profile, split, chosen)[0]
    edge = EdgeManifest(
        kind="edge", files=file_facts(edge_files), model=profile.model, cut=row.cut, layer=row.layer,
        operator=row.operator, method=chosen.veil.name, classes=names, picture=_picture(profile, data), policy=policy,
        **same,
    )  # fmt: skip
    write_pair(folder, (edge, edge_files), (server, server_files), private_key)
    if progress:
        progress(3, 3, "exported")
    sizes = [sum(len(content) for content in each.values()) for each in (edge_files, server_files)]
    frame = pair.messages.frame_bytes(policy.m, policy.coding)
    return Exported(edge, server, folder, profile.reference, pair.probabilities, frame, *sizes)


def _converted(
    split: SplitModel, veil: Veil, samples: Samples, codings: Sequence[FrameCoding], answers: Tensor,
    progress: Progress | None,
) -> Pair:  # fmt: skip
    """Both graphs, seen to give what torch gives."""
    if progress:
        progress(0, 3, "exporting")
    messages, scales = _messages(split, veil, samples, codings)
    probabilities = are_probabilities(answers)
    half = ServerHalf(split, veil, scales, probabilities=probabilities)
    server = to_onnx(half, torch.zeros(2, *veil.message.shape), _inside(messages), "logits")
    if progress:
        progress(1, 3, "exporting")
    example = torch.zeros(2, *samples.shape, device=split.device)
    edge = to_onnx(EdgeHalf(split, veil), example, "image", _inside(messages))
    if progress:
        progress(2, 3, "trying the graphs")
    pair = Pair.of(
        split, veil, probabilities, messages, edge, server, image=samples.shape, classes=answers.shape[1]
    )  # fmt: skip
    check_pair(pair, samples.some(BATCHES[-1]))
    return pair


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


def _messages(
    split: SplitModel, veil: Veil, samples: Samples, codings: Sequence[FrameCoding]
) -> tuple[Messages, dict[Coding, Tensor]]:
    """How messages are written, and the scales of the integer codings."""
    coefficients = [coding for coding in codings if coding != "index"]
    scales = coding_scales(split, veil, samples.training, coefficients)
    components, *positions = veil.message.shape
    messages = Messages(
        components=components, positions=tuple(positions), codings=tuple(codings), levels=veil.message.levels,
        certified=veil.message.levels is not None,
        scales={name: tuple(map(float, scale)) for name, scale in scales.items()},
    )  # fmt: skip
    return messages, {name: torch.from_numpy(scale) for name, scale in scales.items()}


def _inside(messages: Messages) -> str:
    """The name of what the edge's graph gives and the server's takes."""
    return "coefficients" if messages.levels is None else "digits"


def _classes(answers: Tensor, data: Dataset | Unlabelled | Tensor, given: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the answers (B, classes)."""
    if answers.dim() != 2 or answers.shape[1] < 2:
        raise ModelError(
            f"the model answers an image with {tuple(answers.shape[1:])}, not with a number for each class"
        )
    count = answers.shape[1]
    if given is None:
        given = data.classes if isinstance(data, Dataset) else list(map(str, range(count)))
    if len(given) != count:
        raise ExportError(f"{len(given)} names of classes are given, but the model has {count} answers; name them all")
    return tuple(given)


def _picture(profile: Profile, data: Dataset | Unlabelled | Tensor) -> Picture:
    crop = photo_crop(data.name) if isinstance(data, Dataset) else None
    return Picture(shape=profile.model.input_shape, crop=crop, resampling="bicubic", divisor=255)
