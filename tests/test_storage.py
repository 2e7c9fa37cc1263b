"""Fitted obfuscators as files: whole, or refused in one sentence."""

import json

import pytest
import torch
from safetensors.torch import save_file

import splitveil as sv
from splitveil.errors import RunError
from splitveil.obfuscate import (
    METHODS,
    Affine,
    Features,
    Identity,
    Quantised,
    fit_obfuscator,
    read_obfuscator,
    write_obfuscator,
)
from splitveil.obfuscate.distilled import Distilled
from splitveil.obfuscate.encoder import Encoder, Layer
from splitveil.obfuscate.storage import _taken_apart
from test_aware import Net, images, made


@pytest.fixture(scope="module")
def split() -> sv.SplitModel:
    return made(Net(12, 4, hidden=8), "read")


@pytest.fixture(scope="module")
def features(split) -> Features:
    return Features.known(split.client(images(200, 12)).detach(), client_macs=4000)


@pytest.fixture(scope="module")
def veils(split, features) -> dict[str, object]:
    """One of every kind, with and without a hidden layer."""
    wishes = {"codebook": {"messages": 3}, "quantised": {"m": 2, "messages": 6}}
    found = {name: fit_obfuscator(name, split, features, **wishes.get(name, {"m": 2})) for name in METHODS}
    assert found["distilled"].layer is not None
    plain = Distilled.fit(split, features, m=2, epochs=0, width=0)
    found["quantised without a layer"] = Quantised.fit(split, features, m=2, messages=6, epochs=0, inner=plain)
    return found | {"plain": plain}


@pytest.mark.parametrize("name", [*METHODS, "plain", "quantised without a layer"])
def test_every_kind_comes_back_bit_for_bit(name, veils, split, tmp_path):
    veil = veils[name]
    write_obfuscator(tmp_path / "veil.safetensors", veil)
    back = read_obfuscator(tmp_path / "veil.safetensors")
    z = split.client(images(50, 12, seed=9)).detach()
    assert type(back) is type(veil)
    assert back.name == veil.name
    assert back.message == veil.message
    assert back.encode(z).dtype == veil.encode(z).dtype
    assert torch.equal(back.encode(z), veil.encode(z))
    assert torch.equal(back.decode(back.encode(z)), veil.decode(veil.encode(z)))
    facts, tensors = {}, {}
    assert _taken_apart(back, tensors, "") == _taken_apart(veil, facts, "")
    assert tensors.keys() == facts.keys()


def test_what_is_not_fitted_is_not_written(tmp_path):
    class Affine(Identity):
        """Of the same name as one that is."""

    for veil in (Identity((3,)), Affine((3,))):
        with pytest.raises(RunError, match="'none' has nothing fitted to be kept"):
            write_obfuscator(tmp_path / "veil", veil)
    assert not list(tmp_path.iterdir())


def parts(veil: object) -> tuple[dict, dict]:
    tensors: dict[str, torch.Tensor] = {}
    facts = _taken_apart(veil, tensors, "")
    return json.loads(json.dumps(facts)), {name: value.clone().contiguous() for name, value in tensors.items()}


def refuse(path, facts, tensors) -> None:
    save_file(tensors, path, {"splitveil": facts if isinstance(facts, str) else json.dumps(facts)})
    with pytest.raises(RunError) as caught:
        read_obfuscator(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["server-aware", "distilled", "quantised", "codebook"])
def test_every_tensor_and_every_fact_must_be_there_and_fit(name, veils, tmp_path):
    facts, tensors = parts(veils[name])
    path = tmp_path / "veil"
    save_file(tensors, path, {"splitveil": json.dumps(facts)})
    assert read_obfuscator(path).name == name  # as it is it is read
    for key, value in tensors.items():
        refuse(path, facts, {other: tensor for other, tensor in tensors.items() if other != key})
        refuse(path, facts, {**tensors, key: value[..., :-1].contiguous()})
        refuse(path, facts, {**tensors, key: value[None]})
        refuse(path, facts, {**tensors, key: value.long()})
    refuse(path, facts, {**tensors, "more": torch.zeros(2)})
    for key in facts:
        refuse(path, {other: value for other, value in facts.items() if other != key}, tensors)
        for wrong in (None, 3, -1.5, True, "Affine\n", [], {}, [0, 12], [-3, -4], [12.0], ["12"], [True, 12], [13]):
            refuse(path, {**facts, key: wrong}, tensors)
    refuse(path, {**facts, "extra": "1"}, tensors)


def test_the_squares_that_a_layer_averages_must_be_there_and_fit(tmp_path):
    n, shape = 48, (2, 4, 6)
    layer = Layer(torch.randn(4, 12), torch.randn(4), 2)
    veil = Distilled(
        torch.randn(3, 4), torch.randn(n), torch.randn(3, n), torch.randn(n), torch.rand(3), shape, "distilled", layer
    )  # fmt: skip
    path, (facts, tensors) = tmp_path / "veil", parts(veil)
    write_obfuscator(path, veil)
    z = torch.randn(5, *shape)
    assert torch.equal(read_obfuscator(path).encode(z), veil.encode(z))
    assert facts["layer"]["pool"] == 2
    for pool in (None, 0, 1, 3, 4, -2, 2.0, True, "2", [2], 10**30):
        refuse(path, {**facts, "layer": {**facts["layer"], "pool": pool}}, tensors)
    refuse(path, {**facts, "layer": {"kind": "Layer"}}, tensors)
    without = {name: value for name, value in tensors.items() if not name.startswith("layer.")}
    refuse(path, facts, without)
    refuse(path, {name: value for name, value in facts.items() if name != "layer"}, without)  # 4 inputs are not n


def test_a_file_cannot_name_what_is_made_of_it(veils, tmp_path):
    path, (facts, tensors) = tmp_path / "veil", parts(veils["quantised"])
    for kind in ("object", "Message", "Tables", "Identity", "os.system", "__class__", ["Affine"], {}, 0):
        refuse(path, {**facts, "kind": kind}, tensors)
        refuse(path, {**facts, "inner": {**facts["inner"], "kind": kind}}, tensors)
    # A part is no obfuscator, and an obfuscator of another sort is no part.
    refuse(path, {**facts, "inner": {**facts["inner"], "kind": "Quantised"}}, tensors)
    part_facts, part = parts(Encoder(torch.zeros(3), torch.zeros(2, 3)))
    refuse(path, part_facts, part)
    for attribute in ("encode", "__class__", "__post_init__", "m", "message"):
        refuse(path, {**facts, attribute: "x"}, tensors)
        refuse(path, facts, {**tensors, attribute: torch.zeros(2)})


def test_files_that_are_none(tmp_path, veils):
    path = tmp_path / "veil"
    with pytest.raises(RunError, match="does not exist"):
        read_obfuscator(path)
    _, tensors = parts(veils["plain"])
    for facts in ("3", "[]", '"Affine"', "null", "{", "[" * 100_000, "NaN", "{}"):
        refuse(path, facts, tensors)
    write_obfuscator(path, veils["plain"])
    whole = path.read_bytes()
    for damaged in (b"", whole[:7], whole[:100], whole[:-1], b"\x80\x04\x95" + whole, b"PK\x03\x04" + whole):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="is damaged or not a file of splitveil"):
            read_obfuscator(path)


def test_what_is_put_together_by_hand_must_fit_too():
    tensors = {"encoder": torch.zeros(2, 6), "mean": torch.zeros(6), "decoder": torch.zeros(2, 6)}
    good = {**tensors, "offset": torch.zeros(6), "energy": torch.zeros(2), "feature_shape": (2, 3), "name": "mine"}
    assert Affine(**good).message.shape == (2,)
    for key, wrong in (("decoder", torch.zeros(3, 6)), ("mean", torch.zeros(5)), ("feature_shape", (7,))):
        with pytest.raises(sv.SplitveilError, match="but the others need"):
            Affine(**{**good, key: wrong})
