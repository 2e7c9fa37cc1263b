"""The demonstration: train on pairs of digits, cut, obfuscate, answer, attack, and report."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splitveil.attack import ATTACKS, reconstruct
from splitveil.data import Dataset, load_data
from splitveil.files import write_json, write_text
from splitveil.linear import factorise
from splitveil.measure import RawFeatures, leakages, references_of, view
from splitveil.message import Obfuscator
from splitveil.obfuscate import DistortionFree, Identity, TopComponents
from splitveil.report import demo_report
from splitveil.runs import Run, train_run, versions
from splitveil.split import SplitModel
from splitveil.train import Progress, Recipe, predict

CUT = 4
RECIPE = Recipe(epochs=8)
KEPT = (1, 2, 4, 8, 12, 16, 32)
DROP = 0.01  # of validation accuracy that the m' of the sentences and pictures may cost
PICTURES = 10


def run_demo(out: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Run everything in the folder ``out``: ``run/``, ``rows.json``, ``report.html``.

    Args:
        out: the folder; training goes on where an interrupted demo stopped.
        progress: called as (done, in all, text).

    Returns:
        The rows, the three sentences, and the report's path.

    Raises:
        RunError: the folder cannot be written, or holds another run.
    """
    folder = Path(out)
    data = load_data("digit-pairs")
    train_run(folder / "run", data, RECIPE, source="digit-pairs", progress=progress)
    split = SplitModel(Run(folder / "run").model(), at=CUT)
    shape = tuple(predict(split.client, data.test).shape[1:])
    factors = factorise(split.server_layer, feature_shape=shape)
    veils: dict[str, Obfuscator] = {f"m'={m}": TopComponents(factors, m=m) for m in KEPT}
    veils["distortion-free"] = DistortionFree(factors)
    veils["raw feature"] = Identity(shape)
    rows = _rows(split, veils, data, progress)
    shown = _smallest_good(split, veils, data)
    pictures = _pictures(split, veils, data, shown)
    facts = {"data": data.digest, "cut": CUT, "operator": factors.operator, "seed": 0, "versions": versions()}
    write_json(folder / "rows.json", {"facts": facts, "rows": rows})
    sentences, page = demo_report(rows, facts, pictures, shown)
    write_text(folder / "report.html", page)
    return {"rows": rows, "sentences": sentences, "report": str(folder / "report.html")}


def _rows(
    split: SplitModel, veils: dict[str, Obfuscator], data: Dataset, progress: Progress | None
) -> list[dict[str, Any]]:
    same: dict[str, Any] = {
        "hidden": ["digit"], "attacks": ATTACKS, "progress": progress, "features": RawFeatures(data),
    }  # fmt: skip
    references = references_of(split, data, **same)
    found = leakages([(split, veil) for veil in veils.values()], data, references=references, **same)
    return [
        {"name": name, "components": veil.message.shape[0], **leaks["digit"].as_row()}
        for (name, veil), leaks in zip(veils.items(), found, strict=True)
    ]


def _smallest_good(split: SplitModel, veils: dict[str, Obfuscator], data: Dataset) -> str:
    """The fewest components whose validation accuracy is within `DROP` of the undefended one."""
    right = {
        name: (view(split, veil, data.val)[1].argmax(1) == data.val.y).float().mean() for name, veil in veils.items()
    }
    return next(name for name, share in right.items() if share >= right["raw feature"] - DROP)


def _pictures(split: SplitModel, veils: dict[str, Obfuscator], data: Dataset, message: str) -> dict[str, Tensor]:
    """Test images, and what a trained decoder makes of the raw feature and of the message."""
    shown = data.test.images(slice(0, PICTURES))
    strips = {"what the edge saw": shown}
    for name in ("raw feature", message):
        train, val, test = (view(split, veils[name], part)[0] for part in (data.train, data.val, data.test))
        recovered = reconstruct(train, data.train.x, val, data.val.x, test)
        strips[f"recovered from {name}"] = recovered[:PICTURES]
    with torch.no_grad():
        return {name: strip.clamp(0, 1) for name, strip in strips.items()}
