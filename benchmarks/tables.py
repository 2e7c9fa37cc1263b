"""The README's tables, made from the rows in benchmarks/results.

python benchmarks/tables.py            # writes them into the README
python benchmarks/tables.py --check    # says whether the README holds them
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- results: made by benchmarks/tables.py from benchmarks/results -->", "<!-- end of results -->"
TITLES = {
    "leakage-utkface.json": "**UTKFace**: target gender, hidden race (5 values)",
    "leakage-qmnist.json": "**QMNIST**: target digit, hidden writer (100 values)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    tables = "\n\n".join(table(name, title) for name, title in TITLES.items())
    made = f"{before}{START}\n{tables}\n{END}{after}"
    if not parser.parse_args().check:
        readme.write_text(made, encoding="utf-8")
    elif made != text:
        sys.exit("README.md does not hold the tables of benchmarks/results: run python benchmarks/tables.py")


def table(name: str, title: str) -> str:
    rows = json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))["rows"]
    rows = dict(sorted(rows.items(), key=lambda item: -item[1]["message_bytes"]))
    first = rows["raw"]
    lines = ", ".join(f"{key} {percent(first[key])}" for key in ("prior", "label", "logits"))
    head = ["| sent | bytes | target | attack | over logits |", "| --- | ---: | ---: | ---: | ---: |"]
    body = [
        f"| {label} | {row['message_bytes']:.0f} | "
        + " | ".join(percent(row[key]) for key in ("target", "attack", "excess"))
        + " |"
        for label, row in rows.items()
    ]
    return "\n".join([f"{title}. Attack on the reference lines: {lines}.", "", *head, *body])


def percent(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


if __name__ == "__main__":
    main()
