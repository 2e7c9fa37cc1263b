"""All that is checked of a cut model on real images, once before it is fitted to, measured or exported."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from splitveil.data import Part
from splitveil.errors import ModelError
from splitveil.models import check_float32, check_precision
from splitveil.soundness.halves import frozen
from splitveil.soundness.rows import Dependence, Rows, Run, check_rows, share_of
from splitveil.soundness.walk import Walk, culprit, name_of
from splitveil.split import SplitModel

BATCH = 8
_LOW = (torch.float16, torch.bfloat16)


def check_model(split: SplitModel, images: Part | Tensor) -> Tensor:
    """See that a cut model answers every image by itself, each time alike, and in float32.

    Eight images are tried: together, again, in another order, alone, and beside black, white and noise.

    Args:
        split: the model.
        images: real ones, of a part of a data set or (N, C, H, W) in [0, 1].

    Returns:
        The answers to eight of them, (8, …).

    Raises:
        SplitError: the halves answer otherwise than the model, or the model otherwise from call to call.
        ModelError: an answer depends on the other images in its batch or on chance; weights or values are in another
            number format; or the model cannot take these images. The sentence names the operation where it is found.
    """
    check_precision(split.model)
    with torch.no_grad():
        batch, others = _pictures(images)
        given = f"images of shape {tuple(batch.shape[1:])}"
        split.verify(batch)
        rows = _checked(split.client, Rows.of(batch.to(split.device), others), "client", "message", given)
        check_float32(rows.batch, f"the feature at {split.at!r} is")
        return _checked(split.server, rows, "server", "answer", given).batch


def check_server(split: SplitModel, features: Tensor) -> None:
    """`check_model` of the server's half alone, on features (N, *feature), where there are no images."""
    check_precision(split.model)
    with torch.no_grad():
        z = features[:BATCH].to(split.device)
        check_float32(z, "the features are")
        several = z[torch.arange(max(BATCH, len(z))) % len(z)]
        given = f"features of shape {tuple(z.shape[1:])}"
        _checked(split.server, Rows.of(several, several.flip(0) * 0.5), "server", "answer", given)


def refuse(found: Dependence, side: str, what: str, place: str | None) -> None:
    """Raises `ModelError` saying what a row depends on, and where."""
    by = "" if place is None else f"; {place} does it"
    cure = (
        "switch off in evaluation mode what draws random numbers or counts calls"
        if found.when.startswith("from one call")
        else "let each image be computed by itself: statistics over the batch, and attention or a softmax along its "
        "axis, mix images of different people"
    )
    raise ModelError(
        f"one image's {what} changes {found.when}, by {share_of(found.size)} of the answers' range, in the {side}'s "
        f"half of the model{by}; {cure}"
    )


def _checked(half: nn.Module, rows: Rows, side: str, what: str, given: str) -> Rows:
    """What a half gives for both batches; raises where it must not be used."""
    copy = frozen(half)
    run = _run(copy, side, given)
    _check_operations(copy, run, rows.batch, side, what)
    answers, found = check_rows(run, rows)
    if found is not None:
        refuse(found, side, what, culprit(copy, found))
    return answers


def _check_operations(half: nn.Module, run: Run, x: Tensor, side: str, what: str) -> None:
    """Raises `ModelError` where half a model draws random numbers, or computes in half precision between its ends."""
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()

        def look(node: fx.Node | None, values: list[Tensor]) -> None:
            name = "an operation" if node is None else name_of(half, node)
            if not torch.equal(before, torch.get_rng_state()):
                raise ModelError(
                    f"{name} in the {side}'s half draws random numbers in evaluation mode, so one image has a new "
                    f"{what} each time; pass training=self.training to functions such as dropout, or use their modules"
                )
            for value in values:
                if value.dtype in _LOW or value.is_quantized:
                    check_float32(value, f"{name} in the {side}'s half gives")

        if isinstance(half, fx.GraphModule):
            run(x)  # says what is wrong where the model cannot take this at all
            torch.set_rng_state(before)
            Walk(half, look).run(x.clone())
        else:
            look(None, [run(x)])


def _run(half: nn.Module, side: str, inputs: str) -> Run:
    def run(x: Tensor) -> Tensor:
        given = len(x)
        try:
            # A copy, because a model may work in place on what it is given.
            answers: Any = half(x.clone())
        except Exception as error:  # whatever the model's own code raises
            reason = " ".join(str(error).split())[:200]
            alone = "one alone of " if given == 1 else ""
            raise ModelError(
                f"the model cannot read {alone}{inputs} ({reason}, in the {side}'s half); give them as it was trained, "
                "and let it take batches of any length"
            ) from error
        if not isinstance(answers, Tensor) or not answers.dim() or len(answers) != given:
            shape = tuple(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
            raise ModelError(f"the {side}'s half answers {given} rows with {shape}, not with one row for each")
        check_float32(answers, f"the {side}'s half answers in")
        return answers

    return run


def _pictures(images: Part | Tensor) -> tuple[Tensor, Tensor]:
    """Eight real images, evenly spread, and what they are tried beside: black, white, noise, and more real ones."""
    spread = torch.linspace(0, len(images) - 1, 2 * BATCH).round().long()
    real = images.images(spread) if isinstance(images, Part) else images[spread].to(torch.float32, copy=True)
    shape = real.shape[1:]
    noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).to(real)
    others = torch.cat([torch.zeros_like(real[:1]), torch.ones_like(real[:1]), noise, real[1::2]])
    return real[::2].contiguous(), others
