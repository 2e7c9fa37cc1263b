"""Training many small networks together: per member its inputs, labels, seed, weight decay, best epoch and patience."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from splitveil.attack.fitting import Candidate, Training, fit_network, guess_of
from splitveil.attack.stack import Stack, architecture, chain, keep_mask
from splitveil.attack.view import Guess
from splitveil.train import fastest_precision

ROOM = 8192
"""Numbers in the widest layers of all members of a stack, for one sample: more would not stay in a CPU's caches."""
NARROW = 256
"""Members with fewer inputs compute in bfloat16 where that is fastest, after a first layer in float32: a secret may lie
in the last digits of a short message."""
SLICE = 512
"""Views per step of validation."""


def fit_networks(candidates: Sequence[Candidate]) -> list[Guess]:
    """Train a network for each job; those that are chains of layers on vectors together, the others one by one.

    Each chain is trained once per weight decay, and the member and epoch that guess best on validation are kept.

    Returns:
        Guesses in the order of the candidates.
    """
    guesses: dict[int, Guess] = {}
    groups: dict[Hashable, list[_Chain]] = {}
    for place, candidate in enumerate(candidates):
        net = candidate.fresh()
        layers = chain(net)
        if layers is None:
            guesses[place] = fit_network(candidate)
            continue
        made = _Chain(place, candidate, net, layers)
        groups.setdefault(made.group, []).append(made)
    for group in groups.values():
        group.sort(key=lambda each: each.width)
        for together in _batches(group):
            guesses |= _fit_together(together)
    return [guesses[place] for place in range(len(candidates))]


@dataclass(eq=False)
class _Chain:
    """A candidate whose network is a chain."""

    place: int
    candidate: Candidate
    net: nn.Module
    layers: list[nn.Module]
    width: int = field(init=False)

    def __post_init__(self) -> None:
        self.width = next(each.in_features for each in self.layers if isinstance(each, nn.Linear))

    @property
    def source(self) -> tuple[int, int, int]:
        """The same for all that read the same."""
        job = self.candidate.job
        return id(job.train), id(job.val), id(self.candidate.inputs)

    @property
    def group(self) -> Hashable:
        """The same for all that can be trained together."""
        job = self.candidate.job
        sizes = len(job.train), len(job.val), self.width < NARROW
        return architecture(self.layers), self.candidate.training, job.train.public.split.device, sizes

    @property
    def room(self) -> int:
        """Numbers of the widest layer for one sample, over all weight decays."""
        widths = [each.out_features for each in self.layers if isinstance(each, nn.Linear)]
        return max(self.width, *widths) * len(self.candidate.training.weight_decays)


def _batches(group: Sequence[_Chain]) -> Iterator[list[_Chain]]:
    """As many at a time as there is room for, at least one; they are sorted by their width."""
    rest = list(group)
    while rest:
        count = 1
        while count < len(rest) and rest[count].room * (count + 1) <= ROOM:
            count += 1
        yield rest[:count]
        rest = rest[count:]


@dataclass(eq=False)
class _Material:
    """What the members of a stack read and learn: S sources, D seeds, E members.

    Attributes:
        x: inputs, (S, N, elements).
        val_x: inputs, (S, elements, N).
        labels, val_labels: (E, N).
        source: of each member, (E,).
        seed: of each member, as a place in the generators, (E,).
        generators: D.
        absent: values of the secret that a member does not have, (E, values, 1).
    """

    x: Tensor
    val_x: Tensor
    labels: Tensor
    val_labels: Tensor
    source: Tensor
    seed: Tensor
    generators: list[torch.Generator]
    absent: Tensor

    @classmethod
    def of(cls, chains: Sequence[_Chain], device: torch.device) -> "_Material":
        decays = len(chains[0].candidate.training.weight_decays)
        jobs = [each.candidate.job for each in chains for _ in range(decays)]
        firsts = {each.source: each for each in chains}
        sources = {key: place for place, key in enumerate(firsts)}
        seeds = {seed: place for place, seed in enumerate(dict.fromkeys(job.seed for job in jobs))}
        width = max(each.width for each in chains)
        read = [(each.candidate.inputs, each.candidate.job) for each in firsts.values()]
        values = torch.tensor([job.n_values for job in jobs], device=device)
        return cls(
            torch.stack([_padded(inputs(job.train), width).to(device) for inputs, job in read]),
            torch.stack([_padded(inputs(job.val), width).to(device).T.contiguous() for inputs, job in read]),
            torch.stack([job.secret for job in jobs]).to(device),
            torch.stack([job.val_secret for job in jobs]).to(device),
            torch.tensor([sources[each.source] for each in chains for _ in range(decays)], device=device),
            torch.tensor([seeds[job.seed] for job in jobs], device=device),
            [torch.Generator(device).manual_seed(seed) for seed in seeds],
            (torch.arange(int(values.max()), device=device) >= values[:, None])[..., None],
        )

    def batches(self, members: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (E, elements, B) and labels (E, B) of one pass, each seed in its own order."""
        n = self.x.shape[1]
        order = torch.stack([torch.randperm(n, generator=each, device=self.x.device) for each in self.generators])
        of_member = torch.stack([self.source[members], self.seed[members]])
        streams, stream = torch.unique(of_member, dim=1, return_inverse=True)
        for start in range(0, n, size):
            rows = order[:, start : start + size]
            if rows.shape[1] == 1:  # batch normalisation needs two
                continue
            index = streams[0][:, None] * n + rows[streams[1]]
            x = self.x.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, -1)
            yield (
                _of_members(x.transpose(1, 2).contiguous(), stream),
                self.labels[members].gather(1, rows[self.seed[members]]),
            )

    def masks(
        self, members: Tensor, dropouts: Sequence[tuple[int, float]], batch: int, dtype: torch.dtype
    ) -> list[Tensor]:
        """Factors for each dropout; members of one seed share them, which makes each member none the less random."""
        found = []
        for width, share in dropouts:
            drawn = [keep_mask((width, batch), share, dtype, each) for each in self.generators]
            found.append(_of_members(torch.stack(drawn), self.seed[members]))
        return found


def _fit_together(chains: Sequence[_Chain]) -> dict[int, Guess]:
    training = chains[0].candidate.training
    device = chains[0].candidate.job.train.public.split.device
    # On raw features bfloat16 costs half a point of validation accuracy; a GPU is not kept busy by networks this small.
    narrow = device.type == "cpu" and all(each.width < NARROW for each in chains)
    native = narrow and fastest_precision(device) == "bfloat16"
    dtype = torch.bfloat16 if native else torch.float32
    decays = len(training.weight_decays)
    stack = Stack([each.layers for each in chains for _ in range(decays)], dtype).to(device)
    best = _train(stack, _Material.of(chains, device), training)
    guesses = {}
    for i, each in enumerate(chains):
        member = max(range(i * decays, (i + 1) * decays), key=lambda e: (float(best.accuracy[e]), -float(best.loss[e])))
        stack.unstack(best.parameters[member], best.statistics[member], each.layers)
        job = each.candidate.job
        net = each.net.to(device)
        guesses[each.place] = guess_of(net, each.candidate.inputs, each.candidate.inputs(job.val), job.val_secret)
    return guesses


@dataclass(eq=False)
class _Best:
    """The best epoch of each member: accuracy on validation, then cross-entropy."""

    parameters: Tensor
    statistics: Tensor
    accuracy: Tensor
    loss: Tensor

    @classmethod
    def of(cls, stack: Stack) -> "_Best":
        nothing = torch.full((len(stack.parameters),), torch.inf, device=stack.parameters.device)
        return cls(stack.parameters.detach().clone(), stack.statistics.clone(), -nothing, nothing.clone())

    def update(self, stack: Stack, members: Tensor, accuracy: Tensor, loss: Tensor) -> Tensor:
        """Take over what became better; returns which did, (members,)."""
        level = (accuracy == self.accuracy[members]) & (loss < self.loss[members])
        better = (accuracy > self.accuracy[members]) | level
        which = members[better]
        self.parameters[which], self.statistics[which] = stack.parameters.detach()[better], stack.statistics[better]
        self.accuracy[which], self.loss[which] = accuracy[better], loss[better]
        return better


def _train(stack: Stack, material: _Material, training: Training) -> _Best:
    """Train all members, each until it has run out of patience."""
    device = stack.parameters.device
    members = torch.arange(len(stack.parameters), device=device)
    decays = torch.tensor(training.weight_decays, device=device).repeat(len(members) // len(training.weight_decays))
    optimizer = torch.optim.AdamW([stack.parameters], weight_decay=0.0, fused=True)
    best, waited = _Best.of(stack), torch.zeros(len(members), device=device)
    passes = training.passes(material.x.shape[1])
    for epoch in range(passes):
        rate = training.learning_rate * (1 + math.cos(math.pi * epoch / passes)) / 2
        optimizer.param_groups[0]["lr"] = rate
        _epoch(stack, optimizer, material, members, 1 - rate * decays[members, None], training.batch_size)
        better = best.update(stack, members, *_validate(stack, material, members))
        waited[members] = torch.where(better, 0, waited[members] + 1)
        patient = waited[members] <= training.patience * passes
        if not patient.any():
            break
        if not patient.all():
            members = members[patient]
            optimizer = _narrowed(stack, optimizer, patient)
    return best


def _epoch(
    stack: Stack, optimizer: torch.optim.Optimizer, material: _Material, members: Tensor, left: Tensor, size: int
) -> None:
    """One pass; ``left`` is the share of its parameters that weight decay leaves each member in a step."""
    dropouts = stack.dropouts(material.x.shape[2])
    absent = material.absent[members] if material.absent.any() else None
    for x, labels in material.batches(members, size):
        logits = stack.logits(x, material.masks(members, dropouts, x.shape[2], stack.dtype))
        if absent is not None:
            logits = logits.masked_fill(absent, -torch.inf)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / x.shape[2]
        (stack.parameters.grad,) = torch.autograd.grad(loss, stack.parameters)
        with torch.no_grad():
            stack.parameters.mul_(left)
        optimizer.step()


@torch.no_grad()
def _validate(stack: Stack, material: _Material, members: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and cross-entropy of each member on validation, (E,)."""
    right, loss = (torch.zeros(len(members), device=members.device) for _ in range(2))
    sources, source = torch.unique(material.source[members], return_inverse=True)
    for start in range(0, material.val_x.shape[2], SLICE):
        part = slice(start, start + SLICE)
        x = _of_members(material.val_x[sources, :, part], source)
        labels = material.val_labels[members, part]
        logits = stack.logits(x).masked_fill(material.absent[members], -torch.inf)
        right += (logits.argmax(1) == labels).sum(1)
        loss += nn.functional.cross_entropy(logits, labels, reduction="none").sum(1)
    n = material.val_x.shape[2]
    return right / n, loss / n


def _narrowed(stack: Stack, optimizer: torch.optim.Optimizer, kept: Tensor) -> torch.optim.AdamW:
    """Leave members out of a stack, and of the optimiser's state."""
    (state,) = optimizer.state.values()
    stack.parameters = stack.parameters.detach()[kept].requires_grad_()
    stack.statistics = stack.statistics[kept]
    narrower = torch.optim.AdamW([stack.parameters], weight_decay=0.0, fused=True)
    narrower.state[stack.parameters] = {name: each[kept] if each.dim() else each for name, each in state.items()}
    return narrower


def _of_members(tensor: Tensor, index: Tensor) -> Tensor:
    """Entries (E, …) of a tensor (S, …); without a copy where there is one for all."""
    return tensor.expand(len(index), *tensor.shape[1:]) if len(tensor) == 1 else tensor.index_select(0, index)


def _padded(x: Tensor, width: int) -> Tensor:
    return nn.functional.pad(x, (0, width - x.shape[1]))
