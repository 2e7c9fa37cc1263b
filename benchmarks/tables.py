"""The README's tables and docs/results.md, made from the rows of `splitveil reproduce` in results.

python benchmarks/tables.py            # writes them
python benchmarks/tables.py --check    # says whether they are up to date
"""

import argparse
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
SETTINGS = Settings(precision="bfloat16")  # of the published run
TITLES = {
    "utkface": "**UTKFace**: target gender, hidden race (5 values)",
    "celeba": "**CelebA**: target smiling, hidden gender",
    "qmnist": "**QMNIST**: target digit, hidden writer (100 values)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for name in () if check else PAPER:
        show(name, SETTINGS, ROOT / "results", ROOT / "runs")
    for path, made in ((ROOT / "README.md", readme()), (ROOT / "docs" / "results.md", results())):
        if not check:
            path.write_text(made, encoding="utf-8")
        elif made != path.read_text(encoding="utf-8"):
            sys.exit(f"{path.name} does not hold what the rows in results say: run python benchmarks/tables.py")


def readme() -> str:
    before, rest = (ROOT / "README.md").read_text(encoding="utf-8").split(START)
    _, after = rest.split(END)
    found, complaints = read_rows(ROOT / "results/ablation/rows", "ablation")
    if complaints:
        sys.exit("\n".join(complaints))
    tables = "\n\n".join(table(list(found.values()), name) for name in DATA)
    return f"{before}{START}\n{tables}\n{END}{after}"


def results() -> str:
    return summary_page({name: rows_of(name, SETTINGS, ROOT / "results") for name in PAPER})


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
