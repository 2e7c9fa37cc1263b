"""Measuring a profile: every cut, a grid of kept components, what each costs and what it does to the answers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from splitveil.attack import ATTACKS, Attack
from splitveil.codec import CODINGS, Coding
from splitveil.data import Dataset, Unlabelled
from splitveil.errors import ProfileError
from splitveil.linear import Operator
from splitveil.measure import leakage, reference_lines
from splitveil.obfuscate import Affine, DistortionBounded, Tables
from splitveil.profile import Profile, Row
from splitveil.profiling.fitted import check_fits, obfuscator_digest, prefixes
from splitveil.profiling.grid import EPSILONS, KEPT, Veil, check_grid, factors_at, obfuscators
from splitveil.profiling.points import Point, scales_of, see
from splitveil.profiling.rows import rows_of
from splitveil.profiling.samples import Samples, samples_of
from splitveil.profiling.shares import CONFIDENCE
from splitveil.profiling.uncut import answers_before, model_facts, reference_facts
from splitveil.runs import versions
from splitveil.soundness import BATCH, check_model
from splitveil.split import SplitModel
from splitveil.train import Progress


def measure_profile(
    model: nn.Module,
    data: Dataset | Unlabelled | Tensor,
    *,
    cuts: Sequence[int | str] | None = None,
    obfuscator: Affine | Tables | None = None,
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
    none. With ``obfuscator`` the grid is that one alone, with each number of ``kept`` components below its own and
    whole; finite messages as their index. The client's half runs once per cut and image. Hidden labels are not read
    unless ``hidden`` names them.

    Args:
        model: trained; maps images (B, C, H, W) to logits (B, classes).
        data: whose validation part is measured; or images (N, C, H, W) without labels, in [0, 1], of which accuracy
            and drop are then unknown.
        cuts: numbers or layers' names, from the input on; all of the model's `cut_points` where not given.
        obfuscator: in place of the grid, fitted to other images than those measured; ``cuts`` must name its cut and
            no other. ``operator`` and ``epsilons`` are the grid's, and have no say then.
        kept: m' to measure, each at least 1.
        epsilons: distortions to measure, as shares of each query's ‖Wz‖; may be empty.
        operator: of convolutions; fully connected layers have one operator, "dense".
        codings: of coefficients; "bounded" rows are of float32 alone.
        hidden: attributes whose leakage is measured at rows of fixed length, of float32 or finite, on the test part,
            as `measure.leakage` does.
        reference: the model that drops are measured against, trained plainly on the same data; the uncut model
            itself where not given.
        attacks: the suite for ``hidden``.
        seed: of the attacks.
        progress: called as (steps done, steps in all, text).

    Raises:
        ProfileError: the grid is empty or impossible, the obfuscator is not of this cut, or what was asked for needs
            labels that are not there.
        SplitError: a cut does not exist, or the server's first layer there is not linear (`NoLinearLayerError`).
        ModelError: the model cannot answer these images, or not each by itself (`soundness.check_model`).
        AttackError: a hidden attribute does not exist or is constant.
    """
    check_grid(kept, epsilons, codings)
    if (reference is not None or hidden) and not isinstance(data, Dataset):
        raise ProfileError("a reference and hidden attributes need a data set with labels, not images alone")
    if hidden and "float32" not in codings:
        raise ProfileError("what leaks is measured of float32 coefficients; add float32 to the codings")
    splits = {split.layer_name: split for split in (SplitModel(model, at=at) for at in _cuts(model, cuts))}
    if obfuscator is not None and (cuts is None or len(splits) > 1):
        raise ProfileError("an obfuscator belongs to one cut; name that cut alone")
    samples = samples_of(data)
    for split in splits.values():
        check_model(split, samples.some(2 * BATCH))
    before = answers_before(model, reference, samples)
    digest = None if obfuscator is None else obfuscator_digest(obfuscator)
    rows: list[Row] = []
    for done, split in enumerate(splits.values()):
        leak = _leakage(split, data, hidden, attacks, seed, progress)
        points = [Point.of(veil, codings) for veil in _veils(split, samples, obfuscator, kept, epsilons, operator)]
        scales = scales_of(split, points, samples, codings)
        for index, batch in enumerate(samples.batches()):
            if progress:
                progress(done * len(samples.batches()) + index, len(splits) * len(samples.batches()), split.layer_name)
            see(split, points, scales, samples.images(batch))
        for point in points:
            rows += rows_of(split, point, samples, before, leak=leak(point.veil), obfuscator=digest)
    if progress:
        progress(len(rows), len(rows), "rows measured")
    return Profile(
        schema_version=1, model=model_facts(model, samples, before), data=samples.facts,
        reference=reference_facts(model, reference, before), versions=versions(), confidence=CONFIDENCE,
        rows=tuple(rows),
    )  # fmt: skip


def _cuts(model: nn.Module, cuts: Sequence[int | str] | None) -> Sequence[int | str]:
    points = tuple(getattr(model, "cut_points", ()))
    if cuts is None and not points:
        raise ProfileError(f"{type(model).__name__} has no numbered cuts; name the layers at whose input to cut")
    if cuts is not None and not cuts:
        raise ProfileError("no cut was given, so there is nothing to measure")
    return points if cuts is None else cuts


def _veils(
    split: SplitModel, samples: Samples, obfuscator: Affine | Tables | None, kept: Sequence[int],
    epsilons: Sequence[float], operator: Operator,
) -> Sequence[Veil]:  # fmt: skip
    """The obfuscators of one cut."""
    first = samples.images(slice(0, 1))
    if obfuscator is None:
        return obfuscators(factors_at(split, first, operator), kept, epsilons)
    with torch.no_grad():
        check_fits(obfuscator, split.client(first.to(split.device)).shape[1:])
    return prefixes(obfuscator, kept)


def _leakage(
    split: SplitModel, data: Dataset | Unlabelled | Tensor, hidden: Sequence[str], attacks: Sequence[Attack], seed: int,
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
