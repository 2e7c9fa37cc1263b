"""Guided by coverage: Atheris, where it has a package for this version of Python."""

import random
from pathlib import Path
from typing import Any


def instrumented() -> Any:
    """Atheris, once what is imported from now on is instrumented; raises `ImportError` where there is none."""
    import atheris

    return atheris.instrument_imports(include=["splitveil"])


def fuzz(name: str, cases: int, seed: int, folder: Path) -> None:
    """Run libFuzzer on a target; its corpus and crash files go to a folder."""
    import atheris

    with instrumented():
        from .mix import target

        kind = target(name)
    corpus = folder / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    with kind:
        for index, data in enumerate(kind.seeds()):
            (corpus / f"seed-{index}").write_bytes(data)

        def mutate(data: bytes, most: int, number: int) -> bytes:
            return kind.mutate(bytes(data), random.Random(number))[:most]

        options = [f"-runs={cases}", f"-seed={seed + 1}", "-max_len=65536", "-rss_limit_mb=4096",
                   f"-artifact_prefix={folder}/{name}-"]  # fmt: skip
        atheris.Setup(["fuzz", *options, str(corpus)], lambda data: kind.check(bytes(data)), custom_mutator=mutate)
        atheris.Fuzz()
