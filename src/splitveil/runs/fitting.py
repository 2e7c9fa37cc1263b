"""An obfuscator fitted to a trained model, in a run's folder of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from splitveil.data import Dataset, Part, Progress, load_unlabelled
from splitveil.errors import ModelError, RunError
from splitveil.files import write_json
from splitveil.models import fixed_answers
from splitveil.obfuscate import Affine, Method, Tables, fit_obfuscator, write_obfuscator
from splitveil.runs.manifest import (
    MANIFEST,
    OBFUSCATOR,
    DataSource,
    Fitted,
    ImageSource,
    Manifest,
    check_free,
    versions,
)
from splitveil.runs.own import NamedModel, find_model
from splitveil.runs.run import Run
from splitveil.runs.trust import remember
from splitveil.split import SplitModel


def obfuscate_run(
    out: str | Path,
    model: str | Path,
    *,
    at: int | str,
    method: Method,
    images: str | Path | None = None,
    m: int | None = None,
    messages: int | None = None,
    width: int | None = None,
    size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    trust: bool = False,
    root: str | Path | None = None,
    progress: Progress | None = None,
) -> Affine | Tables:
    """Fit an obfuscator to a trained model and unlabelled images, and write the run's folder ``out``.

    No label is read, neither target nor hidden.

    Args:
        out: the run's folder; it must not hold one yet.
        model: a run's folder, a file of ``torch.export.save``, or ``package.module:function``.
        at: a cut's number, or a module's name.
        method: see `fit_obfuscator`, as for ``m``, ``messages``, ``width`` and ``seed``.
        images: a folder of images, at any depth; the training part of the run's own data where not given.
        m: coefficients.
        messages: different messages at most.
        width: units of the encoder's hidden layer.
        size: height and width of the model's images, where it does not say.
        classes: names of the model's answers; numbers, or those of the run's data, where not given.
        seed: of what is drawn.
        device: where to fit.
        trust: see `Run`.
        root: the folder of the data sets.
        progress: called as (done, in all, text).

    Returns:
        The obfuscator.

    Raises:
        RunError: the folder is taken or cannot be written; or no images are named, and the model has none.
        ModelError: there is no such model, it does not map images to logits, or the classes are not as many.
        DataError: the images cannot be read.
        SplitError: the model cannot be cut there (`NoLinearLayerError`: the method needs a linear layer).
        RankError: m, messages or width do not go with the method, or there are not so many directions.
    """
    folder = Path(out)
    check_free(folder)
    named = find_model(str(model), size=size, trust=trust)
    answers = _answers(named, classes)
    bound = fixed_answers(named.model, named.source.input_shape)
    split = SplitModel(named.model.to(device), at=at)
    part, source = _images(named, model, images, root, progress)
    asked: dict[str, Any] = {"m": m, "messages": messages, "width": width, "seed": seed}
    veil = fit_obfuscator(method, split, part, **asked, progress=progress)
    fitted = Fitted(cut=split.layer_name, method=method, **asked)
    manifest = Manifest(
        model=named.source, data=source, obfuscator=fitted, classes=answers, answers=bound, versions=versions()
    )
    named.write(folder)
    write_obfuscator(folder / OBFUSCATOR, veil)
    # Last, so that a folder with a manifest is a whole run.
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    remember(folder)
    return veil


def _answers(named: NamedModel, classes: Sequence[str] | None) -> tuple[str, ...] | None:
    if classes is None:
        return named.classes
    # A name may come twice, as ImageNet's crane (a bird, and a machine) does: an answer carries its number, too.
    if len(classes) != named.source.n_classes:
        raise ModelError(
            f"{len(classes)} class names are given, but the model has {named.source.n_classes} answers; name one for "
            "each, in the order of the logits"
        )
    return tuple(classes)


def _images(
    named: NamedModel, model: str | Path, images: str | Path | None, root: str | Path | None, progress: Progress | None
) -> tuple[Part, DataSource | ImageSource]:
    """What to fit to, and where it came from."""
    source = named.data
    if images is None and source is None:
        raise RunError(f"no images are named, and {model} comes with none; name a folder of images: --images FOLDER")
    if images is None and isinstance(source, DataSource):
        data: Dataset = Run(model, trust=True).data(root, progress)
        return data.train, source
    place = Path(images if images is not None else source.folder).expanduser().resolve()  # type: ignore[union-attr]
    found = load_unlabelled(place, named.source.input_shape, progress=progress)
    # A part, so that the images stay small in memory; its labels are not read, and there are none.
    part = Part(found.fitted, torch.empty(0, dtype=torch.int64))
    return part, ImageSource(folder=str(place), digest=found.digest)
