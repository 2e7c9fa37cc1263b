"""Seconds per epoch: ours beside a bare PyTorch loop, the ingredients beside plain, bfloat16 beside float32.

    python benchmarks/training.py --data utkface --out benchmarks/results/training.json

All variants take turns, one epoch each from fresh weights with validation at its end, in one process; what counts is
the ratio of medians, since a machine's speed changes with what else it does. Where the processor has no instructions
for bfloat16, ours is computed from rounded factors in float32, and torch's own way stands beside it.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from landing import finish, keep
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from splitveil.data import Dataset, Part, load_data
from splitveil.models import Table1Net
from splitveil.runs import versions
from splitveil.train import Recipe, fastest_precision, fit, precision

PAPER = Recipe.paper()
RECIPES = {
    "plain": {},
    "removal": {"removal": PAPER.removal},
    "decov": {"decov": PAPER.decov},
    "variational": {"variational": PAPER.variational},
    "paper": {"removal": PAPER.removal, "decov": PAPER.decov, "variational": PAPER.variational},
}


class Images(TorchDataset):
    """What a user would write: one image at a time, flipped at random."""

    def __init__(self, part: Part, flip: bool) -> None:
        self.part, self.flip = part, flip

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        x = self.part.pixels[index].float() / 255
        return (x.flip(2) if self.flip and torch.rand(()) < 0.5 else x), int(self.part.y[index])


def bare_epoch(data: Dataset, workers: int, channels_last: bool) -> None:
    """The same work by a plain loop."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = Table1Net(data.input_shape, data.n_classes).to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for x, y in DataLoader(Images(data.train, data.mirror), batch_size=128, shuffle=True, num_workers=workers):
        loss = nn.functional.cross_entropy(model(x.to(memory_format=layout)), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for x, _ in DataLoader(Images(data.val, False), batch_size=512, num_workers=workers):
            model(x.to(memory_format=layout)).argmax(1)


def ours(data: Dataset, **settings: object) -> None:
    fit(Table1Net(data.input_shape, data.n_classes), data, Recipe(epochs=1, **settings))


def theirs(data: Dataset) -> None:
    """Plain training in bfloat16 as torch computes it."""
    with patch.object(precision, "fastest_precision", lambda _: "bfloat16"):
        ours(data, precision="bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="utkface")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="to train on at most")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = load_data(options.data).without_hidden()
    data = replace(data, train=Part(data.train.pixels[: options.images], data.train.y[: options.images]))
    native = fastest_precision("cpu") == "bfloat16"
    variants = {
        "bare, no workers": lambda: bare_epoch(data, 0, False),
        "bare, 2 workers": lambda: bare_epoch(data, 2, False),
        "bare, 2 workers, channels last": lambda: bare_epoch(data, 2, True),
    }
    for name, settings in RECIPES.items():
        variants[f"{name}, float32"] = lambda settings=settings: ours(data, **settings)
        variants[f"{name}, bfloat16"] = lambda settings=settings: ours(data, precision="bfloat16", **settings)
    if not native:
        variants["plain, torch's bfloat16"] = lambda: theirs(data)
    seconds = {name: [] for name in variants}
    for turn in range(options.rounds + 1):
        for name, epoch in variants.items():
            start = time.perf_counter()
            epoch()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
        print(f"round {turn} of {options.rounds}", flush=True)
        keep(options.out, {"seconds": seconds})
    median = {name: statistics.median(times) for name, times in seconds.items()}
    best_bare = min(value for name, value in median.items() if name.startswith("bare"))
    ratios = {
        "plain float32 against the best bare loop": best_bare / median["plain, float32"],
        **{f"{name} against plain, float32": median[f"{name}, float32"] / median["plain, float32"] for name in RECIPES},
    }
    ratios["plain bfloat16 against the best bare loop"] = best_bare / median["plain, bfloat16"]
    ratios |= {
        f"{name} against plain, bfloat16": median[f"{name}, bfloat16"] / median["plain, bfloat16"] for name in RECIPES
    }
    if not native:
        ratios["torch's bfloat16 against ours, plain"] = median["plain, torch's bfloat16"] / median["plain, bfloat16"]
    settings = {
        "data": options.data, "images": len(data.train), "threads": torch.get_num_threads(), "rounds": options.rounds,
        "instructions for bfloat16": native, "paper": PAPER.__dict__, "versions": versions(),
    }  # fmt: skip
    throughput = {name: len(data.train) / value for name, value in median.items()}
    result = {"settings": settings, "seconds": seconds, "images_per_second": throughput, "ratios": ratios}
    finish(options.out, result)
    for name, value in throughput.items():
        print(f"{name}: {value:,.0f} images/s ({median[name]:.2f} s)")
    for name, value in ratios.items():
        print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
