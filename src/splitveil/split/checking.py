"""Whether two halves are the model: both are run, and a difference is named by its place and size."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from splitveil.errors import ModelError, SplitError
from splitveil.models import Table1Net
from splitveil.models.dice import drawing_operation, generator_states
from splitveil.split.tracing import undisturbed

_LENGTHS = (1, 2, 3, 7)  # of batches: one image, an even and an odd few, and one that no usual axis is as long as
# On an accelerator two runs of the same layer may add in another order; a lost operation makes a larger difference.
_TOLERANCE = 1e-3  # of the largest answer; on a CPU the halves are the model to the last bit


def check(model: nn.Module, client: nn.Module, server: nn.Module, images: Tensor, at: int | str) -> None:
    """Raise `SplitError` unless the halves answer images as the model does, and alike from call to call.

    Where the model itself cannot read the images, that is a `ModelError`.

    Args:
        model: in evaluation mode; its buffers are left as they are.
        client: its half on the edge.
        server: the other half.
        images: (B, C, H, W), at least one.
        at: the cut, for the message.
    """
    images = _as_the_model_takes_them(images, model)
    # Each batch begins with another image, so that what is kept of one shows in the next.
    starts = accumulate(_LENGTHS, initial=0)
    picks = [
        images[torch.arange(start, start + length) % len(images)]
        for start, length in zip(starts, _LENGTHS, strict=False)
    ]
    with torch.no_grad(), undisturbed(model):
        wanted = _function_of(model, picks)
        state = generator_states()
        # All features before all answers: a server that remembers the last client would be found out.
        features = [_run(client, batch, "client's half") for batch in picks]
        found = [_run(server, z, "server's half") for z in features]
        again = _run(server, features[0], "server's half")
        if generator_states() != state:
            raise SplitError(_not_a_function(model, drawing_operation(lambda: server(client(picks[0].clone())))))
        for batch, right, answer in zip(picks, wanted, found, strict=True):
            if not _alike(right, answer):
                other = picks[batch is picks[0]]

                def apart(x: Tensor, other: Tensor = other) -> Tensor:
                    z = client(x)
                    client(other.clone())  # in between, as above
                    return server(z)  # type: ignore[no-any-return]

                place = _place(model, apart, batch)
                raise SplitError(
                    f"the two halves of {type(model).__name__} at {at!r} do not answer {len(batch)} images as the "
                    f"model does: they differ by {_difference(right, answer)}, first {place}; the trace misses what "
                    "happens there, so cut elsewhere, or save the model as a .pt2 file (docs/own-model.md)"
                )
        if not _alike(found[0], again):
            raise SplitError(f"the server's half at {at!r} answers the same feature differently the second time")


def hides_nothing(model: nn.Module) -> bool:
    """Whether a model consists of torch's own modules, one after the other, and nothing is attached to them.

    Such a model is what its graph says: there is no code of a user's own that a trace could miss.
    """
    return all(
        (type(module).__module__.startswith("torch.nn.modules.") or type(module) is Table1Net)
        and not (module.training or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
        for module in model.modules()
    ) and not (_global_forward_hooks or _global_forward_pre_hooks)


def _as_the_model_takes_them(images: Tensor, model: nn.Module) -> Tensor:
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    return images if weights is None else images.to(weights.device, weights.dtype)


def _function_of(model: nn.Module, picks: list[Tensor]) -> list[Tensor]:
    """The model's answers, if they are the same when it is asked again."""
    state = generator_states()
    answers = [_run(model, batch, "model") for batch in picks]
    again = [_run(model, batch, "model") for batch in picks[:2]]
    if all(_alike(first, second) for first, second in zip(answers, again, strict=False)):
        return answers
    drew = generator_states() != state
    operation = drawing_operation(lambda: model(picks[0].clone())) if drew else None
    raise SplitError(_not_a_function(model, operation))


def _not_a_function(model: nn.Module, operation: str | None) -> str:
    name = type(model).__name__
    if operation is None:
        return (
            f"{name} answers the same images differently the second time, so it keeps something from call to call, or "
            "draws random numbers outside torch; a model to be cut answers from its images alone"
        )
    return (
        f"{name} draws random numbers in evaluation mode ({operation!r}), so its answer is not a function of the "
        "image; switch that off outside training, e.g. dropout(x, p, self.training)"
    )


def _run(module: nn.Module, batch: Tensor, what: str) -> Tensor:
    try:
        answer = module(batch.clone())
    except Exception as error:  # whatever the user's own code raises
        reason = " ".join(str(error).split())[:200]
        if what == "model":  # whatever the halves do
            raise ModelError(f"the model cannot read images of shape {tuple(batch.shape[1:])} ({reason})") from error
        raise SplitError(
            f"the {what} cannot take tensors of shape {tuple(batch.shape)} ({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(answer, Tensor):
        raise SplitError(f"the {what} gives a {type(answer).__name__}, not one tensor; let it give the logits alone")
    return answer.clone()


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.device.type == "cpu":
        return bool(((a == b) | ((a != a) & (b != b))).all())
    scale = float(a.abs().nan_to_num(0, 0, 0).max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=0, atol=_TOLERANCE * scale, equal_nan=True)


def _difference(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"shape or type ({tuple(a.shape)} {a.dtype}, {tuple(b.shape)} {b.dtype})"
    return f"up to {float((a.double() - b.double()).abs().nan_to_num(float('inf')).max()):.3g}"


@dataclass(frozen=True)
class _Step:
    module: str
    is_input: bool
    value: Tensor

    @property
    def place(self) -> str:
        return f"in what enters {self.module!r}" if self.is_input else f"inside {self.module!r}"


def _place(model: nn.Module, halves: Callable[[Tensor], Tensor], batch: Tensor) -> str:
    """Where the halves first differ from the model, by the modules that all share."""
    with _recorded(model) as steps:
        model(batch.clone())
        right = list(steps)
        steps.clear()
        halves(batch.clone())
        found = list(steps)
    shared = {step.module for step in found}
    right = [step for step in right if step.module in shared]
    for step in right:
        same = next((other for other in found if (other.module, other.is_input) == (step.module, step.is_input)), None)
        if same is None:
            continue
        found.remove(same)
        if not _alike(step.value, same.value):
            return step.place
    return f"after {right[-1].module!r}" if right else "outside all modules"


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Step]]:
    """The inputs and outputs of the innermost modules, as they run."""
    steps: list[_Step] = []
    handles = []
    for name, module in model.named_modules():
        if name and not any(True for _ in module.children()) and not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(_recorder(steps, name, is_input=True)))
            handles.append(module.register_forward_hook(_recorder(steps, name, is_input=False)))
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def _recorder(steps: list[_Step], name: str, *, is_input: bool) -> Callable[..., None]:
    def record(_: nn.Module, args: tuple[object, ...], output: object = None) -> None:
        value = (args[0] if args else None) if is_input else output
        if isinstance(value, Tensor):
            steps.append(_Step(name, is_input, value.clone()))

    return record
