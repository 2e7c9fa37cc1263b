"""Target and attack accuracy at one cut: raw, distortion-free, and the top components; plain training.

    python benchmarks/leakage.py utkface --hidden race --out benchmarks/results/leakage-utkface.json

The run lies in runs/leakage-NAME and is trained only once. Rows are written as they land; a row that the file already
holds for the same settings is kept.
"""

import argparse
import json
import time
from pathlib import Path

from splitveil.data import load_data
from splitveil.files import read_json, write_json
from splitveil.linear import factorise
from splitveil.measure import leakage, reference_lines
from splitveil.obfuscate import DistortionFree, Identity, TopComponents
from splitveil.runs import Run, train_run, versions
from splitveil.split import SplitModel
from splitveil.train import Recipe, predict

KEPT = (32, 16, 8, 4, 2, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--hidden", required=True)
    parser.add_argument("--cut", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    data = load_data(options.data)
    folder = Path(f"runs/leakage-{options.data}-{options.epochs}-{options.seed}")
    start = time.perf_counter()
    recipe = Recipe(epochs=options.epochs, seed=options.seed)
    train_run(folder, data, recipe, source=options.data, progress=lambda *state: print(*state, flush=True))
    print(f"trained in {time.perf_counter() - start:.0f} s")
    split = SplitModel(Run(folder).model(), at=options.cut)
    shape = tuple(predict(split.client, data.test).shape[1:])
    factors = factorise(split.server_layer, feature_shape=shape)
    settings = {
        "data": options.data, "digest": data.digest, "hidden": options.hidden,
        "cut": options.cut, "operator": factors.operator,
        "recipe": recipe.__dict__, "attack_seed": options.seed, "versions": versions(),
    }  # fmt: skip
    rows = _kept_rows(options.out, settings)
    veils = {"raw": Identity(shape), "distortion-free": DistortionFree(factors)}
    veils |= {f"m'={m}": TopComponents(factors, m=m) for m in KEPT if m <= len(factors.s)}
    missing = [name for name in veils if name not in rows]
    if missing:
        references = reference_lines(split, data, hidden=options.hidden, seed=options.seed)
    for name in missing:
        start = time.perf_counter()
        found = leakage(split, veils[name], data, hidden=options.hidden, seed=options.seed, references=references)
        rows[name] = found.as_row()
        write_json(options.out, {"settings": settings, "rows": rows})
        print(
            f"{name}: target {found.target:.1%}, attack {found.attack:.1%} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    _print(rows)


def _kept_rows(path: Path, settings: dict) -> dict:
    if not path.exists():
        return {}
    content = read_json(path)
    if content["settings"] != json.loads(json.dumps(settings)):
        raise SystemExit(f"{path} holds rows of other settings; name another file or remove it")
    return content["rows"]


def _print(rows: dict) -> None:
    print("| sent | target | attack | over logits | bytes | strongest |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for name, row in rows.items():
        cells = [_percent(row[key]) for key in ("target", "attack", "excess")]
        print(f"| {name} | {' | '.join(cells)} | {row['message_bytes']:.0f} | {row['best']} |")
    lines = ", ".join(f"{key} {_percent(row[key])}" for key in ("prior", "label", "logits", "raw", "undefended"))
    print(f"\nReference lines: {lines}.")


def _percent(estimate: dict) -> str:
    return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


if __name__ == "__main__":
    main()
