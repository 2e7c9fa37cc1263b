"""Reference lines, kept beside the trained models: many cells stand beside the same ones."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from splitveil.attack import REVISION, Attack
from splitveil.data import Dataset
from splitveil.experiments.cells import Place
from splitveil.files import is_there, read_json, write_json
from splitveil.measure import AttackScore, Estimate, RawFeatures, References, references_of
from splitveil.profiling import model_digest
from splitveil.split import SplitModel
from splitveil.train import Progress

ON_MAPS = ("server-architecture", "linear", "nearest-neighbours")
"""The attacks that the raw feature of a convolution meets: the others would take hours on 17,000 numbers."""
_SCORES = ("label", "logits", "raw")


def kept_lines(
    label: str,
    split: SplitModel,
    data: Dataset,
    place: Place,
    *,
    hidden: Sequence[str],
    attacks: Sequence[Attack],
    seed: int,
    several: Sequence[int],
    progress: Progress | None = None,
    features: RawFeatures | None = None,
) -> dict[str, References]:
    """`references_of`, each computed once per model, data, cut, attribute, suite and seed, and kept in ``place.runs``.

    Args:
        label: begins the names of the files.
        place: where they are kept.
        split, data, hidden, attacks, seed, several, progress, features: see `references_of`.
    """
    same: dict[str, Any] = {"attacks": attacks, "seed": seed, "several": several, "features": features}
    facts = [
        model_digest(split.model), data.digest, split.layer_name, [attack.name for attack in attacks], REVISION, seed,
        list(several), place.device,
    ]  # fmt: skip
    digest = sha256(json.dumps(facts).encode()).hexdigest()[:8]
    paths = {name: place.runs / "lines" / f"{label}-cut{split.at}-{name}-{digest}.json" for name in hidden}
    if missing := [name for name, path in paths.items() if not is_there(path)]:
        found = references_of(split, data, hidden=missing, progress=progress, **same)
        for name in missing:
            write_json(paths[name], _as_row(found[name]))
    return {name: _read(path, len(data.test)) for name, path in paths.items()}


def _as_row(lines: References) -> dict[str, Any]:
    scores = {name: getattr(lines, name).as_row() for name in _SCORES}
    return {"prior": lines.prior.as_row(), "undefended": lines.undefended.as_row(), **scores}


def _read(path: Path, n: int) -> References:
    row = read_json(path)
    scores = {name: AttackScore.from_row(row[name], n) for name in _SCORES}
    return References(prior=Estimate(**row["prior"]), undefended=Estimate(**row["undefended"]), **scores)
