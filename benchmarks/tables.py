"""The README's tables, docs/results.md from the rows of `splitveil reproduce`, the example's table in
docs/own-model.md, and the speeds in docs/edge.md and docs/deploying.md, made from benchmarks/results.

python benchmarks/tables.py            # writes them
python benchmarks/tables.py --check    # says whether they are up to date
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from splitveil.experiments.ablation import DATA, variants_of
from splitveil.experiments.cells import Row, read_rows
from splitveil.experiments.reproduction import PAPER, rows_of, show
from splitveil.experiments.results import summary_page
from splitveil.experiments.tables import Estimate, at_cut, attack_at, markdown, percent, summary
from splitveil.experiments.training import KEPT, Settings

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- results: made by benchmarks/tables.py from results/ablation -->", "<!-- end of results -->"
SPEED, END_OF_SPEED = "<!-- speed: made by benchmarks/tables.py from benchmarks/results -->", "<!-- end of speed -->"
OWN, END_OF_OWN = "<!-- own model: made by benchmarks/tables.py from results/own-model -->", "<!-- end of own model -->"
SETTINGS = Settings(precision="bfloat16")  # of the published run
SHOWN = (*PAPER, "frontier", "tuning")
TITLES = {
    "utkface": "**UTKFace**: target gender, hidden race (5 values)",
    "celeba": "**CelebA**: target smiling, hidden gender",
    "qmnist": "**QMNIST**: target digit, hidden writer (100 values)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for name in () if check else SHOWN:
        show(name, SETTINGS, ROOT / "results", ROOT / "runs")
    made_of = {
        "README.md": readme, "docs/results.md": results, "docs/own-model.md": own_model, "docs/edge.md": edge,
        "docs/deploying.md": deploying,
    }  # fmt: skip
    for path, made in ((ROOT / name, make()) for name, make in made_of.items()):
        if not check:
            path.write_text(made, encoding="utf-8")
        elif made != path.read_text(encoding="utf-8"):
            sys.exit(f"{path.name} does not hold what the rows in results say: run python benchmarks/tables.py")


def readme() -> str:
    found, complaints = read_rows(ROOT / "results/ablation/rows", "ablation")
    if complaints:
        sys.exit("\n".join(complaints))
    tables = "\n\n".join(table(list(found.values()), name) for name in DATA)
    return within(own_model("README.md"), START, END, tables)


def own_model(name: str = "docs/own-model.md") -> str:
    """What the example with a residual network measured."""
    found = json.loads((ROOT / "results/own-model/report.json").read_text(encoding="utf-8"))
    lines = [
        [by.replace("(", "(`").replace(")", "`)"), shown([one]), f"{one['edge']:,}",
         "–" if one["after_cut"] is None else f"{one['after_cut']:,}"]
        for by, one in found.items()
    ]  # fmt: skip
    count = next(iter(found.values()))["n"]
    heads = ["answer by", f"right, % of {count:,} test images", "multiply-accumulates on the edge", "after the cut"]
    text = markdown(heads, lines)
    return between(name, OWN, END_OF_OWN, text)


def between(name: str, start: str, end: str, text: str) -> str:
    """A page with the text between its two marks."""
    return within((ROOT / name).read_text(encoding="utf-8"), start, end, text)


def within(page: str, start: str, end: str, text: str) -> str:
    before, rest = page.split(start)
    return f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}"


def measured(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))
    return found


def edge() -> str:
    """Time, bytes and footprint of the edge."""
    found = measured("edge.json")
    heads = [
        "data",
        "cut",
        "m'",
        "batch",
        "without, ms",
        "encoder adds, ms",
        "beside m'/m",
        "encoder alone beside m'/m",
    ]
    times = [
        [row["data"], row["cut"], row["m"], row["batch"], f"{row['without_ms']:.3f}", f"{row['added_ms']:.4f}",
         ratio(row["ratio"]), ratio(row["ratio_alone"])]
        for row in found["times"]
    ]  # fmt: skip
    sizes = [
        [row["data"], row["cut"], row["m"], row["float32_bytes"], row["int8_bytes"], row["int4_bytes"],
         row["raw_bytes"], f"{row['jpeg_bytes']:.0f}"]
        for row in found["bytes"]
    ]  # fmt: skip
    needs = [
        [name, f"{it['seconds']:.2f}", f"{it['mib']:.0f}", f"{it['peak_mib']:.0f}", f"{it['installed_mib']:.0f}"]
        for name, it in found["footprint"].items()
    ]
    text = "\n\n".join((
        f"One thread, medians; ratios with 95 % intervals. {found['machine']}.", markdown(heads, cells(times)),
        "Bytes of a query:",
        markdown(["data", "cut", "m'", "float32", "int8", "int4", "raw feature", "JPEG of the input"], cells(sizes)),
        "From the first import to the first frame, in a fresh interpreter:",
        markdown(["", "seconds", "memory, MiB", "at most, MiB", "installed, MiB"], needs),
    ))  # fmt: skip
    return between("docs/edge.md", SPEED, END_OF_SPEED, text)


def cells(rows: list[list[Any]]) -> list[list[str]]:
    return [[str(cell) for cell in row] for row in rows]


def ratio(it: dict[str, float]) -> str:
    return f"{it['value']:.2f} [{it['low']:.2f}, {it['high']:.2f}]"


def deploying() -> str:
    """Requests a second of the servers, and bytes on the socket."""
    found = measured("serving.json")
    servers = ("splitveil", "kserve", "mlserver", "Triton")
    rows = []
    for mode, by_server in found["medians"].items():
        rates = [f"{it['requests_per_second']:,.0f} ({it['p99_ms']:.1f})" if (it := by_server.get(server)) else "fails"
                 for server in servers]  # fmt: skip
        against = [it["median"] for key in ("to_best_python", "to_triton") if (it := found["ratios"][mode].get(key))]
        rows.append([mode, *rates, *(f"{value:.2f}" for value in against)])
    heads = ["clients", *servers, "ours / best Python server", "ours / Triton"]
    sent = [
        [row["what"], row["payload_bytes"] or "", f"{row['sent_bytes']:.0f}",
         f"{row['received_bytes']:.0f}" if "received_bytes" in row else ""]
        for row in found["bytes"]
    ]  # fmt: skip
    text = "\n\n".join((
        "Requests a second, and in brackets the 99th percentile of the latency in ms; medians of "
        f"{found['settings']['rounds']} rounds in one run, {found['machine']}, which the client shares.",
        markdown(heads, cells(rows)), "Bytes of one query on the socket, without TLS:",
        markdown(["what", "payload", "sent", "received"], cells(sent)),
    ))  # fmt: skip
    return between("docs/deploying.md", SPEED, END_OF_SPEED, text)


def results() -> str:
    return summary_page({name: rows_of(name, SETTINGS, ROOT / "results") for name in (*PAPER, "frontier")})


def table(rows: list[Row], data: str) -> str:
    by_variant = variants_of(rows, data)
    plain, paper = by_variant["plain"], by_variant["all"]
    lines = ", ".join(
        f"{name} {shown([one(row.numbers['attack'], name) for row in plain])}" for name in ("prior", "label", "logits")
    )
    heads = ["sent", "bytes", "plain: target", "plain: attack", "paper: target", "paper: attack"]
    body = [["the feature", "", *(cell for its in (plain, paper) for cell in (undefended(its), raw(its)))]]
    for m in KEPT:
        sizes = {kept["message_bytes"] for row in plain for kept in row.numbers["attack"]["kept"] if kept["m"] == m}
        cells = [shown([of(row, m) for row in its]) for its in (plain, paper) for of in (target, attack_at)]
        body.append([f"m'={m}", ", ".join(f"{size:.0f}" for size in sizes), *cells])
    seeds = f"{len(plain)} seeds" if len(plain) == len(paper) else f"{len(plain)} and {len(paper)} seeds"
    return f"{TITLES[data]}; {seeds}. Attack on the reference lines (plain): {lines}.\n\n{markdown(heads, body)}"


def undefended(rows: list[Row]) -> str:
    return shown([row.numbers["undefended"]["test"] for row in rows])


def raw(rows: list[Row]) -> str:
    return shown([one(row.numbers["attack"], "raw") for row in rows])


def target(row: Row, m: int) -> Estimate | None:
    return at_cut(row, m, "test")


def one(attack: dict[str, Any], line: str) -> Estimate:
    return attack[line] if line == "prior" else attack[line]["accuracy"]


def shown(estimates: list[Estimate | None]) -> str:
    """One seed: the estimate and its interval over the test part. Several: their mean, the smallest and the largest."""
    found = summary([estimate for estimate in estimates if estimate])
    if found["low"] == found["high"]:
        return percent(found["value"])
    return f"{percent(found['value'])} [{percent(found['low'])}, {percent(found['high'])}]"


if __name__ == "__main__":
    main()
