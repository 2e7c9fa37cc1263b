"""What the encoder adds to the edge's time, what a query weighs, and what the edge needs beside PyTorch.

    python benchmarks/edge.py --out benchmarks/results/edge.json

Time: the exported graph with the encoder and without it, the encoder alone, the server's first layer alone, and a graph
that does nothing, all in ONNX Runtime with one thread, taking turns in one process. The encoder does m'/m of that
layer's multiply-accumulates, so the ratio of its time to m'/m of the layer's says what is lost besides: once for
(with − without), which is what a user pays but drowns in the noise of the convolutions where the encoder is one
hundredth of them, and once for the encoder alone, where the time of the graph that does nothing is taken off both.
Networks have Table 1's sizes for each data set's images and PyTorch's first weights, which do not change the time.
Bytes: real frames, the raw feature's frame, and, with SPLITVEIL_DATA, a JPEG of the network's own input (quality 75) on
average over test images.
Footprint: a fresh interpreter that imports, loads and answers once.
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from landing import finish, keep
from PIL import Image
from torch import nn

from splitveil.bundle import Graph
from splitveil.codec import CODINGS
from splitveil.data import load_data
from splitveil.export.graphs import to_onnx
from splitveil.export.halves import EdgeHalf
from splitveil.linear import factorise
from splitveil.models import Table1Net
from splitveil.obfuscate import TopComponents
from splitveil.runs import versions
from splitveil.split import SplitModel
from splitveil.wire import HEADER_BYTES, payload_bytes

INPUTS = {"qmnist": (1, 28, 28, 10), "utkface": (3, 50, 50, 2), "celeba": (3, 73, 60, 2)}
CUTS = {4: (8, 16, 32, 64), 5: (16, 32), 6: (1,)}
BATCHES = (1, 32)
ROUNDS = 600
STARTS = 5  # of a fresh interpreter

Row = dict[str, Any]


class Encoder(nn.Module):
    def __init__(self, veil: TopComponents) -> None:
        super().__init__()
        self.rows = nn.Parameter(veil.factors.vh[: veil.m].float().T.contiguous())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.flatten(1) @ self.rows


class Nothing(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.flatten(1)[:, :1]


def cut_graphs(data: str, cut: int, m: int) -> tuple[SplitModel, dict[str, Graph], dict[str, tuple[int, ...]]]:
    """The graphs to time, and the shapes of their inputs."""
    *shape, classes = INPUTS[data]
    torch.manual_seed(0)
    split = SplitModel(Table1Net(shape, classes), at=cut)
    image = torch.rand(2, *shape)
    with torch.no_grad():
        z = split.client(image)
    layer = split.server_layer
    assert isinstance(layer, nn.Linear)
    veil = TopComponents(factorise(layer, feature_shape=tuple(z.shape[1:])), m=m)
    parts: dict[str, tuple[nn.Module, torch.Tensor, tuple[int, ...]]] = {
        "with": (EdgeHalf(split, veil), image, (m,)),
        "without": (split.client, image, tuple(z.shape[1:])),
        "layer": (layer, z.flatten(1), (layer.out_features,)),
        "encoder": (Encoder(veil), z, (m,)),
        "nothing": (Nothing(), z, (1,)),
    }
    graphs = {
        name: Graph(to_onnx(module, x, "x", "y").content, x.shape[1:], outside)
        for name, (module, x, outside) in parts.items()
    }
    return split, graphs, {name: tuple(x.shape[1:]) for name, (_, x, _) in parts.items()}


def timed(data: str, cut: int, m: int) -> list[Row]:
    split, graphs, shapes = cut_graphs(data, cut, m)
    layer = split.server_layer
    assert isinstance(layer, nn.Linear)
    rows = []
    for batch in BATCHES:
        x = {name: np.random.default_rng(0).random((batch, *shape), np.float32) for name, shape in shapes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in graphs}
        for turn in range(ROUNDS):
            for name in list(graphs) if turn % 2 else list(graphs)[::-1]:
                start = time.perf_counter()
                graphs[name].run(x[name])
                seconds[name].append(time.perf_counter() - start)
        # Turn by turn, so that what slows both down cancels out; the first turns warm up.
        kept = {name: found[20:] for name, found in seconds.items()}
        median = {name: statistics.median(found) for name, found in kept.items()}
        share = m / layer.out_features
        added = [a - b for a, b in zip(kept["with"], kept["without"], strict=True)]
        alone = [a - b for a, b in zip(kept["encoder"], kept["nothing"], strict=True)]
        bare = median["layer"] - median["nothing"]
        rows.append({
            "data": data, "cut": cut, "m": m, "of": layer.out_features, "batch": batch,
            "with_ms": 1e3 * median["with"], "without_ms": 1e3 * median["without"], "layer_ms": 1e3 * median["layer"],
            "added_ms": 1e3 * statistics.median(added), "theory_ms": 1e3 * share * median["layer"],
            "ratio": ratio(added, share * median["layer"]), "ratio_alone": ratio(alone, share * bare),
            "added_share": statistics.median(added) / median["without"],
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def ratio(seconds: list[float], unit: float) -> dict[str, float]:
    """The median in units, with a distribution-free 95 % interval from order statistics."""
    ordered, reach, middle = sorted(seconds), 0.98 * len(seconds) ** 0.5, len(seconds) / 2
    low, high = ordered[int(middle - reach)], ordered[min(len(seconds) - 1, int(middle + reach))]
    return {"value": statistics.median(seconds) / unit, "low": low / unit, "high": high / unit}


def sizes(data: str) -> list[Row]:
    *shape, classes = INPUTS[data]
    jpeg = mean_jpeg(data)
    rows = []
    for cut, kept in CUTS.items():
        split = SplitModel(Table1Net(shape, classes), at=cut)
        with torch.no_grad():
            n = split.client(torch.zeros(1, *shape)).numel()
        rows += [
            {"data": data, "cut": cut, "m": m, "raw_bytes": HEADER_BYTES + 4 * n, "image_bytes": int(np.prod(shape)),
             "jpeg_bytes": jpeg,
             **{f"{coding}_bytes": HEADER_BYTES + payload_bytes(m, coding) for coding in CODINGS}}
            for m in kept
        ]  # fmt: skip
    return rows


def mean_jpeg(data: str) -> float | None:
    """Bytes of a JPEG of the network's input, on average over 200 test images; None without the data."""
    if "SPLITVEIL_DATA" not in os.environ:
        return None
    pixels = (255 * load_data(data).test.images(slice(0, 200))).round().byte().numpy()
    found = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=75)
        found.append(len(buffer.getvalue()))
    return float(np.mean(found))


EDGE = """
import sys, time
from pathlib import Path
start = time.perf_counter()
import numpy as np
from splitveil.client import EdgeEncoder
edge = EdgeEncoder(sys.argv[1])
edge.frames([np.zeros(edge.manifest.picture.shape, np.uint8)])
seconds = time.perf_counter() - start
lines = Path("/proc/self/status").read_text().splitlines()
memory = {line.split()[0]: int(line.split()[1]) for line in lines if "kB" in line}
print(seconds, memory["VmHWM:"] / 1024, memory["VmRSS:"] / 1024)
"""
TORCH = """
import sys, time
from pathlib import Path
start = time.perf_counter()
import torch
from splitveil.models import Table1Net
with torch.no_grad():
    Table1Net((3, 50, 50), 2).eval()(torch.zeros(1, 3, 50, 50))
seconds = time.perf_counter() - start
lines = Path("/proc/self/status").read_text().splitlines()
memory = {line.split()[0]: int(line.split()[1]) for line in lines if "kB" in line}
print(seconds, memory["VmHWM:"] / 1024, memory["VmRSS:"] / 1024)
"""


def footprint() -> Row:
    """Seconds from the first import to the first frame, and the most memory, of both; the median of five."""
    from splitveil.data import Dataset
    from splitveil.export import export

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (200, 3, 50, 50), np.uint8)
    data = Dataset.from_arrays(images, np.arange(200) % 2)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        export(Table1Net((3, 50, 50), 2).eval(), data, folder, cut=4, method="top", m=16, name="edge")
        found = {}
        for name, program, more in (("edge", EDGE, [f"{folder}/edge"]), ("torch", TORCH, [])):
            runs = [
                subprocess.run([sys.executable, "-c", program, *more], capture_output=True, text=True, check=True)
                for _ in range(STARTS)
            ]
            numbers = [[float(number) for number in run.stdout.split()] for run in runs]
            found[name] = {"seconds": statistics.median(n[0] for n in numbers),
                           "peak_mib": statistics.median(n[1] for n in numbers),
                           "mib": statistics.median(n[2] for n in numbers)}  # fmt: skip
        found["edge"]["bundle_bytes"] = sum(path.stat().st_size for path in Path(folder, "edge").iterdir())
    packages = {
        "edge": ("numpy", "onnxruntime", "pillow", "pydantic", "httpx", "typer", "rich"), "torch": ("torch",)
    }  # fmt: skip
    for name, wanted in packages.items():
        found[name]["installed_mib"] = sum(installed_bytes(package) for package in wanted) / 2**20
    return found


def installed_bytes(package: str, seen: set[str] | None = None) -> int:
    """Bytes on disk of a package and all that it requires without extras."""
    import re
    from importlib.metadata import PackageNotFoundError, distribution

    seen = set() if seen is None else seen
    key = re.sub(r"[-_.]+", "-", package).lower()
    if key in seen:
        return 0
    seen.add(key)
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return 0
    own = sum(path.stat().st_size for file in found.files or () if (path := Path(str(file.locate()))).is_file())
    needed = [requirement for requirement in found.requires or () if "extra ==" not in requirement]
    names = [re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in needed]
    return own + sum(installed_bytes(name[0], seen) for name in names if name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Edge time, bytes and footprint.")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    times: list[Row] = []
    for data, cut, m in ((data, cut, m) for data in INPUTS for cut, kept in CUTS.items() for m in kept):
        times += timed(data, cut, m)
        keep(out, {"times": times})
    result = {
        "times": times, "bytes": [row for data in INPUTS for row in sizes(data)], "footprint": footprint(),
        "versions": versions(), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }  # fmt: skip
    print(json.dumps({"bytes": result["bytes"], "footprint": result["footprint"]}, indent=1))
    finish(out, result)


if __name__ == "__main__":
    main()
