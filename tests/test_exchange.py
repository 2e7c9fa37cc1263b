"""Client and server over bytes: the same answers, honest lengths, and refusals of what is not theirs."""

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import splitveil as sv
from splitveil import wire
from splitveil.errors import WireError
from splitveil.exchange import identity
from splitveil.linear import Factors
from splitveil.message import Message, Obfuscator

CUTS = range(1, 7)
CASES = [(at, operator) for at in CUTS for operator in ("dense", "patch") if operator == "dense" or at < 4]


@pytest.fixture(scope="module")
def model() -> sv.Table1Net:
    torch.manual_seed(7)
    net = sv.Table1Net((1, 8, 8), 3)
    with torch.no_grad():  # batch statistics that are not those of a fresh network
        net.train()(torch.rand(64, 1, 8, 8))
    return net.eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def cut(
    model: sv.Table1Net, at: int, operator: str = "dense", rank: int | None = None
) -> tuple[sv.SplitModel, Factors]:
    split = sv.SplitModel(model, at=at)
    shape = tuple(split.client(torch.zeros(1, 1, 8, 8)).shape[1:])
    return split, sv.factorise(split.server_layer, feature_shape=shape, operator=operator, rank=rank)  # type: ignore[arg-type]


def distortion_free(factors: Factors) -> sv.DistortionFree:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sv.PrivacyWarning)  # where there is no null space
        return sv.DistortionFree(factors)


def veils(factors: Factors) -> list[Obfuscator]:
    half = len(factors.s) // 2
    return [
        sv.TopComponents(factors, m=0),
        sv.TopComponents(factors, m=half),
        distortion_free(factors),
        sv.DistortionBounded(factors, epsilon=0.3, relative=True),
    ]


@pytest.mark.parametrize(("at", "operator"), CASES)
def test_answers_from_bytes_are_the_answers_from_messages(
    model: sv.Table1Net, x: Tensor, at: int, operator: str
) -> None:
    split, factors = cut(model, at, operator)
    for veil in [*veils(factors), sv.Identity(factors.feature_shape)]:
        frames = sv.Client(split, veil).send(x)
        with torch.no_grad():
            expected = split.answer(veil, veil.encode(split.client(x)))
        torch.testing.assert_close(sv.Server(split, veil).answer(frames), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("at", "operator"), CASES)
def test_distortion_free_answers_are_the_uncut_models(model: sv.Table1Net, x: Tensor, at: int, operator: str) -> None:
    split, factors = cut(model, at, operator)
    veil = distortion_free(factors)
    with torch.no_grad():
        expected = model(x)
    answers = sv.Server(split, veil).answer(sv.Client(split, veil).send(x))
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(answers[0], expected[1], atol=1e-3)  # the images do differ in their answers


@pytest.mark.parametrize(("at", "operator"), [(4, "dense"), (2, "patch")])
def test_a_bounded_messages_length_is_its_own(model: sv.Table1Net, x: Tensor, at: int, operator: str) -> None:
    split, factors = cut(model, at, operator)
    z = split.client(x[:1]).detach()
    veil = sv.DistortionBounded(factors, epsilon=float(factors.apply(z).norm()) / 2)
    scale = torch.tensor([0.0, 0.4, 0.8, 2.0, 20.0]).reshape(-1, *(1,) * len(factors.feature_shape))
    frames = sv.Client(split, veil).send_features(z * scale)  # from nothing to far beyond epsilon
    messages, kept = sv.Server(split, veil).read(frames)
    positions = math.prod(factors.positions)
    assert [len(frame) for frame in frames] == [16 + 4 * int(count) * positions for count in kept]
    assert kept[0] == 0
    assert kept.tolist() == sorted(kept.tolist())
    assert len(set(kept.tolist())) > 2
    assert all(
        not message[count:].any() and message[count - 1].any()
        for message, count in zip(messages, kept, strict=True)
        if count
    )


def test_a_fixed_message_is_sent_whole_even_if_it_is_zero(model: sv.Table1Net) -> None:
    split, factors = cut(model, 4)
    veil = sv.TopComponents(factors, m=6)
    frames = sv.Client(split, veil).send_features(torch.zeros(2, *factors.feature_shape))
    assert [len(frame) for frame in frames] == [16 + 4 * 6] * 2


def test_the_identity_names_model_cut_and_basis_but_not_the_length(model: sv.Table1Net) -> None:
    split, factors = cut(model, 4)
    whole = identity(split, sv.TopComponents(factors, m=1))
    assert len(whole) == wire.IDENTITY_BYTES
    assert whole == identity(split, sv.TopComponents(factors, m=8)) == identity(split, distortion_free(factors))
    assert whole == identity(split, sv.DistortionBounded(factors, epsilon=1.0))

    torch.manual_seed(8)
    other_model, other_cut = cut(sv.Table1Net((1, 8, 8), 3), 4), cut(model, 5)
    turned = Factors(**{**vars(factors), "vh": factors.vh.flip(0)})
    names = [
        *(identity(sv.SplitModel(model, at=at), sv.Identity((n,))) for at, n in ((4, 64), (5, 128), (6, 64))),
        identity(split, sv.TopComponents(turned, m=1)),
        *(identity(s, sv.TopComponents(f, m=1)) for s, f in (other_model, other_cut)),
    ]
    assert len({whole, *names}) == 7


def test_the_identity_is_of_the_numbers_not_of_how_they_lie_in_memory(model: sv.Table1Net) -> None:
    split, factors = cut(model, 3)
    before = identity(split, sv.TopComponents(factors, m=1))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not model.layer2[0].weight.is_contiguous()
    assert identity(split, sv.TopComponents(factors, m=1)) == before


def test_a_change_of_one_weight_changes_the_identity(x: Tensor) -> None:
    torch.manual_seed(9)
    net = sv.Table1Net((1, 8, 8), 3)
    split, factors = cut(net, 4)
    veil = sv.TopComponents(factors, m=4)
    frames = sv.Client(split, veil).send(x)
    with torch.no_grad():
        net.layer6.bias[0] += 1e-3
    with pytest.raises(WireError, match="different models or bases"):
        sv.Server(split, veil).answer(frames)


def test_a_server_refuses_frames_of_another_model_cut_or_basis(model: sv.Table1Net, x: Tensor) -> None:
    split, factors = cut(model, 4)
    frames = sv.Client(split, sv.TopComponents(factors, m=4)).send(x)
    torch.manual_seed(10)
    strangers = [cut(sv.Table1Net((1, 8, 8), 3), 4), cut(model, 5), cut(model, 4, rank=5), cut(model, 2, "patch")]
    for other_split, other_factors in strangers:
        with pytest.raises(WireError, match="different models or bases"):
            sv.Server(other_split, sv.TopComponents(other_factors, m=4)).answer(frames)


def test_a_server_refuses_a_length_it_did_not_agree_to(model: sv.Table1Net, x: Tensor) -> None:
    split, factors = cut(model, 4)
    frames = sv.Client(split, sv.TopComponents(factors, m=4)).send(x)
    with pytest.raises(WireError, match="5 components, but one has 4"):
        sv.Server(split, sv.TopComponents(factors, m=5)).answer(frames)


def test_a_feature_that_is_not_finite_is_never_sent(model: sv.Table1Net, x: Tensor) -> None:
    split, factors = cut(model, 4)
    client = sv.Client(split, sv.TopComponents(factors, m=4))
    with pytest.raises(WireError, match="check the input"):
        client.send(torch.full_like(x, torch.nan))


def test_sending_leaves_no_gradient_and_no_batch_is_no_frames(model: sv.Table1Net, x: Tensor) -> None:
    split, factors = cut(model, 4)
    veil = sv.TopComponents(factors, m=4)
    client, server = sv.Client(split, veil), sv.Server(split, veil)
    assert client.send(x[:0]) == []
    assert server.answer([]).shape == (0, 3)
    assert not server.answer(client.send(x.requires_grad_())).requires_grad


# --- finite messages


@dataclass(frozen=True)
class Bins:
    """The first numbers of a feature as digits; decodes to a feature of the bins' lower ends, and zeros."""

    levels: tuple[int, ...]
    size: int
    name: str = "bins"

    @property
    def message(self) -> Message:
        return Message((len(self.levels),), dtype="int64", levels=self.levels)

    def encode(self, z: Tensor) -> Tensor:
        levels = torch.tensor(self.levels)
        return (z[:, : len(self.levels)].sigmoid() * levels).long().clamp(max=levels - 1)

    def decode(self, message: Tensor) -> Tensor:
        assert message.dtype == torch.int64
        shares = (message + 0.5) / torch.tensor(self.levels)
        return torch.cat([shares.logit(), torch.zeros(len(message), self.size - len(self.levels))], dim=1)

    def finish(self, message: Tensor) -> tuple[Tensor, ...]:
        raise AssertionError(message)


@pytest.mark.parametrize(("levels", "size"), [((5, 7, 11), 2), ((3,), 1), ((256,) * 16, 16)])
def test_digits_cross_as_one_index_and_come_back(
    model: sv.Table1Net, x: Tensor, levels: tuple[int, ...], size: int
) -> None:
    split, _ = cut(model, 4)
    z = 2 * torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    veil = Bins(levels, 64)
    digits = veil.encode(z)
    assert len(digits.unique(dim=0)) > 2
    frames = sv.Client(split, veil).send_features(z)
    assert {len(frame) for frame in frames} == {16 + size}
    server = sv.Server(split, veil)
    found, kept = server.read(frames)
    assert found.dtype == torch.int64
    torch.testing.assert_close(found, digits, rtol=0, atol=0)
    assert kept.tolist() == [len(levels)] * 9
    with torch.no_grad():
        torch.testing.assert_close(server.answer(frames), split.answer(veil, digits), rtol=0, atol=0)
    assert sv.Client(split, veil).send(x[:0]) == []
    assert server.answer([]).shape == (0, 3)


def test_levels_are_part_of_the_identity(model: sv.Table1Net, x: Tensor) -> None:
    split, _ = cut(model, 4)
    frames = sv.Client(split, Bins((5, 7, 11), 64)).send(x)
    with pytest.raises(WireError, match="different models or bases"):
        sv.Server(split, Bins((5, 11, 7), 64)).answer(frames)


@dataclass(frozen=True, eq=False)
class Table:
    """An obfuscator with tensors of its own, and with a part that has some."""

    table: Tensor
    inner: object
    message: ClassVar[Message] = Message((1,), dtype="int64", levels=(4,))


def test_an_obfuscator_s_own_tensors_are_part_of_the_identity(model: sv.Table1Net) -> None:
    split, _ = cut(model, 4)
    inner = Table(torch.ones(2), None)
    veils = [
        Table(torch.zeros(3), inner),
        Table(torch.ones(3), inner),
        Table(torch.zeros(3), Table(torch.zeros(2), None)),
    ]
    names = [identity(split, veil) for veil in veils]  # type: ignore[arg-type]
    assert len(set(names)) == 3
    assert names[0] == identity(split, Table(torch.zeros(3), Table(torch.ones(2), None)))  # type: ignore[arg-type]


def test_digits_and_coefficients_do_not_pass_for_each_other(model: sv.Table1Net, x: Tensor) -> None:
    split, factors = cut(model, 4)
    bins, real = Bins((5, 7, 11), 64), sv.TopComponents(factors, m=3)
    index, floats = sv.Client(split, bins).send(x), sv.Client(split, real).send(x)
    servers = [sv.Server(split, veil) for veil in (bins, real)]
    for server, frames in zip(servers, (floats, index), strict=True):
        object.__setattr__(server, "identity", wire.decode(frames[0]).identity)  # as if it were the same model
        with pytest.raises(WireError, match=r"but a frame (of index|with 3 values coded as float32) came"):
            server.read(frames)


def test_a_feature_that_is_not_finite_is_not_sent(model: sv.Table1Net, x: Tensor) -> None:
    """Digits do not show it: a comparison with NaN is a digit as any other."""
    split = sv.SplitModel(model, at=4)
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    veil = sv.Codebook.fit(split, sv.Features.of(split, images), messages=2, epochs=1)
    client, z = sv.Client(split, veil), split.client(x)
    assert len(client.send_features(z)) == len(x)
    z[1, 0] = math.nan
    with pytest.raises(WireError, match="not finite"):
        client.send_features(z)
