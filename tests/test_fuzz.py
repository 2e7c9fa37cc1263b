"""A bounded run of coverage-guided fuzzing over all that reads untrusted bytes; see fuzzing.py for longer ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from splitveil.wire import Frame, encode, pack_digits

FUZZING = Path(__file__).with_name("fuzzing.py")
RUNS = {"frame": 300_000, "message": 200_000, "finite": 200_000, "manifest": 30_000, "request": 100_000}


def seeds(target: str, exported: Path) -> list[bytes]:
    """Valid inputs to start from."""
    frames = [
        encode(Frame(b"abcd", np.zeros((m, 3), np.float32 if coding == "float32" else np.int8), coding))
        for m in (1, 4) for coding in ("float32", "int8", "int4")
    ]  # fmt: skip
    frames += pack_digits(np.array([[0, 0, 0], [4, 6, 10]]), (5, 7, 11), b"abcd")
    tensor = {"name": "frame", "datatype": "UINT8", "shape": [1, len(frames[1])], "data": list(frames[1])}
    index = {**tensor, "shape": [1, len(frames[-1])], "data": list(frames[-1])}
    binary = json.dumps({"inputs": [{**tensor, "data": None, "parameters": {"binary_data_size": len(frames[1])}}]})
    floats = {"name": "coefficients", "datatype": "FP32", "shape": [1, 4, 3], "data": [0.5] * 12}
    return {
        "frame": frames, "message": frames, "finite": frames,
        "manifest": [(exported / side / "manifest.json").read_bytes() for side in ("edge", "server")],
        "request": [
            *(json.dumps({"inputs": [each]}).encode() for each in (tensor, index, floats)),
            len(binary).to_bytes(2, "little") + binary.encode() + frames[1],
        ],
    }[target]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("target", RUNS)
def test_nothing_but_the_named_error_comes_of_any_bytes(target: str, exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="Atheris has no package for this version of Python")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, seed in enumerate(seeds(target, exported)):
        (corpus / str(index)).write_bytes(seed)
    limits = [f"-runs={RUNS[target]}", "-max_total_time=20", "-rss_limit_mb=2048", "-max_len=8192", "-seed=1"]
    done = subprocess.run(
        [sys.executable, str(FUZZING), target, *limits, str(corpus)],
        capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    cases = int(done.stderr.rpartition("Done ")[2].split()[0])
    assert cases >= 1000  # it has really run
    print(f"{target}: {cases} cases")
