"""The halves are the model, bit for bit, at every cut that is offered: random networks, traced and exported."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import splitveil as sv
from made_networks import CHANNELS, PLANS, SIDE, Plan, network_of
from splitveil.errors import ModelError
from splitveil.models import load_exported
from splitveil.split import possible_cuts


def hold(model: nn.Module) -> int:
    """Assert the promise at every cut, and return how many there are."""
    images = torch.rand(7, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    names = possible_cuts(model)
    for name in names:
        split = sv.SplitModel(model, name)
        with torch.no_grad():
            for length in (1, 2, 3, 7):
                x = images[:length].clone()
                z = split.client(x)
                kept = z.clone()
                answer = split.server(z)
                assert torch.equal(answer, model(images[:length].clone())), (name, length)
                assert torch.equal(x, images[:length]), (name, "the client changes its images")
                assert torch.equal(z, kept), (name, "the server changes the feature")
                assert torch.equal(split.server(split.client(x)), answer), (name, "second time")
    return len(names)


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_the_halves_are_the_model_at_every_cut(plan: Plan) -> None:
    assert hold(network_of(plan)) > 0


def exported(plan: Plan, path: Path) -> nn.Module | None:
    """The network from a file, with the hooks and writes that torch.export keeps; None where it cannot export it."""
    model = network_of(plan).requires_grad_(False)  # torch.export refuses some writes only for their gradients
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        program = torch.export.export(model, (torch.rand(2, CHANNELS, SIDE, SIDE),), dynamic_shapes=shapes)
    except Exception:  # whatever torch.export raises of what it cannot follow
        return None
    torch.export.save(program, path)
    try:
        return load_exported(path)
    except ModelError:
        return None


@settings(max_examples=6, deadline=None)
@given(PLANS)
def test_the_halves_of_an_exported_network_are_it_at_every_cut(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan
) -> None:
    model = exported(plan, tmp_path_factory.mktemp("program") / "model.pt2")
    if model is not None:
        assert hold(model) > 0
