# ruff: noqa: ARG001, ARG005 (changes and hooks are called with more than each needs)
"""Changes in place, hooks and sizes: the halves keep what a trace drops, or the model is refused with the place."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import splitveil as sv
from splitveil.errors import SplitError
from splitveil.models import load_exported, sample_images
from splitveil.split import possible_cuts

SHAPE = (3, 8, 8)
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """stem, mid, head, and between stem and mid whatever ``change`` does to the tensor."""

    input_shape = SHAPE

    def __init__(self, change: Forward = lambda net, z: z) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mid = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(256, 3)
        self.change = change
        self.requires_grad_(False)  # torch.export refuses some writes for their gradients

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.change(self, self.stem(x)))

    def end(self, z: Tensor) -> Tensor:
        return self.head(self.mid(z).relu().flatten(1))


def then(*changes: Callable[[Tensor], object]) -> Forward:
    """Changes whose results are not used."""

    def change(net: Net, z: Tensor) -> Tensor:
        del net
        for one in changes:
            one(z)
        return z

    return change


def two_names(net: Net, z: Tensor) -> Tensor:
    y = z
    z += 1
    return y


def set_slice(net: Net, z: Tensor) -> Tensor:
    z[:, 0] = 0
    return z


def out_of_add(net: Net, z: Tensor) -> Tensor:
    c = z.clone()
    torch.add(z, z, out=c)
    return c


def assembled(net: Net, z: Tensor) -> Tensor:
    fresh = torch.zeros_like(z)
    fresh[:, :2], fresh[:, 2:] = z[:, 2:], z[:, :2].relu()
    return fresh


def scratch(net: Net, z: Tensor) -> Tensor:
    total = torch.zeros(1)
    total += z.mean()
    return z * total


CHANGES = {
    "relu_": then(lambda z: z.relu_()),
    "functional": then(lambda z: functional.relu(z, True)),
    "function": then(torch.relu_),
    "two names": two_names,
    "slice set": set_slice,
    "slice changed": then(lambda z: z[:, :2].mul_(2)),
    "view changed": then(lambda z: z.view(z.shape[0], -1).add_(1)),
    "chunk": then(lambda z: z.chunk(2, 1)[1].zero_()),
    "unbind": then(lambda z: z.unbind(1)[0].zero_()),
    "copied": then(lambda z: z[:, 2:].copy_(z[:, :2] * 2)),
    "detached": then(lambda z: z.detach().mul_(2)),
    "data": then(lambda z: z.data.mul_(2)),
    "out": out_of_add,
    "assembled": assembled,
    "scratch": scratch,
    "turned": then(lambda z: z.transpose_(2, 3)),
}


def assert_halves(model: nn.Module, *, cuts: list[str] | None = None) -> None:
    """That they answer as the model at every cut, and leave what they are given as it was."""
    x = torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(3))
    names = possible_cuts(model)
    assert cuts is None or names == cuts
    assert names
    for name in names:
        split = sv.SplitModel(model, name, verify=False)
        for length in (1, 2, 3, 7):
            images = x[:length].clone()
            z = split.client(images)
            kept = z.clone()
            assert torch.equal(split.server(z), model(x[:length].clone())), name
            assert torch.equal(z, kept)
            assert torch.equal(images, x[:length])


def exported(model: nn.Module, folder: Path) -> nn.Module:
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model.eval(), (torch.rand(2, *SHAPE),), dynamic_shapes=shapes), folder / "m")
    return load_exported(folder / "m")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_in_place_are_kept(change: Forward) -> None:
    model = Net(change).eval()
    x = sample_images(SHAPE, 2)
    assert not torch.equal(model(x.clone()), Net()(x))  # what is changed shows
    assert_halves(model, cuts=["stem", "mid", "head"])


@pytest.mark.parametrize("name", ["relu_", "slice set", "view changed", "detached", "assembled"])
def test_an_exported_model_keeps_its_changes_in_place(name: str, tmp_path: Path) -> None:
    model = Net(CHANGES[name]).eval()
    from_file, x = exported(model, tmp_path), sample_images(SHAPE, 3)
    assert torch.equal(from_file(x), model(x))
    assert_halves(from_file, cuts=["stem", "mid", "head"])


class Late(Net):
    """Writes through a view, after mid has read the tensor and before the end reads it again."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.stem(x)
        view = z[:, :2]
        y = self.mid(z)
        view.mul_(2)
        return self.head((y + z).flatten(1))


@pytest.mark.parametrize("is_file", [False, True])
def test_a_write_on_the_servers_side_does_not_reach_the_feature(is_file: bool, tmp_path: Path) -> None:
    model = Late().eval()
    assert_halves(exported(model, tmp_path) if is_file else model, cuts=["stem", "mid", "head"])


class Earlier(Net):
    """Reads a tensor before and after it is changed."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.stem(x)
        before = z.mean((2, 3))
        z.relu_()
        y = self.mid(z)
        return self.head(y.flatten(1)) + before[:, :3]


def test_a_tensor_that_is_read_before_and_after_a_change_does_not_cross_alone() -> None:
    with pytest.raises(SplitError, match="2 tensors cross a cut at 'mid': 'stem', 'mean'"):
        sv.SplitModel(Earlier(), "mid")
    assert_halves(Earlier().eval(), cuts=["stem"])


class Stateful(Net):
    def __init__(self, step: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__(step)
        self.register_buffer("kept", torch.ones(1))
        self.count = 0


def store(net: Net, z: Tensor) -> Tensor:
    net.kept.copy_(z.mean())
    return z


def count(net: Net, z: Tensor) -> Tensor:
    net.kept += 1
    net.count += 1
    net.features = z
    return z


@pytest.mark.parametrize("step", [store, count])
def test_the_halves_and_the_trace_leave_the_models_buffers_alone(step: Forward) -> None:
    model = Stateful(step).eval()
    model.kept.fill_(5)
    split = sv.SplitModel(model, "mid")
    split.server(split.client(sample_images(SHAPE, 2)))
    assert model.kept.item() == 5
    assert model.count == 0
    assert not hasattr(model, "features")
    assert_halves(model)


def test_a_buffer_that_is_written_before_a_cut_and_read_after_it_crosses() -> None:
    class Passing(Stateful):
        def forward(self, x: Tensor) -> Tensor:
            self.kept.copy_(x.mean())
            return super().forward(x) * self.kept

    model = Passing(lambda net, z: z).eval()
    with pytest.raises(SplitError, match="2 tensors cross a cut at 'mid': 'x', 'stem'"):
        sv.SplitModel(model, "mid")
    assert_halves(model, cuts=["stem"])
    # Where it is written of the feature itself, the server writes it.
    assert_halves(Stateful(lambda net, z: store(net, z) * net.kept).eval(), cuts=["stem", "mid", "head"])

    class Twice(Stateful):
        def end(self, z: Tensor) -> Tensor:
            return super().end(z) * self.kept

    model = Twice(lambda net, z: store(net, z) * net.kept).eval()
    with pytest.raises(SplitError, match="'copy_' changes a tensor in place before a cut at 'mid' that is read after"):
        sv.SplitModel(model, "mid")
    assert_halves(model, cuts=["stem"])


def whole_hook(model: Net) -> None:
    model.register_forward_pre_hook(lambda _, args: ((args[0] - 0.5) / 0.25,))
    model.register_forward_hook(lambda _, args, kwargs, output: output * 2, with_kwargs=True)


def layers_hooks(model: Net) -> None:
    model.mid.register_forward_pre_hook(lambda _, args: args[0].sub_(1) is None or None)
    model.stem.register_forward_hook(lambda _, args, output: output.relu_() is None or None)


def backward_hooks(model: Net) -> None:
    for module in (model, model.mid):
        module.register_full_backward_hook(lambda *_: None)


class Called(Net):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x * 2)


@pytest.mark.parametrize("attach", [whole_hook, layers_hooks, backward_hooks])
def test_hooks_are_kept(attach: Callable[[Net], None]) -> None:
    model = Net().eval()
    attach(model)
    assert_halves(model, cuts=["stem", "mid", "head"])


def test_a_call_of_its_own_and_arguments_with_defaults_are_kept() -> None:
    class Optional(Net):
        def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 3.0) -> Tensor:
            return super().forward(x if mask is None else x * mask) * scale

    assert_halves(Called().eval(), cuts=["stem", "mid", "head"])
    assert_halves(Optional().eval(), cuts=["stem", "mid", "head"])


def dice(net: Net, z: Tensor) -> Tensor:
    return functional.dropout(z, 0.5)


def rare_dice(net: Net, z: Tensor) -> Tensor:
    return functional.dropout(z, 1e-9)


def counting(net: Net, z: Tensor) -> Tensor:
    net.kept += 1
    return z * net.kept


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (dice, r"draws random numbers in evaluation mode \('dropout'\)"),
        (rare_dice, r"draws random numbers in evaluation mode \('dropout'\)"),
        (lambda net, z: z + torch.rand_like(z), r"\('rand_like'\)"),
        (lambda net, z: z * torch.bernoulli(torch.full_like(z, 0.5)), r"\('bernoulli'\)"),
        (lambda net, z: z + torch.randn(4, 1, 1), r"\('randn'\)"),
        (lambda net, z: z * random.random(), "differently the second time"),
        (counting, "differently the second time"),
    ],
)
def test_a_model_that_is_no_function_of_its_images_is_refused(step: Forward, says: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(SplitError, match=says):
        sv.SplitModel(Stateful(step), "mid")
    assert torch.equal(torch.get_rng_state(), state)


class Hidden(Net):
    """Carries the stem's output to the head by hooks, past every graph."""

    def __init__(self) -> None:
        super().__init__()
        kept: dict[str, Tensor] = {}
        self.stem.register_forward_hook(lambda _, args, output: kept.update(z=output))
        self.head.register_forward_hook(lambda _, args, output: output + kept["z"][:1].mean())


def test_what_goes_past_the_graph_is_found_by_running_and_its_place_is_named() -> None:
    with pytest.raises(SplitError, match=r"'mid' do not answer 1 images as .*differ by up to .*inside 'head'"):
        sv.SplitModel(Hidden(), "mid")
    assert sv.SplitModel(Hidden(), "stem").layer_name == "stem"


def test_without_a_shape_the_first_images_check_the_halves() -> None:
    model = Hidden()
    model.input_shape = None
    split, x = sv.SplitModel(model, "mid"), sample_images(SHAPE, 4)
    with pytest.raises(SplitError, match="do not answer 1 images"):
        split.verify(x)
    with pytest.raises(SplitError, match="do not answer 1 images"):
        sv.Features.of(split, x)
    with pytest.raises(SplitError, match="do not answer 1 images"):
        sv.SplitModel(model, "mid", example=x)


def test_autocast_inside_a_model_is_refused_and_not_dropped() -> None:
    class Cast(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                z = self.stem(x)
            return self.end(z.float())

    with pytest.raises(SplitError, match=r"turns torch.autocast on inside.*\.pt2"):
        sv.SplitModel(Cast(), "mid")


class Sizes(Net):
    def forward(self, x: Tensor) -> Tensor:
        b, (height, width) = x.shape[0], x.shape[2:]
        doubled = b * 2
        z = functional.interpolate(self.mid(self.stem(x)), size=x.shape[-2:]).relu()
        mask = torch.ones(x.shape[1:], dtype=x.dtype, device=x.device)[:1]
        z = z.view(doubled, -1).view(b, 4 * (height // 2) * width * 2) * mask.mean()
        return self.head(z)


def test_sizes_of_the_images_do_not_cross(tmp_path: Path) -> None:
    assert_halves(Sizes().eval(), cuts=["stem", "mid", "head"])
    assert_halves(exported(Sizes(), tmp_path), cuts=["stem", "mid", "head"])


def test_without_a_shape_the_length_of_the_batch_still_does_not_cross() -> None:
    class Length(Net):
        def forward(self, x: Tensor) -> Tensor:
            b = x.shape[0]
            return self.head(self.mid(self.stem(x)).relu().view(b, -1))

    lengths, sizes = Length().eval(), Sizes().eval()
    lengths.input_shape = sizes.input_shape = None
    assert_halves(lengths, cuts=["stem", "mid", "head"])
    with pytest.raises(SplitError, match=r"a size of the images .*input_shape = .*\.pt2"):
        sv.SplitModel(sizes, "mid")
    split = sv.SplitModel(sizes, "mid", example=sample_images(SHAPE, 3))
    x = sample_images(SHAPE, 5)
    assert torch.equal(split.server(split.client(x)), sizes(x))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda y: (y, y), "answers with a tuple"),
        (lambda y: [y], "answers with a list"),
        (lambda y: {"logits": y}, "answers with a dict"),
        (lambda y: y.max(1), "gives a max, not one tensor"),
    ],
)
def test_a_model_that_does_not_answer_with_one_tensor_is_refused(answer: Callable[[Tensor], Tensor], says: str) -> None:
    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:
            return answer(super().forward(x))

    with pytest.raises(SplitError, match=says):
        sv.SplitModel(Other(), "mid")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what compiling imports
def test_programs_of_other_compilers_are_refused() -> None:
    compiled = Net()
    compiled.compile(backend="eager")
    for model, says in (
        (torch.jit.script(nn.Sequential(nn.Linear(2, 2))), "TorchScript program"),
        (torch.compile(Net(), backend="eager"), "compiled by torch.compile"),
        (nn.Sequential(compiled), "0 was compiled by torch.compile"),
    ):
        with pytest.raises(SplitError, match=says):
            sv.SplitModel(model, "mid")


def test_training_the_halves_trains_the_model_through_its_changes_in_place() -> None:
    model = Net(set_slice).requires_grad_().eval()
    split, x = sv.SplitModel(model, "mid"), sample_images(SHAPE, 2)
    model(x).sum().backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    split.server(split.client(x)).sum().backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), wanted, strict=True))
