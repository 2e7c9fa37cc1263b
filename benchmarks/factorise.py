"""How long each cut of Table 1 takes to factorise, and how much memory it needs.

    python benchmarks/factorise.py --out benchmarks/results/factorise.json

One row per data set size, cut and operator, each in a process of its own so that peak memory is its own. Weights are
PyTorch's default initialisation with a fixed seed.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from landing import finish, keep

INPUTS = {"qmnist": (1, 28, 28, 10), "utkface": (3, 50, 50, 2), "celeba": (3, 73, 60, 2)}
FILTERS = (16, 32, 64)
SEED = 0

Row = dict[str, Any]


def cut_shapes(data: str) -> list[tuple[tuple[int, ...], int]]:
    """For cuts 1 to 6 of Table 1: the feature's shape, and the outputs of the layer that reads it."""
    channels, height, width, classes = INPUTS[data]
    cuts: list[tuple[tuple[int, ...], int]] = []
    for filters in FILTERS:
        cuts.append(((channels, height, width), filters))
        channels, height, width = filters, height // 2, width // 2
    return [*cuts, ((channels, height, width), 128), ((128,), 64), ((64,), classes)]


def measure(data: str, cut: int, operator: str) -> Row:
    """Factorises one cut; seconds of wall time, GiB of the whole process with PyTorch loaded."""
    import torch
    from torch import nn

    from splitveil.linear import factorise

    shape, out = cut_shapes(data)[cut - 1]
    torch.manual_seed(SEED)
    size = torch.Size(shape).numel()
    layer = nn.Conv2d(shape[0], out, 3, padding=1) if cut <= len(FILTERS) else nn.Linear(size, out)
    start = time.perf_counter()
    f = factorise(layer, feature_shape=shape, operator=operator)
    seconds = time.perf_counter() - start
    return {
        "data": data,
        "cut": cut,
        "operator": f.operator,
        "n": f.in_features,
        "m": f.out_features,
        "k": len(f.s),
        "rank": f.rank,
        "null_dimension": f.null_dimension,
        "complete": f.complete,
        "seconds": round(seconds, 3),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def rows(names: Sequence[str], cuts: Sequence[int], out: Path | None) -> list[Row]:
    context = multiprocessing.get_context("spawn")
    found: list[Row] = []
    for data in names:
        for cut in cuts:
            for operator in ("dense", "patch") if cut <= len(FILTERS) else ("dense",):
                with context.Pool(1) as pool:
                    found.append(pool.apply(measure, (data, cut, operator)))
                print(json.dumps(found[-1]), flush=True)
                keep(out, {"rows": found})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the factorisation of every cut of Table 1.")
    parser.add_argument("--out", type=Path, help="file for the rows as JSON")
    parser.add_argument("--data", nargs="+", choices=INPUTS, default=list(INPUTS), help="whose image sizes")
    parser.add_argument("--cuts", nargs="+", type=int, default=list(range(1, 7)))
    options = parser.parse_args()
    found = rows(options.data, options.cuts, options.out)
    import torch

    machine = {"platform": platform.platform(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    finish(options.out, {"machine": machine, "seed": SEED, "rows": found})


if __name__ == "__main__":
    main()
