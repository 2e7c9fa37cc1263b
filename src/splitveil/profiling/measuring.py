"""Measuring a profile: every cut, a grid of kept components, what each costs and what it does to the answers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from splitveil.attack import ATTACKS, Attack
from splitveil.codec import CODINGS, Coding, dequantise, quantise
from splitveil.cost import edge_cost
from splitveil.data import Dataset
from splitveil.errors import ModelError, ProfileError
from splitveil.linear import Operator
from splitveil.measure import leakage, reference_lines
from splitveil.obfuscate import DistortionBounded, kept_components
from splitveil.profile import Interval, ModelFacts, Profile, Reference, Row, weights_digest
from splitveil.profiling.grid import EPSILONS, KEPT, Veil, check_grid, factors_at, obfuscators
from splitveil.profiling.samples import Samples, samples_of
from splitveil.profiling.scaling import coding_scales
from splitveil.runs import versions
from splitveil.split import SplitModel
from splitveil.statistics import drop_upper_limit, proportion
from splitveil.train import Progress
from splitveil.wire import HEADER_BYTES, payload_bytes

CONFIDENCE = 0.95
Scales = dict[Coding, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class _Point:
    """One obfuscator of the grid, and what was seen of it batch by batch: answers by coding, and components sent."""

    veil: Veil
    answers: dict[Coding, list[Tensor]]
    kept: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Before:
    """The uncut model's answers (N,) and classes, and where the reference is right (N,), None without labels."""

    uncut: Tensor
    classes: int
    reference_right: Tensor | None


def measure_profile(
    model: nn.Module,
    data: Dataset | Tensor,
    *,
    cuts: Sequence[int | str] | None = None,
    kept: Sequence[int] = KEPT,
    epsilons: Sequence[float] = EPSILONS,
    operator: Operator = "patch",
    codings: Sequence[Coding] = CODINGS,
    hidden: Sequence[str] = (),
    reference: nn.Module | None = None,
    attacks: Sequence[Attack] = ATTACKS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """Measure what each cut and each number of kept components costs on the edge and does to the answers.

    At every cut the grid holds `TopComponents` for each m' below the layer's rank, all components (`DistortionFree`
    where the operator has a null space), and `DistortionBounded` for each epsilon. A dense convolution whose factors
    are not all computed goes up to m' = 64, and has no full rank and no epsilons. Messages of fixed length are
    measured in every coding; the integers' scales come from the training part, or from the images where there is
    none. The client's half runs once per cut and image. Hidden labels are not read unless ``hidden`` names them.

    Args:
        model: trained; maps images (B, C, H, W) to logits (B, classes).
        data: whose validation part is measured; or images (N, C, H, W) without labels, in [0, 1], of which accuracy
            and drop are then unknown.
        cuts: numbers or layers' names, from the input on; all of the model's `cut_points` where not given.
        kept: m' to measure, each at least 1.
        epsilons: distortions to measure, as shares of each query's ‖Wz‖; may be empty.
        operator: of convolutions; fully connected layers have one operator, "dense".
        codings: of coefficients; "bounded" rows are of float32 alone.
        hidden: attributes whose leakage is measured at the "top" and "free" rows of float32, on the test part, as
            `measure.leakage` does.
        reference: the model that drops are measured against, trained plainly on the same data; the uncut model
            itself where not given.
        attacks: the suite for ``hidden``.
        seed: of the attacks.
        progress: called as (steps done, steps in all, text).

    Raises:
        ProfileError: the grid is empty or impossible, or what was asked for needs labels that are not there.
        SplitError: a cut does not exist, or the server's first layer there is not linear (`NoLinearLayerError`).
        ModelError: the model cannot answer these images.
        AttackError: a hidden attribute does not exist or is constant.
    """
    check_grid(kept, epsilons, codings)
    if (reference is not None or hidden) and not isinstance(data, Dataset):
        raise ProfileError("a reference and hidden attributes need a data set with labels, not images alone")
    if hidden and "float32" not in codings:
        raise ProfileError("what leaks is measured of float32 coefficients; add float32 to the codings")
    splits = {split.layer_name: split for split in (SplitModel(model, at=at) for at in _cuts(model, cuts))}
    samples = samples_of(data)
    before = _before(model, reference, samples)
    rows: list[Row] = []
    for done, split in enumerate(splits.values()):
        leak = _leakage(split, data, hidden, attacks, seed, progress)
        factors = factors_at(split, samples.images(slice(0, 1)), operator)
        veils = obfuscators(factors, kept, epsilons)
        points = [_Point(veil, {coding: [] for coding in _codings(veil, codings)}) for veil in veils]
        scales = _scales(split, veils, samples, codings)
        for index, batch in enumerate(samples.batches()):
            if progress:
                progress(done * len(samples.batches()) + index, len(splits) * len(samples.batches()), split.layer_name)
            _see(split, points, scales, samples.images(batch))
        rows += [row for point in points for row in _rows(split, point, samples, before, leak(point.veil))]
    if progress:
        progress(len(rows), len(rows), "rows measured")
    return Profile(
        schema_version=1, model=_model_facts(model, samples, before), data=samples.facts,
        reference=_reference_facts(model, reference, before), versions=versions(), confidence=CONFIDENCE,
        rows=tuple(rows),
    )  # fmt: skip


def model_digest(model: nn.Module) -> str:
    """`weights_digest` of a model in memory, the same as that of the file that its run keeps."""
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    return weights_digest(save(tensors))


def _cuts(model: nn.Module, cuts: Sequence[int | str] | None) -> Sequence[int | str]:
    points = tuple(getattr(model, "cut_points", ()))
    if cuts is None and not points:
        raise ProfileError(f"{type(model).__name__} has no numbered cuts; name the layers at whose input to cut")
    if cuts is not None and not cuts:
        raise ProfileError("no cut was given, so there is nothing to measure")
    return points if cuts is None else cuts


def _before(model: nn.Module, reference: nn.Module | None, samples: Samples) -> _Before:
    uncut, classes = _answers(model, samples)
    if samples.y is None:
        return _Before(uncut, classes, None)
    compared = uncut if reference is None else _answers(reference, samples)[0]
    return _Before(uncut, classes, compared == samples.y)


@torch.no_grad()
def _answers(model: nn.Module, samples: Samples) -> tuple[Tensor, int]:
    """Answers (N,) of an uncut model, and its number of classes."""
    device = next((p.device for p in model.parameters()), None)
    try:
        logits = torch.cat([model.eval()(samples.images(batch).to(device)).cpu() for batch in samples.batches()])
    except RuntimeError as error:
        raise ModelError(f"the model cannot read images of shape {samples.shape}: {error}") from error
    if logits.dim() != 2 or not bool(torch.isfinite(logits).all()):
        raise ModelError("the model's answers are not one finite number per class; train it again")
    return logits.argmax(1), logits.shape[1]


def _codings(veil: Veil, codings: Sequence[Coding]) -> Sequence[Coding]:
    return codings if veil.message.fixed_length else ("float32",)


def _scales(split: SplitModel, veils: Sequence[Veil], samples: Samples, codings: Sequence[Coding]) -> Scales:
    """Scales of the longest message of fixed length, which begin with those of every shorter one."""
    fixed = [veil for veil in veils if veil.message.fixed_length]
    return coding_scales(split, max(fixed, key=lambda veil: veil.m), samples.training, codings) if fixed else {}


@torch.no_grad()
def _see(split: SplitModel, points: Sequence[_Point], scales: Scales, x: Tensor) -> None:
    """One batch of images: the client's half once, then every point of the grid."""
    z = split.client(x.to(split.device))
    for point in points:
        message = point.veil.encode(z)
        for coding, answers in point.answers.items():
            read = message if coding == "float32" else _read(message, scales[coding], coding)
            answers.append(split.answer(point.veil, read).argmax(1).cpu())
        fixed = point.veil.message.fixed_length
        point.kept.append(torch.full((len(z),), message.shape[1]) if fixed else kept_components(message).cpu())


def _read(message: Tensor, scales: NDArray[np.float32], coding: Coding) -> Tensor:
    """Messages as the server reads them from integers."""
    integers = quantise(message.cpu().numpy(), scales, coding)
    return torch.from_numpy(dequantise(integers, scales)).to(message.device)


def _leakage(
    split: SplitModel, data: Dataset | Tensor, hidden: Sequence[str], attacks: Sequence[Attack], seed: int,
    progress: Progress | None,
) -> Callable[[Veil], dict[str, dict[str, Any]]]:  # fmt: skip
    """A function that attacks an obfuscator of fixed length; the reference lines of the cut are made once, here."""
    if not isinstance(data, Dataset):
        return lambda _: {}
    same: dict[str, Any] = {"attacks": attacks, "seed": seed, "progress": progress}
    lines = {name: reference_lines(split, data, hidden=name, **same) for name in hidden}

    def leak(veil: Veil) -> dict[str, dict[str, Any]]:
        if isinstance(veil, DistortionBounded):
            return {}
        return {
            name: leakage(split, veil, data, hidden=name, references=line, **same).as_row()
            for name, line in lines.items()
        }

    return leak


def _rows(
    split: SplitModel, point: _Point, samples: Samples, before: _Before, leak: Mapping[str, Mapping[str, Any]]
) -> list[Row]:
    """One row for each coding that the point was measured in."""
    veil, kept = point.veil, torch.cat(point.kept)
    bounded = isinstance(veil, DistortionBounded)
    cost = edge_cost(split, veil, samples.images(slice(0, 1)).to(split.device))
    same = {
        "cut": _number(split), "layer": split.layer_name, "operator": veil.factors.operator, "method": veil.name,
        "m": None if bounded else veil.m, "epsilon": veil.epsilon if isinstance(veil, DistortionBounded) else None,
        "message_shape": veil.message.shape, "fixed_length": veil.message.fixed_length,
        "mean_components": float(kept.double().mean()), "raw_bytes": cost.raw_bytes,
        "client_macs": cost.client_macs, "encoder_macs": cost.encoder_macs, "client_parameters": cost.parameters,
    }  # fmt: skip
    weights, positions = veil.factors.vh[: veil.m].numel(), math.prod(veil.message.shape[1:])
    rows = []
    for coding, answers in point.answers.items():
        exact = coding == "float32"
        sizes = [HEADER_BYTES + payload_bytes(positions * int(k), coding) for k in kept]  # as of real frames: see tests
        rows.append(Row.model_validate({
            **same, "coding": coding, "bytes_mean": float(np.mean(sizes)), "bytes_most": max(sizes),
            # The bound needs the singular values too, and an integer coding its scales.
            "encoder_parameters": weights if exact and not bounded else weights + veil.m,
            **_worth(torch.cat(answers), samples, before), "leakage": leak if exact else {},
        }))  # fmt: skip
    return rows


def _worth(answers: Tensor, samples: Samples, before: _Before) -> dict[str, Any]:
    """What the answers are worth: agreement always, the rest where there are labels."""
    same = answers == before.uncut
    agreed = {"samples": len(answers), "agreeing": int(same.sum()), "agreement": _share(same)}
    if samples.y is None or before.reference_right is None:
        return {**agreed, "accuracy": None, "lost": None, "gained": None, "drop": None}
    right = answers == samples.y
    lost, gained = int((before.reference_right & ~right).sum()), int((right & ~before.reference_right).sum())
    return {
        **agreed,
        "accuracy": _share(right),
        "lost": lost,
        "gained": gained,
        "drop": _drop(len(right), lost, gained),
    }


def _share(found: Tensor) -> Interval:
    return Interval.model_validate(proportion(found.numpy()).as_row())


def _drop(n: int, lost: int, gained: int) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = -drop_upper_limit(n, gained, lost, tail), drop_upper_limit(n, lost, gained, tail)
    return Interval(value=(lost - gained) / n, low=low, high=high)


def _number(split: SplitModel) -> int | None:
    points = tuple(getattr(split.model, "cut_points", ()))
    return points.index(split.layer_name) + 1 if split.layer_name in points else None


def _model_facts(model: nn.Module, samples: Samples, before: _Before) -> ModelFacts:
    return ModelFacts(
        name=type(model).__name__, input_shape=samples.shape, classes=before.classes, weights=model_digest(model)
    )


def _reference_facts(model: nn.Module, reference: nn.Module | None, before: _Before) -> Reference:
    accuracy = None if before.reference_right is None else _share(before.reference_right)
    return Reference(
        own=reference is None, weights=model_digest(model if reference is None else reference), accuracy=accuracy
    )
