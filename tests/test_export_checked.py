"""Export runs both graphs before it writes: what they lose is named, and the profile says what they reach."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import made_nets as nets
import splitveil as sv
from splitveil.bundle import Graph, Messages, Policy, read_edge, read_server
from splitveil.bundle.onnx.operators import OPERATORS
from splitveil.errors import ExportError
from splitveil.export import export
from splitveil.export.agreeing import as_exported
from splitveil.export.graphs import to_onnx
from splitveil.export.halves import EdgeHalf, ServerHalf
from splitveil.export.pairs import BATCHES, Pair, check_pair
from splitveil.export.veils import Chosen
from splitveil.obfuscate import Affine, Codebook, Features, ServerAware
from splitveil.profile import Profile
from splitveil.profiling import measure_profile
from splitveil.profiling.samples import samples_of
from splitveil.profiling.shares import share
from splitveil.serve import Settings


def exported(net: nets.Net, folder: Path, *, finite: bool = False) -> tuple[Graph, Graph, sv.SplitModel, Tensor]:
    """Both graphs of a fitted export, the model and its images."""
    images, split = nets.made_images(), sv.SplitModel(net, at="mid")
    features = Features.of(split, images)
    veil = Codebook.fit(split, features, messages=3, epochs=0) if finite else ServerAware.fit(split, features, m=3)
    export(net, images, folder, cut="mid", obfuscator=veil)
    edge, server = read_edge(folder / "edge"), read_server(folder / "server")
    inside = (edge.manifest.messages.components,)
    assert server.manifest.rows_independent
    return (
        Graph(edge.files["edge.onnx"], nets.SHAPE, inside), Graph(server.files["server.onnx"], inside, (5,)), split,
        images,
    )  # fmt: skip


def test_the_longest_batch_is_that_of_a_server() -> None:
    assert BATCHES[-1] == Settings().max_batch


@pytest.mark.parametrize("finite", [False, True])
def test_what_the_converter_leaves_out_at_the_client_is_named(tmp_path: Path, finite: bool) -> None:
    with pytest.raises(ExportError, match=r"edge graph gives other messages.*aten.avg_pool2d in 'pool' \(AvgPool2d\)"):
        exported(nets.DivisorAtTheClient(), tmp_path / "bundle", finite=finite)
    assert not list(tmp_path.iterdir())


def test_what_the_converter_leaves_out_at_the_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"server graph gives other logits.*aten.avg_pool2d in 'pool' .*\d%"):
        exported(nets.DivisorAtTheServer(), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_an_operation_that_onnx_lacks_is_named_in_plain_text(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^ONNX has no operation for aten\.adaptive_max_pool2d; ") as caught:
        exported(nets.NotInOnnx(), tmp_path / "bundle")
    assert "\x1b" not in str(caught.value)


def made_pair(net: nets.Net, cut: str, feature: tuple[int, ...]) -> tuple[Pair, Affine]:
    """A network that may mix rows, exported without the checks of `export`; three random coefficients are sent."""
    split, n = sv.SplitModel(net, at=cut), int(np.prod(feature))
    rows = torch.randn(3, n, generator=torch.Generator().manual_seed(0))
    veil = Affine(rows, torch.zeros(n), rows / n, torch.zeros(n), torch.ones(3), feature, "server-aware")
    messages = Messages(components=3, positions=(), codings=("float32",), scales={}, certified=False)
    edge = to_onnx(EdgeHalf(split, veil), torch.zeros(2, *nets.SHAPE), "image", "coefficients")
    server = to_onnx(ServerHalf(split, veil, {}), torch.zeros(2, 3), "coefficients", "logits")
    return Pair.of(split, veil, False, messages, edge, server, image=nets.SHAPE, classes=5), veil


def test_a_graph_that_takes_one_length_alone_is_refused() -> None:
    with pytest.raises(ExportError, match=r"edge graph takes batches of 2 alone.*at aten\.lstm in 'rnn' \(LSTM\);"):
        made_pair(nets.Recurrent(), "fc", (128,))


def test_a_graph_that_a_bundle_may_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OPERATORS, "Conv")
    with pytest.raises(ExportError, match=r"^a bundle may not hold the exported edge graph \(.*operator Conv"):
        made_pair(nets.Net(), "mid", (8, 8, 8))


def test_a_graph_that_mixes_rows_is_refused() -> None:
    pair, _ = made_pair(nets.HardlyMixed(), "mid", (8, 8, 8))
    with pytest.raises(ExportError, match="server graph gives other"):
        check_pair(pair, nets.made_images(64))


@pytest.fixture(scope="module")
def sound() -> tuple[Pair, Affine]:
    """A pair that passes."""
    net = nets.Net()
    with torch.no_grad():  # untrained, it gives one answer to all images
        net.fc.bias -= net(nets.made_images()).mean(0)
    pair, veil = made_pair(net, "mid", (8, 8, 8))
    check_pair(pair, nets.made_images(64))
    return pair, veil


@pytest.mark.parametrize("off", [0, 1, 2])
def test_the_profile_says_what_the_graphs_reach(sound: tuple[Pair, Affine], off: int) -> None:
    (pair, veil), images = sound, nets.made_images()
    measured = measure_profile(pair.split.model, images, cuts=["mid"], obfuscator=veil, kept=[3], codings=["float32"])
    (row,) = measured.rows
    assert 0 < row.agreeing < row.samples  # random coefficients keep some answers
    policy = Policy(m=3, coding="float32", max_drop=None, proven_drop=None, confidence=None)
    wrong = _with_agreeing(measured, row.agreeing + off)
    assert as_exported(pair, wrong, policy, Chosen(veil, veil), samples_of(images)).rows == measured.rows


def test_a_profile_that_the_graphs_do_not_reach_is_refused(sound: tuple[Pair, Affine]) -> None:
    (pair, veil), images = sound, nets.made_images()
    measured = measure_profile(pair.split.model, images, cuts=["mid"], obfuscator=veil, kept=[3], codings=["float32"])
    policy = Policy(m=3, coding="float32", max_drop=None, proven_drop=None, confidence=None)
    with pytest.raises(ExportError, match=r"keep \d+.\d% of the uncut model's answers, but the profile says"):
        as_exported(
            pair,
            _with_agreeing(measured, measured.rows[0].agreeing + 3),
            policy,
            Chosen(veil, veil),
            samples_of(images),
        )


def _with_agreeing(profile: Profile, agreeing: int) -> Profile:
    (row,) = profile.rows
    there = torch.arange(row.samples) < agreeing
    return profile.model_copy(
        update={"rows": (row.model_copy(update={"agreeing": agreeing, "agreement": share(there)}),)}
    )


def test_a_softmax_at_the_end_becomes_logits(tmp_path: Path) -> None:
    edge, server, split, images = exported(nets.Probabilities(), tmp_path / "bundle")
    plain = sv.SplitModel(nets.Net(), at="mid")
    messages = torch.from_numpy(edge.run(images.numpy()))
    fitted = ServerAware.fit(plain, Features.of(plain, images), m=3)
    with torch.no_grad():
        torch.testing.assert_close(messages, fitted.encode(split.client(images)), atol=1e-3, rtol=1e-3)
        expected = (3 * plain.answer(fitted, messages)).log_softmax(1)
    np.testing.assert_allclose(server.run(messages.numpy()), expected.numpy(), atol=1e-3)
