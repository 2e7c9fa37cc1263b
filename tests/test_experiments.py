"""Experiments: rows that are kept, sweeps that are killed and go on, files that are left alone, pages from rows."""

import itertools
import json
import multiprocessing
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
import torch
from matplotlib.axes import Axes
from torch import Tensor

import splitveil as sv
from splitveil import cli, experiments, measure
from splitveil.attack import ATTACKS, Guess, View
from splitveil.data import load_data
from splitveil.errors import DataError, ExperimentError, RunError
from splitveil.experiments import EXPERIMENTS, Place, Settings, ablation, reproduce, reproduction, training, weights
from splitveil.experiments.accuracy import from_components, undefended
from splitveil.experiments.cells import Report, Result, Row, compute_row, read_row, read_rows, row_path, slug, write_row
from splitveil.experiments.plots import ablation_plot
from splitveil.experiments.sweep import Failure, sweep
from splitveil.experiments.tables import ablation_table, over_cuts, summary
from splitveil.runs import Run, train_run
from splitveil.train import accuracy, predict

sweeps = sys.modules[sweep.__module__]  # the function hides its module's name


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
    if cell.does in ("die", "interrupt"):
        os.kill(os.getpid(), signal.SIGKILL if cell.does == "die" else signal.SIGINT)
    while cell.does == "wait" and not (place.runs / "go").exists():
        time.sleep(0.02)
    return Result("digest", {"square": cell.number**2}, {})


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes forked from one that has imported everything: seconds sooner than fresh interpreters."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "splitveil.experiments"])
    monkeypatch.setattr(sweeps.multiprocessing, "get_context", lambda _: context)


def run(cells: Sequence[Toy], folder: Path, **options: Any) -> Any:
    return sweep("toys", compute, cells, folder / "rows", Place(folder / "runs", device="toy"), **options)


def started(folder: Path) -> list[str]:
    """Labels of the cells whose computation began, in the order of their names."""
    return sorted(path.stem for path in (folder / "runs").glob("toy-*.*"))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def alive(folder: Path, cell: Toy) -> bool:
    """Whether the process of a cell that has begun is there."""
    (mark,) = (folder / "runs").glob(f"{cell.label}.*")
    return Path(f"/proc/{mark.suffix[1:]}").exists()


def until(true: Callable[[], object]) -> None:
    for _ in range(15_000):  # patient, for a busy machine
        if true():
            return
        time.sleep(0.02)
    pytest.fail("it never came")


@pytest.mark.usefixtures("quick_processes")
def test_every_cell_becomes_a_row_once(tmp_path: Path) -> None:
    cells, seen = [Toy(2), Toy(3)], list[tuple[int, int, str]]()
    assert run(cells, tmp_path, progress=lambda *state: seen.append(state)) == []
    rows, complaints = read_rows(tmp_path / "rows", "toys")
    assert complaints == []
    assert [rows[slug(cell)].numbers for cell in cells] == [{"square": 4}, {"square": 9}]
    assert rows[slug(cells[0])].config == {"number": 2, "does": "count"}
    assert rows[slug(cells[0])].versions["torch"]
    assert (rows[slug(cells[0])].data, rows[slug(cells[0])].device) == ("digest", "toy")
    assert (seen[0], seen[-1][:2]) == ((0, 200, "2 cells to compute"), (200, 200))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[1][0] == 50
    assert any(text == "toy-3: half done" for _, _, text in seen)
    before, cells = contents(tmp_path / "rows"), [*cells, Toy(4)]
    assert run(cells, tmp_path) == []
    after = contents(tmp_path / "rows")
    assert started(tmp_path) == ["toy-2", "toy-3", "toy-4"]
    assert {name: after[name] for name in before} == before
    assert len(after) == 3


@pytest.mark.usefixtures("quick_processes")
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
    until(lambda: not alive(tmp_path, cells[1]))  # else two would train in one folder
    finished = contents(tmp_path / "rows")
    assert set(finished) == {row_path(tmp_path, cells[0]).name}
    (tmp_path / "runs" / "go").touch()
    assert run(cells, tmp_path) == []
    assert finished.items() <= contents(tmp_path / "rows").items()
    place = Place(tmp_path / "runs", device="toy")
    for cell in cells:
        there = read_row(row_path(tmp_path / "rows", cell), "toys")
        assert there == compute_row("toys", compute, cell, place, lambda *_: None)


@pytest.mark.usefixtures("quick_processes")
def test_a_cell_that_fails_lets_the_others_finish(tmp_path: Path) -> None:
    # Ctrl-C reaches every process; the parent alone is to act on it.
    cells = [Toy(1, "mistake"), Toy(2, "fault"), Toy(3, "die"), Toy(4, "interrupt")]
    failures = {failure.cell: failure for failure in run(cells, tmp_path)}
    assert set(failures) == {slug(cell) for cell in cells[:3]}
    mistake, fault, death = (failures[slug(cell)] for cell in cells[:3])
    assert (mistake.why, mistake.mistake) == ("there are no toys here; buy some", True)
    assert "ZeroDivisionError: toys divided by none" in fault.why
    assert not fault.mistake
    assert "died" in death.why
    assert list(read_rows(tmp_path / "rows", "toys")[0]) == [slug(cells[3])]


@pytest.mark.usefixtures("quick_processes")
def test_an_interrupted_sweep_leaves_no_process_behind(tmp_path: Path) -> None:
    cell = Toy(1, "wait")

    def progress(_done: int, _total: int, text: str) -> None:
        if "half done" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([cell], tmp_path, progress=progress)
    left = alive(tmp_path, cell)
    (tmp_path / "runs" / "go").touch()
    assert not left
    assert not (tmp_path / "rows").exists()


@pytest.mark.usefixtures("quick_processes")
@pytest.mark.parametrize(("jobs", "cores", "expected"), [(1, 3, 1), (3, 1, 3), (None, 2, 2)])
def test_jobs_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int | None, cores: int, expected: int
) -> None:
    with pytest.raises(ExperimentError, match="at least 1, not 0"):
        run([Toy(1)], tmp_path, jobs=0)
    start, began, log = sweeps._start, list[str](), list[int]()

    def logged(*arguments: Any) -> Any:
        began.append(arguments[2].label)
        log.append(1)
        return start(*arguments)

    def progress(_done: int, _total: int, text: str) -> None:
        if text.endswith(": done"):
            log.append(-1)

    monkeypatch.setattr(sweeps, "_start", logged)
    monkeypatch.setattr(sweeps, "_cores", lambda: cores)
    assert run([Toy(number) for number in range(4)], tmp_path, jobs=jobs, progress=progress) == []
    assert began == ["toy-0", "toy-1", "toy-2", "toy-3"]
    assert max(itertools.accumulate(log)) == expected


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
    assert [cell.label for cell in ablation.cells(Settings(quick=True))] == ["digit-pairs-plain-0", "digit-pairs-all-0"]
    small = ablation.cells(Settings(data=("qmnist",), quick=True))
    assert [(cell.label, cell.epochs) for cell in small] == [("qmnist-plain-0", 2), ("qmnist-all-0", 2)]


def test_an_unknown_data_set_is_named() -> None:
    for experiment in EXPERIMENTS.values():
        with pytest.raises(ExperimentError, match="'mnist'"):
            experiment.cells(Settings(data=("mnist",)))
    with pytest.raises(ExperimentError, match=r"'figure'.*ablation, weights"):
        reproduction.find("figure")


def estimate(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def ablation_row(cell: ablation.AblationCell, shift: float = 0.0) -> Row:
    """A row with made-up numbers: accuracy 0.9 − 0.1/m' + shift on test, and what to subtract elsewhere."""
    less = {"val": 0.05, "test": 0.0}
    kept = [
        {"cut": cut, "operator": operator, "m": m, **{
            part: estimate(0.9 - 0.1 / m + shift - less[part] - (0.02 if cut == 3 and operator == "dense" else 0))
            for part in less
        }}
        for cut in cell.cuts for operator in (("patch", "dense") if cut < 4 else ("dense",)) for m in cell.kept
    ]  # fmt: skip
    others = {name: estimate(0.1) for name in ("balanced", "auc", "bits")}
    scores = {name: {"accuracy": estimate(a), **others} for name, a in (("label", 0.45), ("logits", 0.5), ("raw", 0.7))}
    attack = {
        "cut": 4, "operator": "dense", "hidden": cell.hidden, "prior": estimate(0.4), **scores,
        "kept": [{"m": m, "attack": {**estimate(0.6 - 0.1 / m), "high": 0.8}} for m in cell.kept],
    }  # fmt: skip
    both = {part: estimate(0.95 + shift - less[part]) for part in less}
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
    assert over_cuts(row, 2) == pytest.approx(0.80)
    assert over_cuts(row, 2, "dense") == pytest.approx(0.79)


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
    assert "| all | 3 | 40.0 | 45.0 | 50.0 | 70.0 | 59.7 | 58.8 | 57.5 | 55.0 | 50.0 |" in lines
    # A mean over the cuts stands alone with one seed; the dense operator costs two points at one cut of five.
    assert any(line.startswith("| all | patch | 3 | 91.0 [90.0, 92.0] | 85.7 [84.7, 86.7] |") for line in lines)
    assert any(line.startswith("| decov | dense | 1 | 90.0 [88.0, 92.0] | 84.3 | 83.4 |") for line in lines)
    assert len([line for line in lines if re.match(r"\| (plain|removal|decov|variational|all) ", line)]) == 2 * 20
    figure = ablation_plot(rows)
    assert [axes.get_title() for axes in figure.axes] == [
        "utkface: test accuracy, cut 4", "celeba: test accuracy, cut 4", "utkface: attack on race",
        "celeba: attack on Male",
    ]  # fmt: skip
    assert curve(figure.axes[0], "all") == [81.0, 86.0, 88.5, 89.75, 90.69]
    assert curve(figure.axes[1], "plain, undefended")[0] == 96.0
    attack = figure.axes[2]
    assert curve(attack, "removal") == [50.0, 55.0, 57.5, 58.75, 59.69]
    assert [round(y, 2) for y in bar(attack, "removal")] == [48.0, 80.0]
    levels = [curve(attack, f"{name} (plain)")[0] for name in ("prior", "label", "logits", "raw")]
    assert levels == [40.0, 45.0, 50.0, 70.0]
    assert ablation_table(rows[:1])
    ablation_plot(rows[:1])


def curve(axes: Axes, label: str) -> list[float]:
    """The heights of the points behind a label of the legend, from left to right."""
    drawn = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))[label]
    line = drawn.lines[0] if hasattr(drawn, "lines") else drawn
    x, y = line.get_data()
    return [round(float(height), 2) for _, height in sorted(zip(x, y, strict=True))]


def bar(axes: Axes, label: str) -> list[float]:
    """Both ends of the first interval."""
    (container,) = (one for one in axes.containers if one.get_label() == label)
    return [float(y) for _, y in min(container.lines[2][0].get_segments(), key=lambda ends: ends[0][0])]


def test_the_search_for_weights_shows_means_over_the_cuts() -> None:
    cells = weights.cells(Settings())
    assert len(cells) == len(set(map(slug, cells))) == 2 * len(set(weights.TRIPLES))
    assert {(cell.data, cell.epochs, cell.seed) for cell in cells} == {("utkface", 10, 0), ("qmnist", 10, 0)}
    assert {(cell.recipe.removal, cell.recipe.decov, cell.recipe.variational) for cell in cells} == set(weights.TRIPLES)
    kept = [
        {"cut": cut, "operator": "dense", "m": m, "val": estimate(cut / 10 + m / 100)} for cut in (4, 5) for m in (8, 2)
    ]
    rows = [
        compute_row(
            "weights", lambda *_: Result("d", {"undefended": {"val": estimate(0.9)}, "kept": kept}, {}),
            replace(cell, kept=(8, 2)), Place(Path()), lambda *_: None,
        )
        for cell in cells if cell.removal == 0.25
    ]  # fmt: skip
    lines = weights.table(rows).splitlines()
    assert [line for line in lines if line.startswith("## ")] == ["## utkface", "## qmnist"]
    assert lines.count("| 0.25 | 0 | 0 | 90.0 | 53.0 | 47.0 | 50.0 |") == 2


def test_rows_of_two_data_sets_of_one_name_are_not_shown_together(tmp_path: Path) -> None:
    settings, rows = Settings(quick=True, epochs=1), tmp_path / "ablation" / "rows"
    first, second = ablation.cells(settings)
    write_row(row_path(rows, first), ablation_row(first))
    write_row(row_path(rows, second), ablation_row(second).model_copy(update={"data": "other"}))
    with pytest.raises(ExperimentError, match=r"two data sets named 'digit-pairs' \(digests d… and other…\)"):
        reproduce("ablation", settings, tmp_path, Place(tmp_path / "runs"))
    assert not (tmp_path / "ablation" / "table.md").exists()


def test_rows_of_the_other_precision_are_not_overlooked(tmp_path: Path) -> None:
    here, there = (Settings(quick=True, epochs=1, precision=name) for name in ("float32", "bfloat16"))
    assert experiments.overlooked("ablation", here, tmp_path) is None
    for cell in ablation.cells(there):
        write_row(row_path(tmp_path / "ablation" / "rows", cell), ablation_row(cell))
    sentence = experiments.overlooked("ablation", here, tmp_path)
    assert sentence is not None
    assert re.match(r"2 cells of ablation have rows of bfloat16 .*; --precision bfloat16 takes those$", sentence)
    assert experiments.overlooked("ablation", there, tmp_path) is None


def test_a_file_where_a_folder_is_needed_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"as .*file is a file"):
        reproduce("ablation", Settings(quick=True, epochs=1), tmp_path / "file", Place(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


# The command.


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quick ablation has run as a command, where one of its two cells was there before."""
    folder = tmp_path_factory.mktemp("quick")
    plain = ablation.cells(Settings(quick=True, epochs=1))[0]
    there = ablation_row(plain).model_copy(update={"data": load_data("digit-pairs").digest})
    write_row(row_path(folder / "runs" / "quick" / "ablation" / "rows", plain), there)
    program = [sys.executable, "-m", "splitveil", *arguments(folder)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 cells" in done.stdout
    assert "100/100" in done.stderr
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    quick = ["--quick", "--epochs", "1", "--precision", "float32", "--runs", str(folder / "runs")]
    return ["reproduce", "ablation", *quick, *more]


@pytest.fixture
def splitveil(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, ...]]:
    """Calls the entry point in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[Any, ...]:
        monkeypatch.setattr(sys, "argv", ["splitveil", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, *capsys.readouterr()

    return call


def test_the_quick_ablation_end_to_end(quick: Path, splitveil: Callable[..., tuple[Any, ...]]) -> None:
    out = quick / "runs" / "quick" / "ablation"
    code, shown, complaints = splitveil(*arguments(quick, "--json", "--quiet"))
    found = json.loads(shown)
    assert (code, complaints) == (0, "")
    assert (found["wanted"], found["there"], found["failed"]) == (2, 2, {})
    assert found["files"] == [str(out / name) for name in ("table.md", "plot.svg", "page.html")]
    assert "## digit-pairs" in (out / "table.md").read_text()
    assert (out / "plot.svg").read_text().startswith("<?xml")
    plain, both = found["rows"]
    assert (plain["config"]["variant"], both["config"]["variant"]) == ("plain", "all")
    assert plain["data"] == both["data"] == load_data("digit-pairs").digest
    assert not plain["seconds"]  # it was there before
    assert both["seconds"]
    numbers = both["numbers"]
    assert numbers["undefended"]["test"]["value"] > 0.9
    assert len(numbers["history"]) == 1
    attack = numbers["attack"]
    assert attack["raw"]["accuracy"]["value"] > attack["kept"][0]["attack"]["value"]


def test_a_damaged_row_is_named_and_nothing_else_is_lost(
    quick: Path, tmp_path: Path, splitveil: Callable[..., tuple[Any, ...]]
) -> None:
    there = quick / "runs" / "quick" / "ablation" / "rows"
    rows = tmp_path / "ablation" / "rows"
    rows.mkdir(parents=True)
    first, second = sorted(there.iterdir())
    (rows / first.name).write_bytes(first.read_bytes())
    (rows / second.name).write_bytes(second.read_bytes()[:-20])
    (rows / "mine.csv").write_text("1")
    before = contents(rows)
    code, shown, complaints = splitveil(*arguments(quick, "--out", str(tmp_path)))
    assert code == 2
    assert "1 of 2 cells" in shown
    assert second.name in complaints
    assert "mine.csv" in complaints
    assert f"the cell {second.stem} failed" in complaints
    assert contents(rows) == before


@pytest.mark.parametrize(("mistakes", "expected"), [([], 0), ([True, True], 2), ([True, False], 1)])
def test_the_command_passes_on_what_was_asked_and_what_failed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    splitveil: Callable[..., tuple[Any, ...]],
    mistakes: list[bool],
    expected: int,
) -> None:
    asked: list[Any] = []

    def fake(*arguments: Any, jobs: int, **_: Any) -> list[Failure]:
        asked.extend([*arguments, jobs])
        return [Failure(f"cell-{index}", "it broke", mistake) for index, mistake in enumerate(mistakes)]

    monkeypatch.setattr(reproduction, "sweep", fake)
    monkeypatch.setattr("splitveil.train.fastest_precision", {"cpu": "float32"}.__getitem__)
    monkeypatch.delenv("SPLITVEIL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    code, shown, complaints = splitveil(
        "reproduce", "weights", "--data", "celeba", "--data", "qmnist", "--epochs", "7", "--precision", "bfloat16",
        "--runs", "mine", "--data-root", str(tmp_path), "--device", "cpu:0", "--jobs", "5",
    )  # fmt: skip
    assert code == expected
    assert ("cell-0 failed: it broke" in complaints) == bool(mistakes)
    assert "0 of 34 cells are there; written: –" in shown
    name, compute, cells, folder, place, jobs = asked
    assert (name, compute, folder) == ("weights", weights.compute, Path("results/weights/rows"))
    assert (place, jobs) == (Place(Path("mine"), tmp_path, "cpu:0"), 5)
    assert {(cell.data, cell.epochs, cell.precision) for cell in cells} == {
        ("celeba", 7, "bfloat16"), ("qmnist", 7, "bfloat16"),
    }  # fmt: skip
    asked.clear()
    splitveil("reproduce", "ablation", "--quick")
    assert asked == [
        "ablation", ablation.compute, ablation.cells(Settings(quick=True)), Path("runs/quick/ablation/rows"),
        Place(Path("runs")), None,
    ]  # fmt: skip


# What a cell computes, on few images.


@pytest.fixture(scope="module")
def few() -> sv.Dataset:
    """240 images 1×8×8: which half is bright is the target; hidden is which row."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(240, 1, 8, 8, generator=generator) * 0.3
    y, hidden = torch.randint(0, 2, (240,), generator=generator), torch.randint(0, 4, (240,), generator=generator)
    for image, half, row in zip(x, y.tolist(), hidden.tolist(), strict=True):
        image[:, :, 4 * half : 4 * half + 4] += 0.4
        image[:, 2 * row] += 0.2
    return sv.Dataset.from_arrays(x, y, {"digit": hidden})


class Regression:
    """A quick attack: linear regression of the secret's values; remembers its seeds."""

    name = "linear"

    def __init__(self) -> None:
        self.seeds: set[int] = set()

    def fit(self, train: View, secret: Tensor, *_: object, n_values: int, seed: int) -> Guess:
        self.seeds.add(seed)
        values = torch.nn.functional.one_hot(secret, n_values).double()
        weight = torch.linalg.pinv(with_one(train)) @ values
        return lambda view: torch.log_softmax(4 * with_one(view) @ weight, 1)


def with_one(view: View) -> Tensor:
    return torch.nn.functional.pad(view.sent.flatten(1).double(), (0, 1), value=1.0)


def test_the_ablation_computes_what_it_says(few: sv.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ablation, "load_data", lambda name, root: {("mine", tmp_path / "data"): few}[name, root])
    cell = replace(ablation.cells(Settings(quick=True, epochs=3))[1], data="mine", seed=2, kept=(8, 1))
    attack_, reports = Regression(), list[float]()
    monkeypatch.setattr(ablation, "ATTACKS", (attack_, *(one for one in ATTACKS if one.name != "linear")))
    result = ablation.compute(cell, Place(tmp_path, tmp_path / "data"), lambda share, _: reports.append(share))
    assert reports == sorted(reports)
    assert 0 < reports[0] < reports[-1] <= 1
    (folder,) = (tmp_path / "models").iterdir()
    trained = Run(folder)
    assert trained.manifest.data.name == "mine"
    assert trained.manifest.recipe == sv.Recipe.paper(epochs=3, seed=2).__dict__
    model, numbers = trained.model(), result.numbers
    assert [epoch["val_accuracy"] for epoch in numbers["history"]][-1] == accuracy(model, few.val)
    assert len(numbers["history"]) == 3
    assert {part: found["value"] for part, found in numbers["undefended"].items()} == {
        part: accuracy(model, few.parts[part]) for part in ("val", "test")
    }
    kept = {(one["cut"], one["operator"], one["m"]): one for one in numbers["kept"]}
    assert list(kept) == [
        (3, "patch", 8), (3, "patch", 1), (3, "dense", 8), (3, "dense", 1), (4, "dense", 8), (4, "dense", 1),
    ]  # fmt: skip
    assert attack_.seeds == {2}
    split = sv.SplitModel(model, at=4)
    factors = sv.factorise(split.server_layer, feature_shape=split.client(few.test.x).shape[1:])
    same: dict[str, Any] = {"hidden": "digit", "attacks": [attack_]}
    attack, lines = numbers["attack"], measure.reference_lines(split, few, **same)
    assert (attack["cut"], attack["hidden"], attack["prior"]) == (4, "digit", lines.prior.as_row())
    for name in ("label", "logits", "raw"):
        for what in ("accuracy", "balanced", "auc", "bits"):
            expected = float(getattr(getattr(lines, name), what))
            assert attack[name][what]["value"] == pytest.approx(expected, rel=1e-3)
    for found, m in zip(attack["kept"], (8, 1), strict=True):
        ours = measure.leakage(split, sv.TopComponents(factors, m=m), few, references=lines, **same)
        assert (found["m"], set(found["validation"])) == (m, {"linear"})
        for what in ("attack", "raw", "bits", "excess"):
            assert found[what]["value"] == pytest.approx(float(getattr(ours, what)), rel=1e-3)
        assert found["target"]["value"] == pytest.approx(kept[4, "dense", m]["test"]["value"])


def test_accuracies_are_those_of_each_part_cut_operator_and_number_of_components(few: sv.Dataset) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = sv.Table1Net((1, 8, 8), 2).eval()
        model.layer6.bias -= model(few.train.x).median(0).values  # so that both answers come
    # The labels are the model's own answers, some of them wrong: fewest in test.
    parts = {}
    for name, every in (("val", 4), ("test", 9)):
        part = few.parts[name]
        y = predict(model, part).argmax(1)
        parts[name] = replace(part, y=torch.where(torch.arange(len(y)) % every == 0, 1 - y, y))
    data = replace(few, **parts)
    assert undefended(model, data, ("val", "test"))["test"]["value"] == pytest.approx(1 - 4 / 36)
    assert undefended(model, data, ("val", "test"))["val"]["value"] == pytest.approx(1 - 9 / 36)
    rows = from_components(model, data, (3, 4), (1, 8), ("val", "test"))
    places = [(3, "patch"), (3, "dense"), (4, "dense")]
    assert [(one["cut"], one["operator"], one["m"]) for one in rows] == [(*at, m) for at in places for m in (1, 8)]
    for found in rows:
        split = sv.SplitModel(model, at=found["cut"])
        for name, part in parts.items():
            z = split.client(part.x)
            factors = sv.factorise(split.server_layer, feature_shape=z.shape[1:], operator=found["operator"])
            veil = sv.TopComponents(factors, m=found["m"])
            right = split.answer(veil, veil.encode(z)).argmax(1) == part.y
            assert found[name]["value"] == pytest.approx(right.double().mean().item())
    assert len({found[name]["value"] for found in rows for name in parts}) > 4


def test_what_is_measured_may_change_without_training_again(
    few: sv.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weights, "load_data", lambda name, root: {("mine", tmp_path / "data"): few}[name, root])
    first = replace(weights.cells(Settings(quick=True, epochs=2))[0], data="mine", kept=(2,))
    place, runs, devices = Place(tmp_path, tmp_path / "data", "cpu:0"), tmp_path / "weights", set[str]()

    def train(*arguments: Any, device: str, **options: Any) -> Any:
        devices.add(device)
        return train_run(*arguments, device=device, **options)

    monkeypatch.setattr(training, "train_run", train)
    found = weights.compute(first, place, lambda *_: None)
    again = weights.compute(replace(first, kept=(2, 1)), place, lambda *_: None)
    assert devices == {"cpu:0"}
    assert len(list(runs.iterdir())) == 1
    assert found.seconds["per_epoch"] > 0
    assert again.seconds["per_epoch"] is None
    assert again.numbers["undefended"] == found.numbers["undefended"]
    assert [one for one in again.numbers["kept"] if one["m"] == 2] == found.numbers["kept"]
    weights.compute(replace(first, precision="bfloat16"), place, lambda *_: None)
    assert len(list(runs.iterdir())) == 2


def test_hidden_attributes_serve_the_attack_alone(
    few: sv.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weights, "load_data", lambda *_, **__: few.without_hidden())
    cell = weights.cells(Settings(quick=True, epochs=1))[0]
    result = weights.compute(cell, Place(tmp_path), lambda *_: None)
    assert "test" not in json.dumps(result.numbers)
    assert set(result.numbers["undefended"]) == {"val"}
    assert {(one["cut"], one["operator"]) for one in result.numbers["kept"]} == {(3, "patch"), (4, "dense")}

    monkeypatch.setattr(ablation, "load_data", lambda *_, **__: few.without_hidden())
    monkeypatch.setattr(ablation, "_attacked", lambda *_: {"none": 0})
    plain = ablation.cells(Settings(quick=True, epochs=1))[0]
    found = ablation.compute(plain, Place(tmp_path), lambda *_: None)
    assert found.numbers["kept"]


def test_experiments_are_listed(splitveil: Callable[..., tuple[Any, ...]]) -> None:
    code, shown, _ = splitveil("reproduce", "--json")
    assert code == 0
    assert set(json.loads(shown)["experiments"]) == {
        "fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "baselines", "frontier", "cost", "reconstruction",
        "ablation", "weights", "tuning",
    }  # fmt: skip


def test_a_restricted_call_shows_what_was_computed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduction, "sweep", lambda *_, **__: [])
    for cell in ablation.cells(Settings()):
        if cell.seed == 0:
            write_row(row_path(tmp_path / "ablation" / "rows", cell), ablation_row(cell))
    done = reproduce("ablation", Settings(data=("qmnist",)), tmp_path, Place(tmp_path))
    assert (done.wanted, done.there, len(done.rows)) == (9, 5, 15)
    assert [(row.config["data"], row.config["variant"]) for row in done.rows[::5]] == [
        ("utkface", "plain"), ("celeba", "plain"), ("qmnist", "plain"),
    ]  # fmt: skip
    assert "## utkface" in (tmp_path / "ablation" / "table.md").read_text()
    assert (tmp_path / "ablation" / "plot.svg").exists()


def test_all_is_every_figure_of_the_paper_and_ray_computes_it_where_asked(
    monkeypatch: pytest.MonkeyPatch, splitveil: Callable[..., tuple[Any, ...]]
) -> None:
    asked: dict[str, dict[str, Any]] = {}

    def fake(name: str, _: Settings, out: Path, __: Place, **more: Any) -> reproduction.Reproduction:
        asked[name] = {"out": out, **more}
        return reproduction.Reproduction([], 3, 2, [Failure("one", "it broke", False)], ["a note"], "", [])

    monkeypatch.setattr("splitveil.experiments.reproduce", fake)
    code, shown, complaints = splitveil("reproduce", "all", "--out", "mine", "--precision", "float32")
    assert code == 1
    assert tuple(asked) == experiments.PAPER
    assert {"fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "cost", "baselines", "reconstruction"} == set(asked)
    assert all(each["out"] == Path("mine") and "sweeper" not in each for each in asked.values())
    assert complaints.count("a note") == complaints.count("it broke") == 1  # figures share their cells
    assert shown.count("2 of 3 cells") == len(asked)
    found = json.loads(splitveil("reproduce", "all", "--json", "--quiet", "--precision", "float32")[1])
    assert [one["experiment"] for one in found["experiments"]] == list(experiments.PAPER)
    asked.clear()
    splitveil("reproduce", "fig4", "--ray", "--ray-address", "10.0.0.1:6379", "--precision", "float32")
    sweeper = asked["fig4"]["sweeper"]
    assert (sweeper.func, sweeper.keywords) == (experiments.sweep_on_ray, {"address": "10.0.0.1:6379"})
    code, _, complaints = splitveil("reproduce", "fig4", "--ray-address", "10.0.0.1:6379")
    assert code == 2
    assert "--ray-address belongs to --ray" in complaints
    code, _, complaints = splitveil("reproduce", "fig9")
    assert code == 2
    assert "no experiment 'fig9'" in complaints
