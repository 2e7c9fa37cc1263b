"""A run over several targets: shared out, shown, kept, and gone on with."""

import contextlib
import csv
import functools
import json
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

from .mix import MIX, cases
from .target import BLOCK
from .work import HANGING, Find, Piece, Worker

HERE = Path(__file__).parent
ROWS = HERE / "runs.csv"
COLUMNS = ("commit", "target", "seed", "cases", "seconds", "finds")
PIECE_SECONDS = 3.0  # about; what an interruption loses at most
SHOW_EVERY = 1.0  # seconds; ten where the output is no terminal


class Run:
    """So many cases of some targets.

    Args:
        names: of the targets.
        total: cases of one target; or of the whole mix, where there are several.
        first: number of the first case.
        seed: of the cases.
        folder: where finds and what is done are kept.
    """

    def __init__(self, names: Sequence[str], total: int, first: int, seed: int, folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self.counts = {name: total if len(names) == 1 else cases(name, total) for name in names}
        self.done: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self._kept: set[tuple[str, int]] = set()
        self._state = folder / f"{'mix' if len(names) > 1 else names[0]}-{seed}-{first}-{total}.json"
        self.pieces = deque(self._pieces(first))
        self._recall()

    def go(self, workers: int, hanging: float = HANGING) -> int:
        """Do it; returns the number of finds.

        Args:
            workers: processes.
            hanging: seconds that a case may take.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        crew: list[Worker] = []
        last = time.monotonic()
        try:
            crew = [Worker() for _ in range(min(workers, len(self.pieces)))]
            while self.pieces or any(worker.piece for worker in crew):
                for place, worker in enumerate(crew):
                    if self.pieces and worker.piece is None:
                        if not worker.alive:
                            worker.stop()
                            crew[place] = worker = Worker()
                        worker.give(self.pieces.popleft())
                busy = {worker.pipe: worker for worker in crew if worker.piece}
                for pipe in wait(list(busy), 0.5):
                    worker = busy[pipe]
                    piece = worker.piece
                    assert piece is not None
                    self._take(piece, *worker.take())
                for worker in crew:
                    worker.end_if_hanging(hanging)
                if time.monotonic() - last > SHOW_EVERY * (1 if sys.stderr.isatty() else 10):
                    last = time.monotonic()
                    self._show(workers)
        finally:
            for worker in crew:
                worker.stop()
        self._state.unlink(missing_ok=True)
        return sum(self.found.values())

    def keep_rows(self) -> None:
        """Add a row of each target to the file of runs."""
        commit = _commit()
        new = not ROWS.exists()
        with ROWS.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(COLUMNS)
            for name in self.counts:
                row = (commit, name, self.seed, self.done[name], round(self.seconds[name]), self.found[name])
                writer.writerow(row)

    def table(self) -> str:
        """What was done, by target."""
        lines = [f"{'target':<12}{'cases':>11}{'seconds':>10}{'cases/s':>10}{'finds':>7}"]
        for name, count in (*self.done.items(), ("all", self.done.total())):
            seconds = self.seconds[name] if name != "all" else self.seconds.total()
            finds = self.found[name] if name != "all" else self.found.total()
            lines.append(f"{name:<12}{count:>11}{seconds:>10.1f}{count / max(seconds, 1e-9):>10.0f}{finds:>7}")
        return "\n".join(lines)

    def _pieces(self, first: int) -> list[Piece]:
        found = []
        for name, count in self.counts.items():
            size = max(BLOCK, round(MIX[name].rate * PIECE_SECONDS / BLOCK) * BLOCK)
            found += [
                Piece(name, self.seed, start, min(size, first + count - start))
                for start in range(first, first + count, size)
            ]
        # Dear ones first, so that the processes end together.
        return sorted(found, key=lambda piece: MIX[piece.name].rate)

    def _take(self, piece: Piece, finds: list[Find], seconds: float) -> None:
        self.done[piece.name] += piece.count
        self.seconds[piece.name] += seconds
        self.found[piece.name] += len(finds)
        self._kept.add((piece.name, piece.first))
        for find in finds:
            _keep(find, self.folder)
        state = {
            "commit": _commit(), "kept": sorted(self._kept), "done": self.done, "seconds": self.seconds,
            "found": self.found,
        }  # fmt: skip
        draft = self._state.with_suffix(".draft")
        draft.write_text(json.dumps(state))
        draft.replace(self._state)

    def _recall(self) -> None:
        """Go on with a run that was interrupted, unless the sources have changed since."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            state = json.loads(self._state.read_text())
            if state["commit"] != _commit():
                return
            self._kept = {(name, first) for name, first in state["kept"]}
            for mine, name in ((self.done, "done"), (self.seconds, "seconds"), (self.found, "found")):
                mine.update(state[name])
            self.pieces = deque(piece for piece in self.pieces if (piece.name, piece.first) not in self._kept)

    def _show(self, workers: int) -> None:
        left = sum(
            (count - self.done[name]) / (self.done[name] / self.seconds[name] if self.done[name] else MIX[name].rate)
            for name, count in self.counts.items()
        )
        rate = workers * self.done.total() / max(self.seconds.total(), 1e-9)
        line = (
            f"{self.done.total():,} of {sum(self.counts.values()):,} cases, {rate:,.0f} a second, "
            f"{left / workers / 60:.1f} min left, {self.found.total()} finds"
        )
        print(f"\r{line:<100}" if sys.stderr.isatty() else line, end="" if sys.stderr.isatty() else "\n",
              file=sys.stderr, flush=True)  # fmt: skip


def _keep(find: Find, folder: Path) -> None:
    """Write a find down, and say how it is repeated."""
    place = folder / f"{find.name}-{find.seed}-{find.number}"
    place.write_bytes(find.data)
    place.with_suffix(".txt").write_text(find.text)
    print(
        f"\nFIND in {find.name}, case {find.number} of seed {find.seed}: {find.text.strip().splitlines()[-1][:200]}\n"
        f"  repeat: python tests/fuzz {find.name} --file {place}\n"
        f"  or:     python tests/fuzz {find.name} --seed {find.seed} --first {find.number} --cases 1",
        file=sys.stderr, flush=True,
    )  # fmt: skip


@functools.cache
def _commit() -> str:
    """Of the sources, with a mark where they differ from it."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=HERE, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()
