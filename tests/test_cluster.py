"""Sweeps on a Ray cluster, with a real one of two CPUs on this machine."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from splitveil.errors import DataError, ExperimentError, MissingExtraError
from splitveil.experiments.cells import Place, Report, Result, read_rows, row_path, slug
from splitveil.experiments.cluster import sweep_on_ray

# Ray leaves sockets and the handles of its own processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@dataclass(frozen=True)
class Toy:
    """A cell that does what it is told."""

    number: int
    does: str = "count"

    @property
    def label(self) -> str:
        return f"toy-{self.number}"


def compute(cell: Toy, place: Place, report: Report) -> Result:
    """Runs in a worker; leaves its process id behind."""
    place.runs.mkdir(parents=True, exist_ok=True)
    (place.runs / f"{cell.label}.{os.getpid()}").touch()
    report(0.5, "half done")
    if cell.does == "mistake":
        raise DataError("there are no toys here; buy some")
    if cell.does == "fault":
        raise ZeroDivisionError("toys divided by none")
    if cell.does == "die":
        os._exit(1)
    if cell.does == "wait":
        time.sleep(600)
    if cell.does == "meet":  # goes on only while another that meets is running
        deadline = time.monotonic() + 60
        while len(list(place.runs.glob("toy-*.*"))) < 2:
            assert time.monotonic() < deadline, "it was alone"
            time.sleep(0.02)
        time.sleep(1.5)  # for the driver to see the progress within
    return Result("digest", {"square": cell.number**2, "process": os.getpid()}, {})


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two CPUs, to which this process is connected."""
    environment = pytest.MonkeyPatch()
    # Workers must be able to import this file; pytest's own path does not reach them.
    environment.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    environment.setenv("RAY_AUTH_MODE", "disabled")
    environment.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = pytest.importorskip("ray")
    context = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()
    environment.undo()


def run(cells: Sequence[Toy], folder: Path, **options: Any) -> Any:
    return sweep_on_ray("toys", compute, cells, folder / "rows", Place(folder / "runs"), **options)


def started(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "runs").glob("toy-*.*"))


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


@pytest.mark.usefixtures("cluster")
def test_two_workers_compute_at_once_and_what_is_there_stays(tmp_path: Path) -> None:
    seen = list[tuple[int, int, str]]()
    cells = [Toy(2, "meet"), Toy(3, "meet")]
    assert run(cells, tmp_path, progress=lambda *state: seen.append(state)) == []
    rows, complaints = read_rows(tmp_path / "rows", "toys")
    assert complaints == []
    assert [rows[slug(cell)].numbers["square"] for cell in cells] == [4, 9]
    workers = {rows[slug(cell)].numbers["process"] for cell in cells}
    assert len(workers | {os.getpid()}) == 3
    assert (seen[0], seen[-1][:2]) == ((0, 200, "2 cells to compute"), (200, 200))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert any(0 < done < 200 and text.endswith("half done") for done, _, text in seen)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    foreign = row_path(tmp_path / "rows", Toy(5))
    foreign.write_text("mine")
    assert run([*cells, Toy(4), Toy(5)], tmp_path) == []
    assert started(tmp_path) == ["toy-2", "toy-3", "toy-4"]
    assert foreign.read_text() == "mine"
    assert all((tmp_path / "rows" / name).stat().st_mtime_ns == when for name, when in before.items())
    for _ in range(500):  # max_calls: a worker ends with its cell
        if not any(map(alive, workers)):
            break
        time.sleep(0.02)
    assert not any(map(alive, workers))


@pytest.mark.usefixtures("cluster")
def test_a_cell_that_fails_fails_alone(tmp_path: Path) -> None:
    cells = [Toy(1, "die"), Toy(2, "mistake"), Toy(3, "fault"), Toy(4)]
    failures = {failure.cell: failure for failure in run(cells, tmp_path)}
    assert set(failures) == {slug(cell) for cell in cells[:3]}
    death, mistake, fault = (failures[slug(cell)] for cell in cells[:3])
    assert "died" in death.why
    assert (mistake.why, mistake.mistake) == ("there are no toys here; buy some", True)
    assert "ZeroDivisionError: toys divided by none" in fault.why
    assert not fault.mistake
    assert list(read_rows(tmp_path / "rows", "toys")[0]) == [slug(cells[3])]


@pytest.mark.usefixtures("cluster")
def test_cells_run_in_order_at_most_jobs_at_once(tmp_path: Path) -> None:
    seen = list[str]()
    cells = [Toy(3), Toy(1), Toy(2)]
    assert run(cells, tmp_path, jobs=1, progress=lambda _done, _total, text: seen.append(text)) == []
    assert [text for text in seen if text.endswith(": done")] == ["toy-3: done", "toy-1: done", "toy-2: done"]
    with pytest.raises(ExperimentError, match="at least 1, not 0"):
        run(cells, tmp_path, jobs=0)


@pytest.mark.usefixtures("cluster")
def test_a_row_that_appeared_meanwhile_is_left_alone(tmp_path: Path) -> None:
    foreign = row_path(tmp_path / "rows", Toy(1))

    def progress(_done: int, _total: int, text: str) -> None:
        if text == "1 cells to compute":
            foreign.parent.mkdir(parents=True)
            foreign.write_text("mine")

    (failure,) = run([Toy(1)], tmp_path, progress=progress)
    assert (failure.cell, failure.mistake) == (slug(Toy(1)), True)
    assert "left alone" in failure.why
    assert foreign.read_text() == "mine"


@pytest.mark.usefixtures("cluster")
def test_an_interrupt_ends_the_tasks(tmp_path: Path) -> None:
    def progress(_done: int, _total: int, text: str) -> None:
        if "half done" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([Toy(1, "wait")], tmp_path, progress=progress)
    (mark,) = (tmp_path / "runs").glob("toy-1.*")
    for _ in range(500):
        if not alive(int(mark.suffix[1:])):
            break
        time.sleep(0.02)
    assert not alive(int(mark.suffix[1:]))
    assert not (tmp_path / "rows").exists()


def test_an_address_beside_a_connection_is_refused(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="already"):
        run([Toy(1)], tmp_path, address=cluster)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'splitveil\[ray\]'"):
        run([Toy(1)], tmp_path)


def test_its_own_ray_is_shut_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    ray = pytest.importorskip("ray")
    ray.shutdown()
    assert run([Toy(6)], tmp_path) == []
    assert started(tmp_path) == ["toy-6"]
    assert not ray.is_initialized()
