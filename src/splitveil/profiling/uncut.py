"""The answers of the uncut model, and of the reference that drops are measured against."""

from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor, nn

from splitveil.errors import ModelError
from splitveil.models import fixed_answers
from splitveil.profile import ModelFacts, Reference, weights_digest
from splitveil.profiling.samples import Samples
from splitveil.profiling.shares import share


@dataclass(frozen=True, eq=False)
class Before:
    """The uncut model's answers (N,) and classes, and where the reference is right (N,), None without labels."""

    uncut: Tensor
    classes: int
    reference_right: Tensor | None


def answers_before(model: nn.Module, reference: nn.Module | None, samples: Samples) -> Before:
    """What is answered before anything is cut.

    Args:
        model: to be cut.
        reference: the model that drops are measured against; the uncut model itself where not given.
        samples: the images.

    Raises:
        ModelError: a model cannot answer these images.
    """
    uncut, classes = _answers(model, samples)
    if samples.y is None:
        return Before(uncut, classes, None)
    compared = uncut if reference is None else _answers(reference, samples)[0]
    return Before(uncut, classes, compared == samples.y)


def model_facts(model: nn.Module, samples: Samples, before: Before) -> ModelFacts:
    """What a profile says of the model."""
    return ModelFacts(
        name=type(model).__name__, input_shape=samples.shape, classes=before.classes, weights=model_digest(model),
        answers=fixed_answers(model, samples.shape),
    )  # fmt: skip


def reference_facts(model: nn.Module, reference: nn.Module | None, before: Before) -> Reference:
    """What a profile says of the reference."""
    accuracy = None if before.reference_right is None else share(before.reference_right)
    return Reference(
        own=reference is None, weights=model_digest(model if reference is None else reference), accuracy=accuracy
    )


def model_digest(model: nn.Module) -> str:
    """`weights_digest` of a model in memory, the same as that of the file that its run keeps."""
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    return weights_digest(save(tensors))


@torch.no_grad()
def _answers(model: nn.Module, samples: Samples) -> tuple[Tensor, int]:
    """Answers (N,) of an uncut model, and its number of classes."""
    device = next((p.device for p in model.parameters()), None)
    try:
        logits = torch.cat([model.eval()(samples.images(batch).to(device)).cpu() for batch in samples.batches()])
    except RuntimeError as error:
        raise ModelError(f"the model cannot read images of shape {samples.shape}: {error}") from error
    if logits.dim() != 2 or not bool(torch.isfinite(logits).all()):
        raise ModelError("the model's answers are not one finite number per class; train it again")
    return logits.argmax(1), logits.shape[1]
