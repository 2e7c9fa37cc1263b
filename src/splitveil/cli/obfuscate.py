"""``splitveil obfuscate``: an obfuscator fitted to a trained model, the user's own too, and unlabelled images."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from splitveil.cli.fitted import say_probabilities
from splitveil.cli.methods import Fit, Messages, check_method
from splitveil.cli.options import AsJson, DataRoot, ModelName, Quiet, Size, Trust, read_size
from splitveil.cli.output import note, print_json, print_table, progress_bar


def obfuscate(
    model: ModelName,
    cut: Annotated[str, typer.Option("--split", help="A module's name, whose input is sent; or a cut's number.")],
    out: Annotated[Path, typer.Option("--out", help="The new run's folder.")],
    images: Annotated[
        Path | None, typer.Option("--images", help="A folder of images without labels; a run's own data if not given.")
    ] = None,
    method: Annotated[Fit, typer.Option("--method", help="The obfuscator.")] = "distilled",
    m: Annotated[int | None, typer.Option("--m", min=1, help="Coefficients (every method but codebook).")] = None,
    messages: Messages = None,
    width: Annotated[
        int | None,
        typer.Option(
            "--width",
            min=0,
            help="Units of the encoder's hidden layer, 0 for none (distilled and codebook); if not given, as many as a "
            "tenth of the client's half costs, or none where that keeps more answers.",
        ),
    ] = None,
    size: Size = None,
    classes: Annotated[
        Path | None,
        typer.Option("--classes", metavar="FILE", help="Names of the answers, one a line; numbers if not given."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of what is drawn.")] = 0,
    device: Annotated[str, typer.Option("--device", help="Where to fit: cpu, cuda, …")] = "cpu",
    trust: Trust = False,
    data_root: DataRoot = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fit an obfuscator to a trained model and unlabelled images, for 'profile' and 'export'."""
    from splitveil.runs import Run, obfuscate_run
    from splitveil.train import available

    check_method(method, m=m, messages=messages, width=width)
    names, shape = _lines(classes), read_size(size)
    with progress_bar(quiet) as progress:
        veil = obfuscate_run(
            out, model, at=cut, method=method, images=images, m=m, messages=messages, width=width, size=shape,
            classes=names, seed=seed, device=available(device), trust=trust, root=data_root, progress=progress,
        )  # fmt: skip
    fitted = Run(out)
    manifest = fitted.manifest
    say_probabilities(fitted.model(), manifest.model.input_shape)
    assert manifest.obfuscator is not None
    facts = {
        "run": str(out), "model": manifest.model.name, "input_shape": list(manifest.model.input_shape),
        "answers": manifest.model.n_classes, "layer": manifest.obfuscator.cut, "method": method,
        "message_shape": list(veil.message.shape), "messages": veil.message.distinct, "data": manifest.data.digest,
    }  # fmt: skip
    if as_json:
        print_json(facts)
        return
    facts["messages"] = veil.message.distinct or "real numbers"
    print_table(f"obfuscated {model}", ["fact", "value"], [[key.replace("_", " "), facts[key]] for key in facts])
    if messages is not None and veil.message.distinct is not None and veil.message.distinct < messages:
        why = (
            "they are a product of the numbers of values" if method == "quantised" else "no more differ on these images"
        )
        note(f"{veil.message.distinct} messages came of it, not {messages}: {why}")
    quoted = shlex.quote(str(out))
    note(f"what it costs and keeps: splitveil profile {quoted}; both halves: splitveil export {quoted} --out bundle")


def _lines(file: Path | None) -> list[str] | None:
    """Names from a file, one a line."""
    if file is None:
        return None
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--classes {file} cannot be read ({error})") from error
    return [line.strip() for line in lines if line.strip()]
