"""Many small adversaries trained together against one after the other: seconds, and what both find.

    python benchmarks/adversaries.py --out benchmarks/results/adversaries.json

Jobs are messages of 1 to 64 numbers, by seed and hidden attribute: of digit-pairs, and with SPLITVEIL_DATA of UTKFace
and CelebA too. "One after the other" is how an attack's network is trained where it cannot be stacked: its own
autograd, optimiser and batches in float32. Both ways take turns, attack by attack, in one process; what counts is the
ratio.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from landing import finish, keep

from splitveil.attack import ATTACKS, Guess, Job, Perceptron, Public, ServerArchitecture, View
from splitveil.attack.fitting import fit_network
from splitveil.data import Dataset, Part, load_data
from splitveil.linear import factorise
from splitveil.models import Table1Net
from splitveil.obfuscate import TopComponents
from splitveil.runs import versions
from splitveil.split import SplitModel
from splitveil.statistics import proportion
from splitveil.train import Recipe, fastest_precision, fit, predict

SIZES = (1, 2, 4, 8, 16, 32, 64)
HIDDEN = {"digit-pairs": ("digit",), "utkface": ("race", "age_group"), "celeba": ("Male", "Young")}
NETWORKS = [attack for attack in ATTACKS if isinstance(attack, Perceptron | ServerArchitecture)]

Tested = list[tuple[View, torch.Tensor]]


def first(data: Dataset, images: int) -> Dataset:
    """So many images of each part at most."""
    cut = {
        name: Part(part.pixels[:images], part.y[:images], {key: each[:images] for key, each in part.hidden.items()})
        for name, part in data.parts.items()
    }
    return replace(data, **cut)


def jobs_of(data: Dataset, epochs: int, seeds: int) -> tuple[list[Job], Tested]:
    """Jobs, and the test messages and secrets of each."""
    torch.manual_seed(0)
    model = Table1Net(data.input_shape, data.n_classes)
    fit(model, data, Recipe(epochs=epochs, seed=0))
    split = SplitModel(model, at=4)
    z = {name: predict(split.client, part) for name, part in data.parts.items()}
    factors = factorise(split.server_layer, feature_shape=z["test"].shape[1:])
    jobs, tested = [], []
    for m in SIZES:
        veil = TopComponents(factors, m=m)
        public = Public(split, veil)
        seen = {}
        for name, feature in z.items():
            sent = torch.cat([veil.encode(rows) for rows in feature.split(1024)])
            seen[name] = View(sent, torch.full((len(sent),), m), public)
        for hidden in HIDDEN[data.name]:
            secret = {name: part.hidden[hidden] for name, part in data.parts.items()}
            for seed in range(seeds):
                values = len(data.hidden_classes[hidden])
                jobs.append(Job(seen["train"], secret["train"], seen["val"], secret["val"], values, seed))
                tested.append((seen["test"], secret["test"]))
    return jobs, tested


def timed(fitted: Callable[[], list[Guess]]) -> tuple[float, list[Guess]]:
    start = time.perf_counter()
    guesses = fitted()
    return time.perf_counter() - start, guesses


def accuracies(guesses: Sequence[Guess], tested: Tested) -> list[tuple[float, float, float]]:
    """Test accuracy of each job with its 95 % interval."""
    found = []
    for guess, (view, secret) in zip(guesses, tested, strict=True):
        estimate = proportion((guess(view).argmax(1) == secret).numpy())
        found.append((float(estimate), *estimate.interval))
    return found


def loaded(name: str) -> Dataset:
    """A data set with the attributes to attack; CelebA has more than it gives unasked."""
    return load_data(name, **({"hidden": HIDDEN[name]} if name == "celeba" else {}))


def compared(jobs: Sequence[Job], tested: Tested, rows: dict[str, dict[str, object]], kept: Callable[[], None]) -> None:
    """Put into ``rows``, for each attack, the seconds of both ways, their ratio, and how far they agree."""
    for attack in NETWORKS:
        attack.fit_many(jobs[:2])  # warms up
        together, first = timed(lambda attack=attack: attack.fit_many(jobs))
        alone, second = timed(lambda attack=attack: [fit_network(each) for each in attack.candidates(jobs)])
        ours, theirs = (accuracies(guesses, tested) for guesses in (first, second))
        differences = np.array([a[0] - b[0] for a, b in zip(ours, theirs, strict=True)])
        overlap = [a[1] <= b[2] and b[1] <= a[2] for a, b in zip(ours, theirs, strict=True)]
        rows[attack.name] = {
            "together": together, "one after the other": alone, "ratio": alone / together,
            "overlapping": float(np.mean(overlap)), "mean difference": float(differences.mean()),
            "largest difference": float(abs(differences).max()), "accuracies": {"together": ours, "alone": theirs},
        }  # fmt: skip
        print(
            f"{attack.name}: {together:.1f} s together, {alone:.1f} s alone, ratio {alone / together:.1f}", flush=True
        )
        kept()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", nargs="+", default=list(HIDDEN) if os.environ.get("SPLITVEIL_DATA") else ["digit-pairs"]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5, help="of the target models")
    parser.add_argument("--images", type=int, default=6800, help="of each part at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {
        "sizes": SIZES, "seeds": options.seeds, "epochs": options.epochs, "images": options.images,
        "threads": options.threads, "precision together": fastest_precision("cpu"), "load": os.getloadavg()[0],
        "versions": versions(),
    }  # fmt: skip
    found: dict[str, dict[str, dict[str, object]]] = {}
    result = {"settings": settings, "data": found}
    for name in options.data:
        jobs, tested = jobs_of(first(loaded(name), options.images), options.epochs, options.seeds)
        print(f"{name}: {len(jobs)} jobs")
        compared(jobs, tested, found.setdefault(name, {}), lambda: keep(options.out, result))
    rows = [row for each in found.values() for row in each.values()]
    total = {way: sum(row[way] for row in rows) for way in ("together", "one after the other")}
    ratio = total["one after the other"] / total["together"]
    finish(options.out, {**result, "in all": {**total, "ratio": ratio}})
    print(f"in all: ratio {ratio:.1f}")


if __name__ == "__main__":
    main()
