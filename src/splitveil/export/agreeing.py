"""The agreement that a profile states for what clients send, measured again on the graphs that ship."""

import math

import torch
from torch import Tensor

from splitveil.bundle import Policy
from splitveil.errors import ExportError
from splitveil.export.pairs import Pair
from splitveil.export.policies import rows_in
from splitveil.export.veils import Chosen
from splitveil.profile import Profile, Row
from splitveil.profiling.samples import Samples
from splitveil.profiling.shares import drop, share

MOST = 2048
"""Images at most; of a larger part so many are taken, evenly spread, and the stated agreement must fit theirs."""
ROUNDING = 0.01
"""Share of the images whose answer may be another one than in torch, at codes and labels that rounding decides."""
_DEVIATIONS = 4  # of an agreement that is measured on some images only; exceeded once in 16,000 exports


def as_exported(pair: Pair, profile: Profile, policy: Policy, chosen: Chosen, samples: Samples) -> Profile:
    """The profile with the row of the policy as the exported pair reaches it: from photo to frame to label.

    Images of other data than the profile's are not compared with it.

    Raises:
        ExportError: the graphs keep another share of the answers, by more than rounding explains.
    """
    if profile.data.digest != samples.facts.digest:
        return profile
    rows = [row for row in rows_in(profile, pair.split, chosen, m=policy.m) if row.coding == policy.coding]
    if not rows:
        return profile
    (row, *_), where = rows, samples.rows(min(MOST, samples.facts.samples))
    answers, uncut = _answers(pair, policy, samples, where)
    same = answers == uncut
    all_of_them = len(where) == row.samples
    allowed = 1e-9 + max(2 / row.samples, ROUNDING) + (0 if all_of_them else _DEVIATIONS * math.sqrt(0.25 / len(where)))
    found = float(same.double().mean())
    if abs(found - row.agreement.value) > allowed:
        raise ExportError(
            f"the exported graphs keep {found:.1%} of the uncut model's answers, but the profile says "
            f"{row.agreement.value:.1%} of m'={policy.m} as {policy.coding}; run 'splitveil profile' again"
        )
    if not all_of_them:
        return profile
    changed = _reached(row, same, None if samples.y is None else answers == samples.y)
    return profile.model_copy(update={"rows": tuple(changed if each is row else each for each in profile.rows)})


@torch.no_grad()
def _answers(pair: Pair, policy: Policy, samples: Samples, where: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (N,) by the graphs, and by the uncut model."""
    model, device = pair.split.model.eval(), pair.split.device
    ours, uncut = [], []
    for batch in torch.split(where, 256):
        images = samples.images(batch)
        ours.append(pair.labels(images, policy.m, policy.coding))
        uncut.append(model(images.to(device, copy=True)).argmax(1).cpu())
    return torch.cat(ours), torch.cat(uncut)


def _reached(row: Row, same: Tensor, right: Tensor | None) -> Row:
    """The row with these answers' agreement, accuracy and drop; what did not change stays as it was."""
    if int(same.sum()) == row.agreeing and (right is None or row.accuracy == share(right)):
        return row
    update: dict[str, object] = {"agreeing": int(same.sum()), "agreement": share(same)}
    if right is not None and row.accuracy is not None and row.lost is not None and row.gained is not None:
        # Against the reference nothing is measured anew: answers that are right no more count as lost, and new ones
        # as gained, which gives the same drop and no narrower interval.
        fewer = round(row.accuracy.value * row.samples) - int(right.sum())
        lost, gained = row.lost + max(0, fewer), row.gained + max(0, -fewer)
        update |= {"accuracy": share(right), "lost": lost, "gained": gained, "drop": drop(row.samples, lost, gained)}
    return row.model_copy(update=update)
