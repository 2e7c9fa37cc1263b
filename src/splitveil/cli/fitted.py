"""What commands check and say alike of runs and their models."""

from collections.abc import Mapping
from typing import Any

import typer

from splitveil.cli.output import note

PROBABILITIES = (
    "the model answers with probabilities (its rows add up to 1), so their logarithms are taken as logits; leave its "
    "softmax out where you can"
)


def say_probabilities(model: Any, input_shape: tuple[int, int, int]) -> None:
    """Note that a model ends in a softmax, where it does."""
    from splitveil.models import are_probabilities, fixed_images

    device = next((p.device for p in model.parameters()), None)
    if are_probabilities(model(fixed_images(input_shape).to(device))):
        note(PROBABILITIES)


def say_unbound(run: Any) -> None:
    """Note that a run is from before there were answers by which its model is known again."""
    if not run.is_bound:
        note(
            f"{run.folder} holds no answers of its model, as runs from before do: whether the model is still the one "
            "that it was made of is not checked"
        )


def check_options(run: Any, given: Mapping[str, object]) -> None:
    """Refuse options that the run has answered already.

    Args:
        run: an opened run.
        given: options by their flags; None where the user has not said them.
    """
    if run.fitted is None:
        return
    for flag, value in given.items():
        same = flag == "--split" and value in (run.fitted.cut, [run.fitted.cut])
        if value is not None and value is not False and not same:
            raise typer.BadParameter(
                f"{run.folder} has an obfuscator ({run.fitted.method}, at {run.fitted.cut}), which settles {flag}; "
                "leave that out, or name the run of the training"
            )


def same_data(run: Any, reference: Any) -> Any:
    """The run that drops are measured against, seen to be trained on the same data."""
    from splitveil.errors import ProfileError

    if reference.manifest.data.digest != run.manifest.data.digest:
        raise ProfileError(
            f"the reference {reference.folder} was trained on other data than {run.folder} "
            f"({reference.manifest.data.name}, digest {reference.manifest.data.digest[:12]}…); train it on the same "
            "data"
        )
    return reference
