"""Rows of points, made by hand, with known errors: what tests of tables, plots and verdicts are run on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from splitveil.experiments.cells import Row
from splitveil.measure.scores import pack

N = 1000
Errors = Sequence[tuple[float, float]]


def right(error: float) -> np.ndarray:
    """Exactly this share of samples wrong, the same ones first."""
    return np.arange(N) >= round(error * N)


def share(error: float, width: float = 0.01) -> dict[str, float]:
    """An accuracy as a row holds it."""
    return {"value": 1 - error, "low": 1 - error - width, "high": 1 - error + width}


def line(error: float) -> dict[str, Any]:
    """A reference attack."""
    return {"accuracy": share(error), "right": pack(right(error)), "several": {}, **_others(error)}


def _others(error: float) -> dict[str, Any]:
    """Scores other than accuracy, which rise with it."""
    return {"balanced": share(error), "auc": share(error / 2), "bits": share(error), "best_by": {}}


def entry(
    setting: dict[str, Any],
    target: float,
    attack: dict[str, float],
    components: int = 1,
    prior: float = 0.6,
    messages: int | None = None,
    edge_macs: int = 1000,
) -> dict[str, Any]:
    """A setting's entry: target error, and the attack's error by attribute; finite messages have a certificate."""
    leaks = {
        name: {
            "best": "linear", "validation": {"linear": 1 - error, "trees": 0.0}, "accuracy": share(error),
            "right": pack(right(error)), "several": {}, "advantage": share(1 - (prior - error)),
            **_others(error),
        }
        for name, error in attack.items()
    }  # fmt: skip
    finite = {} if messages is None else {"messages": messages, "guess_bound": dict.fromkeys(attack, 0.2 * messages)}
    return {
        **finite, "edge_macs": edge_macs, "setting": setting, "components": components, "fixed_length": True,
        "leaks": leaks,
        "target": {"val": share(target), "test": share(target), "right": pack(right(target))},
    }  # fmt: skip


def row(
    defence: str,
    entries: Sequence[dict[str, Any]],
    *,
    training: str | None = None,
    hidden: Sequence[str] = ("race",),
    lines: dict[str, float] | None = None,
    targets: Sequence[dict[str, Any]] = (),
    plain: float = 0.1,
    prior: float = 0.6,
    **config: Any,
) -> Row:
    """A row; ours is trained by the paper's recipe, all else plainly, where not said.

    Args:
        defence, training, hidden: of the config.
        entries: as `entry` makes them.
        lines: errors of the reference attacks label, logits, raw.
        targets: of a row that chose a setting.
        plain: error of the undefended model.
        prior: error of the prior.
        config: what else the config holds.
    """
    lines = {"label": 0.55, "logits": 0.5, "raw": 0.3, **(lines or {})}
    settings = {
        "data": "utkface", "training": training or ("paper" if defence == "top" else "plain"), "seed": 0, "cut": 4,
        "operator": "dense", "epochs": 20, "precision": "float32", "drop": 0.01 if targets else None,
        "attacks": ["linear", "trees"], "defence": defence, "hidden": list(hidden), **config,
    }  # fmt: skip
    numbers = {
        "n_test": N, "points": list(entries), "targets": list(targets),
        "prior": {name: share(prior) for name in hidden},
        "lines": {name: {each: line(error) for each, error in lines.items()} for name in hidden},
        "undefended": {"val": share(plain), "test": share(plain), "right": pack(right(plain))},
    }  # fmt: skip
    return Row(
        experiment="points", config=settings, data="d", versions={}, device="cpu",
        seconds={"train": 1.0, "fit": 2.0, "attack": 3.0}, numbers=numbers,
    )  # fmt: skip


def tradeoff(defence: str, errors: Errors, **more: Any) -> Row:
    """A row with a setting m = 1, 2, 4, … for each pair of target and attack error."""
    return row(defence, [entry({"m": 2**k}, x, {"race": y}) for k, (x, y) in enumerate(errors)], **more)
