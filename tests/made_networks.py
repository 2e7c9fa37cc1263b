# ruff: noqa: ARG001, ARG005 (every step is called with the same arguments)
"""Random small networks that change tensors in place, share layers, read shapes and carry hooks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

CHANNELS, SIDE = 4, 6
Step = Callable[["Network", int, Tensor, Tensor], Tensor | None]


def _slice_scaled(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    v[:, : n % 3 + 1].mul_(0.5)


def _slice_set(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    v[:, n % CHANNELS] = 0.25


def _slice_from_another(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    v[:, 2:] = w[:, :2] * 2


def _row_added_to(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    v[:, :, n % SIDE] += 1


def _added_to(net: "Network", n: int, v: Tensor, w: Tensor) -> Tensor:
    v += 0.5 * w
    return v


def _view_changed(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    v.view(v.shape[0], CHANNELS, -1).add_(0.1)


def _detached_changed(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    v.detach().mul_(1.5)


def _copied_into(net: "Network", n: int, v: Tensor, w: Tensor) -> Tensor:
    fresh = torch.zeros_like(v)
    fresh[:, :2].copy_(w[:, 2:])
    fresh.add_(v)
    return fresh


def _swapped(net: "Network", n: int, v: Tensor, w: Tensor) -> Tensor:
    a, b = v.chunk(2, 1)
    return torch.cat([b, a + 1], 1)


def _chunk_written(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    (v * 1).chunk(2, 1)  # made and forgotten
    a, _ = v.split([1, CHANNELS - 1], 1)
    a.detach().zero_()


def _reshaped(net: "Network", n: int, v: Tensor, w: Tensor) -> Tensor:
    b, c, h, side = v.shape
    return v.reshape(b, c * h, side).transpose(1, 2).contiguous().view(b, c, h, side)


def _reshaped_by_early_sizes(net: "Network", n: int, v: Tensor, w: Tensor) -> Tensor:
    b, h = net.early
    return v.reshape(b * 2, -1).view(b, CHANNELS, h, SIDE)


def _attended(net: "Network", n: int, v: Tensor, w: Tensor) -> Tensor:
    return v * w.mean((2, 3), keepdim=True).sigmoid()


def _scratch(net: "Network", n: int, v: Tensor, w: Tensor) -> Tensor:
    net.scratch.copy_(v.mean(0).detach())
    return w.mean((1, 2, 3), keepdim=True) + v + 0 * net.scratch.sum()


def _clamped(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    v.clamp_(-1, 1)


def _masked(net: "Network", n: int, v: Tensor, w: Tensor) -> Tensor:
    return v.masked_fill_(w < 0, 0.1)


def _relu_unused(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    functional.relu(v, inplace=True)


def _leaky_positional(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    functional.leaky_relu(v, 0.2, True)


def _counted(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    net.calls += 1


def _kept(net: "Network", n: int, v: Tensor, w: Tensor) -> Tensor:
    net.last = v
    return net.last + w


# Functions that may hand their argument on, or a view of it.
ALIASES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda v: v.type_as(v),
    lambda v: v.to(torch.float32),
    lambda v: v.float(),
    lambda v: v.contiguous(),
    lambda v: v.reshape(-1),
    lambda v: v.expand_as(v),
    lambda v: torch.einsum("bchw->bcwh", v),
    lambda v: torch.broadcast_tensors(v, v)[0],
    lambda v: torch.atleast_2d(v),
    lambda v: functional.dropout(v, 0.5, training=False),
    lambda v: functional.dropout2d(v, 0.5, False),
    lambda v: functional.pad(v, (0, 0, 0, 0)),
    lambda v: functional.interpolate(v, scale_factor=1),
    lambda v: functional.pixel_shuffle(v, 1),
    lambda v: v.mT,
    lambda v: v.real,
    lambda v: v[...],
    lambda v: v[:, [0, 1]],
    lambda v: v.unfold(1, 2, 1),
    lambda v: v.diagonal(0, 2, 3),
    lambda v: v.movedim(1, -1),
    lambda v: v.narrow(1, 0, 2),
    lambda v: torch.select(v, 1, 1),
    lambda v: torch.squeeze(v),
    lambda v: torch.swapaxes(v, 2, 3),
    lambda v: torch.tensor_split(v, 2, dim=1)[0],
    lambda v: torch.positive(v),
    lambda v: torch.roll(v, 0, 1),
    lambda v: torch.flip(v, (1,)),
    lambda v: torch.clamp(v, -9, 9),
    lambda v: torch.cat([v]),
    lambda v: torch.hstack([v]),
    lambda v: torch.nan_to_num(v),
    lambda v: functional.adaptive_avg_pool2d(v, SIDE),
    lambda v: functional.avg_pool2d(v, 1),
    lambda v: functional.softmax(v, 1),
    lambda v: functional.normalize(v),
    lambda v: functional.threshold(v, -9, 0),
    lambda v: v.repeat(1, 1, 1, 1),
    lambda v: v.unflatten(1, (2, 2)),
    lambda v: v.requires_grad_(False).detach(),
    lambda v: v.matrix_power(1),
    lambda v: torch.where(v == v, v, v),
    lambda v: torch.add(v, 0),
)


def _alias_changed(net: "Network", n: int, v: Tensor, w: Tensor) -> None:
    ALIASES[(net.plan.seed + n) % len(ALIASES)](v).detach().mul_(0.75)


def _unsqueezed(net: "Network", n: int, v: Tensor, w: Tensor) -> Tensor:
    return v.clone().unsqueeze_(1).squeeze(1)


# What a step does with two of the tensors so far: it returns a new one, or changes the first.
STEPS: tuple[Step, ...] = (
    _slice_scaled, _slice_set, _slice_from_another, _row_added_to, _added_to, _view_changed, _detached_changed,
    _copied_into, _swapped, _chunk_written, _reshaped, _reshaped_by_early_sizes, _attended, _scratch, _clamped, _masked,
    _relu_unused, _leaky_positional, _counted, _kept, _unsqueezed,
    _alias_changed, _alias_changed, _alias_changed,
    lambda net, n, v, w: v.relu_(),
    lambda net, n, v, w: v + w,
    lambda net, n, v, w: torch.relu(v),
    lambda net, n, v, w: net.shared(v),
)  # fmt: skip


def _hooked() -> nn.Module:
    layer = nn.Conv2d(CHANNELS, CHANNELS, 1)
    layer.register_forward_hook(lambda _, args, output: output + args[0])
    return layer


def _changing_its_input() -> nn.Module:
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    layer.register_forward_pre_hook(lambda _, args: args[0].mul_(0.9) is None or None)
    return layer


def _block() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True))
    block.register_forward_pre_hook(lambda _, args, kwargs: ((args[0] * 1.1,), kwargs), with_kwargs=True)
    return block


MODULES: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    lambda: nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False),
    lambda: nn.BatchNorm2d(CHANNELS),
    lambda: nn.GroupNorm(2, CHANNELS),
    lambda: nn.InstanceNorm2d(CHANNELS),
    lambda: nn.ReLU(inplace=True),
    lambda: nn.Hardswish(),
    lambda: nn.Dropout(0.5),
    lambda: nn.Dropout2d(0.5, inplace=True),
    lambda: nn.Identity(),
    lambda: nn.AvgPool2d(3, 1, 1),
    lambda: parametrizations.weight_norm(nn.Conv2d(CHANNELS, CHANNELS, 1)),
    lambda: parametrizations.spectral_norm(nn.Conv2d(CHANNELS, CHANNELS, 1)),
    _hooked,
    _changing_its_input,
    _block,
)


@dataclass(frozen=True)
class Plan:
    """What a network is made of.

    Attributes:
        steps: of each (an index of `STEPS`, or of `MODULES` beyond them; how far back its two tensors are).
        seed: of the weights.
        begins: whether the images are changed in place first.
        ends: whether the answer is.
        hooked: whether the whole network has a hook.
        skip: whether a tensor on the way goes into the answer too, so that fewer cuts are possible.
    """

    steps: tuple[tuple[int, int, int], ...]
    seed: int
    begins: bool
    ends: bool
    hooked: bool
    skip: bool


PLANS = st.builds(
    Plan,
    steps=st.lists(
        st.tuples(
            st.integers(0, len(STEPS) + len(MODULES) - 1),
            st.sampled_from([0, 0, 0, 0, 1, 2]),
            st.sampled_from([0, 0, 1, 2]),
        ),
        min_size=2,
        max_size=9,
    ).map(tuple),
    seed=st.integers(0, 2**16),
    begins=st.booleans(),
    ends=st.booleans(),
    hooked=st.booleans(),
    skip=st.sampled_from([False, False, True]),
)  # fmt: skip


class Network(nn.Module):
    """A plan as a model: images (B, 4, 6, 6) to three logits."""

    input_shape = (CHANNELS, SIDE, SIDE)
    last: Tensor
    early: tuple[int, int]

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.stem = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.shared = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.head = nn.Linear(CHANNELS * SIDE * SIDE, 3)
        self.register_buffer("scratch", torch.zeros(CHANNELS, SIDE, SIDE))
        self.register_buffer("calls", torch.zeros(()))
        for n, (kind, _, _) in enumerate(plan.steps):
            # A place to cut before each step that calls no module.
            self.add_module(f"at{n}", MODULES[kind - len(STEPS)]() if kind >= len(STEPS) else nn.Identity())
        if plan.hooked:
            self.register_forward_pre_hook(lambda _, args: (args[0] * 2 - 1,))
            self.register_forward_hook(lambda _, args, output: output.mul_(2))

    def forward(self, x: Tensor) -> Tensor:
        self.early = x.shape[0], x.size(2)
        if self.plan.begins:
            x.sub_(0.5)
        values = [self.stem(x)]
        for n, (kind, first, second) in enumerate(self.plan.steps):
            v, w = values[-1 - first % len(values)], values[-1 - second % len(values)]
            result = self.get_submodule(f"at{n}")(v)
            if kind < len(STEPS):
                result = STEPS[kind](self, n, result, w)
            if result is not None:
                values.append(result)
        answer = self.head(values[-1].flatten(1))
        if self.plan.skip:
            answer = answer + values[len(values) // 2].mean((1, 2, 3)).unsqueeze(1)
        if self.plan.ends:
            answer.mul_(2)
        return answer


def network_of(plan: Plan) -> Network:
    """Always the same weights, statistics as after some training, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        model = Network(plan)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return model.eval()
