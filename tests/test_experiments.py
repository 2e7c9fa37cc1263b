"""Experiments: rows that are kept, sweeps that are killed and go on, files that are left alone, pages from rows."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import splitveil as sv
from splitveil import cli
from splitveil.data import load_data
from splitveil.errors import DataError, ExperimentError
from splitveil.experiments import EXPERIMENTS, Place, Settings, ablation, reproduce, reproduction, weights
from splitveil.experiments.cells import Report, Result, Row, compute_row, read_row, read_rows, row_path, slug, write_row
from splitveil.experiments.plots import ablation_plot
from splitveil.experiments.sweep import sweep
from splitveil.experiments.tables import ablation_table, over_cuts, summary


@dataclass(frozen=True)
class Toy:
    """A cell that does what it is told."""

    number: int
    does: str = "count"

    @property
    def label(self) -> str:
        return f"toy-{self.number}"


def compute(cell: Toy, place: Place, report: Report) -> Result:
    """Runs in a process of its own; leaves its id behind, and may wait for a file."""
    place.runs.mkdir(parents=True, exist_ok=True)
    (place.runs / f"{cell.label}.{os.getpid()}").touch()
    report(0.5, "half done")
    if cell.does == "mistake":
        raise DataError("there are no toys here; buy some")
    if cell.does == "fault":
        raise ZeroDivisionError("toys divided by none")
    if cell.does == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while cell.does == "wait" and not (place.runs / "go").exists():
        time.sleep(0.02)
    return Result("digest", {"square": cell.number**2}, {})


def run(cells: Sequence[Toy], folder: Path, **options: Any) -> Any:
    return sweep("toys", compute, cells, folder / "rows", Place(folder / "runs"), **options)


def started(folder: Path) -> list[str]:
    """Labels of the cells whose computation began, in the order of their names."""
    return sorted(path.stem for path in (folder / "runs").glob("toy-*.*"))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def until(true: Callable[[], object]) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.02)
    pytest.fail("it never came")


def test_every_cell_becomes_a_row_once(tmp_path: Path) -> None:
    cells, seen = [Toy(2), Toy(3)], list[tuple[int, int, str]]()
    assert run(cells, tmp_path, progress=lambda *state: seen.append(state)) == []
    rows, complaints = read_rows(tmp_path / "rows", "toys")
    assert complaints == []
    assert [rows[slug(cell)].numbers for cell in cells] == [{"square": 4}, {"square": 9}]
    assert rows[slug(cells[0])].config == {"number": 2, "does": "count"}
    assert rows[slug(cells[0])].versions["torch"]
    assert (seen[0], seen[-1][:2]) == ((0, 200, "2 cells to compute"), (200, 200))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert any(text == "toy-3: half done" for _, _, text in seen)
    before, cells = contents(tmp_path / "rows"), [*cells, Toy(4)]
    assert run(cells, tmp_path) == []
    after = contents(tmp_path / "rows")
    assert started(tmp_path) == ["toy-2", "toy-3", "toy-4"]
    assert {name: after[name] for name in before} == before
    assert len(after) == 3


def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    cells = [Toy(1), Toy(2, "wait"), Toy(3)]
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_experiments import Toy, run
if __name__ == "__main__":
    run({cells!r}, Path({str(tmp_path)!r}), jobs=1)
"""
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen([sys.executable, tmp_path / "program.py"])
    until(lambda: started(tmp_path) == ["toy-1", "toy-2"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    (waiting,) = (tmp_path / "runs").glob("toy-2.*")
    until(lambda: not Path(f"/proc/{waiting.suffix[1:]}").exists())  # else two would train in one folder
    finished = contents(tmp_path / "rows")
    assert set(finished) == {row_path(tmp_path, cells[0]).name}
    (tmp_path / "runs" / "go").touch()
    assert run(cells, tmp_path) == []
    assert finished.items() <= contents(tmp_path / "rows").items()
    place = Place(tmp_path / "runs")
    for cell in cells:
        there = read_row(row_path(tmp_path / "rows", cell), "toys")
        assert there == compute_row("toys", compute, cell, place, lambda *_: None)


def test_a_cell_that_fails_lets_the_others_finish(tmp_path: Path) -> None:
    cells = [Toy(1, "mistake"), Toy(2, "fault"), Toy(3, "die"), Toy(4)]
    failures = {failure.cell: failure for failure in run(cells, tmp_path)}
    assert set(failures) == {slug(cell) for cell in cells[:3]}
    mistake, fault, death = (failures[slug(cell)] for cell in cells[:3])
    assert (mistake.why, mistake.mistake) == ("there are no toys here; buy some", True)
    assert "ZeroDivisionError: toys divided by none" in fault.why
    assert not fault.mistake
    assert "died" in death.why
    assert list(read_rows(tmp_path / "rows", "toys")[0]) == [slug(cells[3])]


def test_jobs_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="at least 1, not 0"):
        run([Toy(1)], tmp_path, jobs=0)


def toy_row(cell: Toy, experiment: str = "toys") -> Row:
    return compute_row(experiment, lambda *_: Result("digest", {}, {}), cell, Place(Path()), lambda *_: None)


def test_what_is_no_row_is_named_and_left_alone(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    write_row(row_path(rows, Toy(1)), toy_row(Toy(1)))
    write_row(row_path(rows, Toy(2)), toy_row(Toy(2), "others"))
    write_row(row_path(rows, Toy(3)), toy_row(Toy(4)))
    row_path(rows, Toy(5)).write_text('{"schema_version": 1')
    (rows / "notes.txt").write_text("mine")
    (rows / ".toy-9.json.abc").write_text("left by an interrupted write")
    before = contents(rows)
    found, complaints = read_rows(rows, "toys")
    assert list(found) == [slug(Toy(1))]
    for cell, word in ((Toy(2), "'others'"), (Toy(3), "config"), (Toy(5), "damaged")):
        assert any(slug(cell) in sentence and word in sentence for sentence in complaints)
    assert any("notes.txt" in sentence for sentence in complaints)
    assert len(complaints) == 4
    assert run([Toy(number) for number in (1, 2, 3, 5)], tmp_path) == []
    assert contents(rows) == before
    with pytest.raises(ExperimentError, match="left alone"):
        write_row(row_path(rows, Toy(5)), toy_row(Toy(5)))


# The ablation.


def test_the_most_important_cells_come_first() -> None:
    cells = ablation.cells(Settings())
    assert [cell.label for cell in cells[:6]] == [
        "utkface-plain-0", "utkface-removal-0", "utkface-decov-0", "utkface-variational-0", "utkface-all-0",
        "celeba-plain-0",
    ]  # fmt: skip
    assert [cell.label for cell in cells[15:18]] == ["utkface-plain-1", "utkface-all-1", "celeba-plain-1"]
    assert len(cells) == len(set(map(slug, cells))) == 27
    assert {cell.epochs for cell in cells} == {20}
    paper = sv.Recipe.paper()
    by_label = {cell.label: cell.recipe for cell in cells}
    assert by_label["celeba-plain-1"] == sv.Recipe(epochs=20, seed=1)
    assert by_label["celeba-decov-0"] == sv.Recipe(epochs=20, decov=paper.decov)
    assert by_label["celeba-all-2"] == replace(paper, epochs=20, seed=2)
    some = ablation.cells(Settings(data=("qmnist", "qmnist"), epochs=3, precision="bfloat16"))
    assert {(cell.data, cell.epochs, cell.precision, cell.hidden) for cell in some} == {
        ("qmnist", 3, "bfloat16", "writer")
    }
    assert len(some) == 9


def test_an_unknown_data_set_is_named() -> None:
    for experiment in EXPERIMENTS.values():
        with pytest.raises(ExperimentError, match="'mnist'"):
            experiment.cells(Settings(data=("mnist",)))
    with pytest.raises(ExperimentError, match=r"'figure'.*ablation, weights"):
        reproduction.find("figure")


def estimate(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def ablation_row(cell: ablation.AblationCell, shift: float = 0.0) -> Row:
    """A row with made-up numbers: accuracy 0.9 − 0.1/m' + shift, two points less at cut 3 by the dense operator."""
    kept = [
        {"cut": cut, "operator": operator, "m": m, **{
            part: estimate(0.9 - 0.1 / m + shift - (0.02 if cut == 3 and operator == "dense" else 0))
            for part in ("val", "test")
        }}
        for cut in cell.cuts for operator in (("patch", "dense") if cut < 4 else ("dense",)) for m in cell.kept
    ]  # fmt: skip
    score = {"best": "linear", **{name: estimate(0.5) for name in ("accuracy", "balanced", "auc", "bits")}}
    attack = {
        "cut": 4, "operator": "dense", "hidden": cell.hidden, "prior": estimate(0.4), "label": score, "logits": score,
        "raw": score, "kept": [{"m": m, "attack": estimate(0.6)} for m in cell.kept],
    }  # fmt: skip
    both = {part: estimate(0.95 + shift) for part in ("val", "test")}
    numbers = {"undefended": both, "kept": kept, "history": [], "attack": attack}
    return compute_row("ablation", lambda *_: Result("d", numbers, {}), cell, Place(Path()), lambda *_: None)


def test_several_seeds_give_mean_and_range() -> None:
    assert summary([estimate(0.5)]) == estimate(0.5)
    found = summary([estimate(0.5), estimate(0.6), estimate(0.7)])
    assert (found["low"], found["high"]) == (0.5, 0.7)
    assert found["value"] == pytest.approx(0.6)


def test_the_mean_over_cuts_has_one_operator_per_cut() -> None:
    row = ablation_row(ablation.cells(Settings(quick=True))[0])
    assert row.config["cuts"] == (3, 4)
    assert over_cuts(row, 2) == pytest.approx(0.85)
    assert over_cuts(row, 2, "dense") == pytest.approx(0.84)


def test_table_and_plot_come_from_rows_alone() -> None:
    cells = ablation.cells(Settings(data=("utkface", "celeba")))
    rows = [ablation_row(cell, 0.01 * cell.seed) for cell in cells]
    page = ablation_table(rows)
    lines = page.splitlines()
    assert "## utkface" in lines
    # m' = 32, 8, 4, 2, 1 of made-up accuracies: three seeds give mean and range, one its interval.
    assert (
        "| plain | 3 | 96.0 [95.0, 97.0] | 90.7 [89.7, 91.7] | 89.8 [88.8, 90.8] | 88.5 [87.5, 89.5] "
        "| 86.0 [85.0, 87.0] | 81.0 [80.0, 82.0] |"
    ) in lines
    assert any(line.startswith("| decov | 1 | 95.0 [93.0, 97.0] | 89.7 [87.7, 91.7] |") for line in lines)
    assert any(line.startswith("| all | 3 | 40.0 | 50.0 | 50.0 | 50.0 | 60.0 |") for line in lines)
    assert len([line for line in lines if re.match(r"\| (plain|removal|decov|variational|all) ", line)]) == 2 * 20
    figure = ablation_plot(rows)
    assert len(figure.axes) == 4
    attack = figure.axes[2]
    assert {"prior (plain)", "label (plain)", "logits (plain)", "raw (plain)"} <= set(
        attack.get_legend_handles_labels()[1]
    )
    assert ablation_table(rows[:1])
    ablation_plot(rows[:1])


# The command.


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quick ablation has run as a command."""
    folder = tmp_path_factory.mktemp("quick")
    done = splitveil(folder, "ablation", "--quick", "--precision", "float32")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 cells" in done.stdout
    assert "200/200" in done.stderr
    return folder


def splitveil(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = ("--runs", str(folder / "runs"))
    return subprocess.run(
        [sys.executable, "-m", "splitveil", "reproduce", *arguments, *places], capture_output=True, text=True
    )


def test_the_quick_ablation_end_to_end(quick: Path) -> None:
    out = quick / "runs" / "quick" / "ablation"
    again = splitveil(quick, "ablation", "--quick", "--precision", "float32", "--json", "--quiet")
    found = json.loads(again.stdout)
    assert (again.returncode, again.stderr) == (0, "")
    assert (found["wanted"], found["there"], found["failed"]) == (2, 2, {})
    assert found["files"] == [str(out / "table.md"), str(out / "plot.svg")]
    assert "## digit-pairs" in (out / "table.md").read_text()
    assert (out / "plot.svg").read_text().startswith("<?xml")
    plain, both = found["rows"]
    assert (plain["config"]["variant"], both["config"]["variant"]) == ("plain", "all")
    numbers = plain["numbers"]
    assert numbers["undefended"]["test"]["value"] > 0.9
    assert [(one["cut"], one["operator"], one["m"]) for one in numbers["kept"]] == [
        (3, "patch", 8), (3, "patch", 2), (3, "dense", 8), (3, "dense", 2), (4, "dense", 8), (4, "dense", 2),
    ]  # fmt: skip
    attack = numbers["attack"]
    assert attack["raw"]["accuracy"]["value"] > attack["kept"][0]["attack"]["value"]
    # One accuracy, two ways: by answers on features, and by the measurement's frames.
    same = [(numbers["kept"][4 + i]["test"], attack["kept"][i]["target"]) for i in range(2)]
    assert all(a == pytest.approx(b) for a, b in same)
    assert plain["data"] == load_data("digit-pairs").digest
    assert len(numbers["history"]) == 2


def test_a_damaged_row_is_named_and_nothing_else_is_lost(quick: Path, tmp_path: Path) -> None:
    there = quick / "runs" / "quick" / "ablation" / "rows"
    (tmp_path / "rows").mkdir()
    first, second = sorted(there.iterdir())
    (tmp_path / "rows" / first.name).write_bytes(first.read_bytes())
    (tmp_path / "rows" / second.name).write_bytes(second.read_bytes()[:-20])
    (tmp_path / "rows" / "mine.csv").write_text("1")
    before = contents(tmp_path / "rows")
    done = splitveil(quick, "ablation", "--quick", "--precision", "float32", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "1 of 2 cells" in done.stdout
    assert second.name in done.stderr
    assert "mine.csv" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tmp_path / "rows") == before


def test_hidden_attributes_serve_the_attack_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = load_data("digit-pairs")
    monkeypatch.setattr(weights, "load_data", lambda *_, **__: data.without_hidden())
    cell = weights.cells(Settings(quick=True, epochs=1))[0]
    result = weights.compute(cell, Place(tmp_path), lambda *_: None)
    assert "test" not in json.dumps(result.numbers)
    assert set(result.numbers["undefended"]) == {"val"}

    monkeypatch.setattr(ablation, "load_data", lambda *_, **__: data.without_hidden())
    monkeypatch.setattr(ablation, "_attacked", lambda *_: {"none": 0})
    plain = ablation.cells(Settings(quick=True, epochs=1))[0]
    found = ablation.compute(plain, Place(tmp_path), lambda *_: None)
    assert found.numbers["kept"]


def test_experiments_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["splitveil", "reproduce", "--json"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    assert set(json.loads(capsys.readouterr().out)["experiments"]) == {"ablation", "weights"}


def test_a_restricted_call_shows_what_was_computed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduction, "sweep", lambda *_, **__: [])
    for cell in ablation.cells(Settings()):
        if cell.seed == 0:
            write_row(row_path(tmp_path / "rows", cell), ablation_row(cell))
    done = reproduce("ablation", Settings(data=("qmnist",)), tmp_path, Place(tmp_path))
    assert (done.wanted, done.there, len(done.rows)) == (9, 5, 15)
    assert "## utkface" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "plot.svg").exists()
