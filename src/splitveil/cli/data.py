"""``splitveil data``: what there is, and what is in it."""

from typing import Annotated, Any

import typer

from splitveil.cli.options import AsJson, DataOptions, DataRoot, Quiet, read_options
from splitveil.cli.output import print_json, print_table, progress_bar


def data(
    name: Annotated[str | None, typer.Argument(help="A data set, or folder:PATH; without it, list them.")] = None,
    option: DataOptions = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Load a data set (decoding it once, into the cache) and describe it."""
    from splitveil.data import NAMES, left_out, load_data

    if name is None:
        print_json({"names": list(NAMES)}) if as_json else print_table("data sets", ["name"], [[n] for n in NAMES])
        return
    with progress_bar(quiet) as progress:
        loaded = load_data(name, root=data_root, progress=progress, **read_options(option))
    facts: dict[str, Any] = {
        "name": loaded.name,
        "input_shape": list(loaded.input_shape),
        "samples": {part: len(samples) for part, samples in loaded.parts.items()},
        "classes": list(loaded.classes),
        "hidden": {key: list(names) for key, names in loaded.hidden_classes.items()},
        "skipped": list(loaded.skipped),
        "digest": loaded.digest,
    }
    if as_json:
        print_json(facts)
        return
    facts["samples"] = ", ".join(f"{part} {len(samples):,}" for part, samples in loaded.parts.items())
    facts["classes"] = ", ".join(loaded.classes)
    facts["input_shape"] = " × ".join(map(str, loaded.input_shape))
    facts["hidden"] = ", ".join(f"{key} ({len(names)} values)" for key, names in loaded.hidden_classes.items())
    facts["skipped"] = left_out(loaded.skipped) or "none"
    print_table(f"data set {name}", ["fact", "value"], list(facts.items()))
