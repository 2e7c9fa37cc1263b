"""The command; see --help."""

import argparse
import os
import resource
import sys
import time
from pathlib import Path

if not __package__:  # started as `python tests/fuzz`
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import fuzz

    __package__ = fuzz.__name__

# More threads than cores make small products many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

EXAMPLE = """examples:
  python tests/fuzz mix --cases 1000000          all targets, on every core; Ctrl-C, and the same command goes on
  python tests/fuzz frames --cases 100000        one target
  python tests/fuzz frames --file runs/fuzz/X    a find again
  python tests/fuzz requests --guided --cases 1000000   guided by coverage, with Atheris
"""


def main() -> int:
    """Exit code 1: there are finds."""
    from .mix import MIX, target

    parser = argparse.ArgumentParser(
        "python tests/fuzz", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("target", choices=["mix", *MIX], help="what to fuzz; mix: all, in the shares of mix.py")
    parser.add_argument("--cases", type=int, default=100_000, help="how many (default: 100,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases, which are always the same ones (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: 0)")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one a core)"
    )
    parser.add_argument("--hanging", type=float, default=60, help="seconds that a case may take (default: 60)")
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"), help="of finds (default: runs/fuzz)")
    parser.add_argument("--record", action="store_true", help="add rows to tests/fuzz/runs.csv")
    parser.add_argument("--file", type=Path, help="check the one case in this file")
    parser.add_argument("--guided", action="store_true", help="one target, guided by coverage")
    given = parser.parse_args()
    if given.file:
        with target(given.target) as kind:
            kind.check(given.file.read_bytes())
            kind.settle()
        print("nothing is wrong with this case")
        return 0
    if given.guided:
        from .guided import fuzz as guided

        guided(given.target, given.cases, given.seed, given.folder)
        return 0
    from .running import Run

    run = Run([*MIX] if given.target == "mix" else [given.target], given.cases, given.first, given.seed, given.folder)
    begin = time.monotonic()
    try:
        finds = run.go(given.workers, given.hanging)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    print(run.table())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = used.ru_utime + used.ru_stime
    print(f"{time.monotonic() - begin:.0f} s on {given.workers} processes, {cores:.0f} s of a core, {finds} finds")
    if given.record:
        run.keep_rows()
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
