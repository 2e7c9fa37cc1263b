"""The profile of what a bundle sends, and the policy that follows from it."""

from collections.abc import Sequence

from torch import Tensor, nn

from splitveil import profile as profiles
from splitveil.bundle import Policy
from splitveil.codec import CODINGS, FrameCoding
from splitveil.data import Dataset, Unlabelled
from splitveil.errors import ExportError
from splitveil.export.veils import Chosen
from splitveil.models import TOLERANCE, answers_differ_by, fixed_answers
from splitveil.obfuscate import Affine, Tables
from splitveil.profile import Profile
from splitveil.profiling import KEPT, measure_profile, model_digest
from splitveil.profiling.rows import operator_of
from splitveil.soundness import share_of
from splitveil.split import SplitModel
from splitveil.train import Progress


def check_profile(given: Profile | None, model: nn.Module) -> None:
    """Raises `ExportError` where a profile is of another model, or of one that answered otherwise."""
    if given is None:
        return
    if given.model.weights != model_digest(model):
        raise ExportError("the profile is of another model; run 'splitveil profile' again")
    then = given.model.answers
    if then and (gap := answers_differ_by(then, fixed_answers(model, given.model.input_shape))) > TOLERANCE:
        raise ExportError(
            f"the profile is of a model with the same weights that answered otherwise, by {share_of(gap)} of the "
            "answers' range; restore its code, or run 'splitveil profile' again"
        )


def profile_of(
    model: nn.Module, data: Dataset | Unlabelled | Tensor, split: SplitModel, chosen: Chosen,
    codings: Sequence[FrameCoding], given: Profile | None, reference: nn.Module | None, progress: Progress | None,
) -> Profile:  # fmt: skip
    """The profile of this model with rows of this obfuscator in all codings; measured where the given one has none.

    Raises:
        ExportError: the given one has them, but its drops are against another model than the reference.
    """
    if given is not None and {row.coding for row in rows_in(given, split, chosen)} >= set(codings):
        if reference is not None and given.reference.weights != model_digest(reference):
            raise ExportError("the profile's drops are against another model; profile against this reference first")
        return given
    veil, m = chosen.veil, chosen.veil.message.shape[0]
    coefficients = [coding for coding in codings if coding != "index"]
    if isinstance(veil, Affine | Tables):
        return measure_profile(
            model, data, cuts=[split.at], obfuscator=chosen.whole, kept=[*KEPT, m], codings=coefficients or CODINGS,
            reference=reference, progress=progress,
        )  # fmt: skip
    kept = [size for size in KEPT if size < m]
    return measure_profile(
        model, data, cuts=[split.at], kept=[*kept, m], epsilons=(), operator=veil.factors.operator,
        codings=coefficients, reference=reference, progress=progress,
    )  # fmt: skip


def rows_in(profile: Profile, split: SplitModel, chosen: Chosen, m: int | None = None) -> list[profiles.Row]:
    """The rows of this obfuscator's first m components, all where not given, in all codings."""
    wanted = (split.layer_name, operator_of(chosen.veil), m or chosen.veil.message.shape[0], chosen.digest)
    return [row for row in profile.rows if (row.layer, row.operator, row.m, row.obfuscator) == wanted]


def policy_of(
    profile: Profile, split: SplitModel, chosen: Chosen, coding: FrameCoding, max_drop: float | None, confidence: float
) -> Policy:
    """What clients send: all components, or as few as are proven to keep the drop.

    Raises:
        NoChoiceError: no number of components is proven to.
        ExportError: only more components than are exported are.
    """
    most = chosen.veil.message.shape[0]
    if max_drop is None:
        return Policy(m=most, coding=coding, max_drop=None, proven_drop=None, confidence=None)
    method = rows_in(profile, split, chosen)[0].method
    choice = profiles.choose(
        profile, cut=split.at, max_drop=max_drop, confidence=confidence, method=method, coding=coding
    )
    if choice.row.m is None or choice.row.m > most:
        raise ExportError(f"m'={choice.row.m} is needed to keep the drop, but {most} are exported; give a larger --m")
    return Policy(
        m=choice.row.m, coding=coding, max_drop=max_drop, proven_drop=choice.proven, confidence=confidence
    )  # fmt: skip
