"""Export of obfuscators that were fitted: the graphs do what they do, finite ones as certified bundles."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import splitveil as sv
from made_bundles import made_model
from made_veils import FINITE, made_veil
from splitveil.bundle import Graph, from_frames, read_edge, read_server, to_frames
from splitveil.cli import main
from splitveil.errors import ExportError, NoChoiceError, ProfileError, RankError
from splitveil.export import export
from splitveil.obfuscate import Affine, Codebook, Distilled, Tables
from splitveil.profiling import measure_profile
from splitveil.runs import obfuscate_run, train_run

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def data() -> sv.Dataset:
    return sv.load_data("digit-pairs")


@pytest.fixture(scope="module")
def split() -> sv.SplitModel:
    return sv.SplitModel(made_model(), at=4)


class Made:
    """A bundle of a fitted obfuscator."""

    def __init__(self, kind: str, split: sv.SplitModel, data: sv.Dataset, folder: Path) -> None:
        self.kind, self.folder, self.cut = kind, folder, 3 if kind == "averaging" else 4
        self.split = split = sv.SplitModel(split.model, at=self.cut)
        self.veil = made_veil(kind, split, data.train)
        self.said = export(split.model, data, folder, cut=self.cut, obfuscator=self.veil, name="pairs")
        edge, server = read_edge(folder / "edge"), read_server(folder / "server")
        self.edge, self.server = edge.manifest, server.manifest
        shape = self.veil.message.shape
        self.encoder = Graph(edge.files["edge.onnx"], self.edge.picture.shape, shape)
        self.answerer = Graph(server.files["server.onnx"], shape, (self.server.n_classes,))
        self.x = data.test.images(slice(0, 64))
        with torch.no_grad():
            self.sent = self.veil.encode(split.client(self.x))

    def answers(self, veil: Affine | Tables, message: torch.Tensor) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return self.split.answer(veil, message).numpy()


@pytest.fixture(scope="module", params=["hidden", "averaging", *FINITE])
def made(
    request: pytest.FixtureRequest, split: sv.SplitModel, data: sv.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    return Made(request.param, split, data, tmp_path_factory.mktemp(request.param) / "bundle")


def agree(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def test_both_graphs_do_what_the_obfuscator_does(made: Made) -> None:
    found = made.encoder.run(made.x.numpy())
    if made.veil.message.levels is None:
        agree(found, made.sent.numpy())
    else:
        # Where a score or coefficient lies at a boundary rounding may decide; it hardly ever does.
        assert (found == made.sent.numpy()).mean() > 0.98
    agree(made.answerer.run(made.sent.float().numpy()), made.answers(made.veil, made.sent))


def test_frames_carry_what_the_manifest_says(made: Made) -> None:
    messages, policy = made.server.messages, made.edge.policy
    assert messages == made.edge.messages
    assert (made.edge.layer, made.edge.cut, made.edge.operator, made.edge.method) == (
        f"layer{made.cut}", made.cut, "dense", made.veil.name,
    )  # fmt: skip
    assert messages.levels == made.veil.message.levels
    assert messages.certified == (made.kind in FINITE)
    assert messages.distinct == made.veil.message.distinct
    coding = "index" if made.kind in FINITE else "int8"
    assert (policy.m, policy.coding) == (messages.components, coding)
    frames = to_frames(
        made.sent.float().numpy(), messages, made.edge.short_identity, m=policy.m, coding=policy.coding
    )  # fmt: skip
    assert {len(frame) for frame in frames} == {made.said.frame_bytes}
    read = from_frames(frames, messages, made.server.short_identity)
    step = 0.51 * messages.scale("int8") if coding == "int8" else 0
    clipped = np.abs(read) >= 126 * messages.scale("int8") if coding == "int8" else np.zeros_like(read, bool)
    assert ((np.abs(read - made.sent.numpy()) <= step) | clipped).all()
    row = sv.read_profile(made.folder / "edge" / "profile.json").rows[-1]
    assert (row.method, row.messages) == (made.veil.name, made.veil.message.distinct)


def test_no_side_holds_what_only_the_other_needs(made: Made) -> None:
    def numbers(side: str) -> int:
        model = onnx.load(made.folder / side / f"{side}.onnx")
        return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)

    row = sv.read_profile(made.folder / "edge" / "profile.json").rows[-1]
    client, server = (sum(p.numel() for p in half.parameters()) for half in (made.split.client, made.split.server))
    assert client <= numbers("edge") - row.encoder_parameters < client + 500
    table = made.veil.table if isinstance(made.veil, Tables) else made.veil.decoder
    assert server <= numbers("server") - table.numel() < server + 1500  # the offset, and statistics of normalisation


def test_one_bundle_serves_every_prefix(made: Made, data: sv.Dataset, tmp_path: Path) -> None:
    if isinstance(made.veil, Tables):
        for settings in ({"m": 1}, {"messages": 4}):
            with pytest.raises(ExportError, match="settled when it was fitted"):
                export(made.split.model, data, tmp_path / "b", cut=made.cut, obfuscator=made.veil, **settings)
        return
    for m in (1, 3):
        shorter = made.veil.keep(m)
        cut = np.zeros_like(made.sent.numpy())
        cut[:, :m] = made.sent[:, :m].numpy()
        agree(made.answerer.run(cut), made.answers(shorter, made.sent[:, :m]))


def test_a_prefix_is_exported_with_the_profile_of_the_whole(
    split: sv.SplitModel, data: sv.Dataset, tmp_path: Path
) -> None:
    veil = made_veil("server-aware", split, data.train)
    profile = measure_profile(split.model, data, cuts=[4], obfuscator=veil, kept=[2])  # anew it would have more rows
    said = export(split.model, data, tmp_path / "a", cut=4, obfuscator=veil, m=2, profile=profile, max_drop=60)
    assert sv.read_profile(tmp_path / "a" / "edge" / "profile.json") == profile
    assert said.edge.messages.components == 2
    assert said.edge.policy.m == sv.choose(profile, max_drop=60).row.m <= 2
    other = made_veil("covariance-aware", split, data.train)
    again = export(split.model, data, tmp_path / "b", cut=4, obfuscator=other, profile=profile, codings=["int8"])
    rows = sv.read_profile(tmp_path / "b" / "edge" / "profile.json").rows
    assert {row.method for row in rows} == {"covariance-aware"}  # measured, since the profile is of another
    assert again.server.messages.codings == ("int8",)


def test_images_without_labels_are_enough_where_the_obfuscator_is_known(
    split: sv.SplitModel, data: sv.Dataset, tmp_path: Path
) -> None:
    veil, images = made_veil("codebook", split, data.train), data.val.images(slice(0, 40))
    said = export(split.model, images, tmp_path / "a", cut="layer4", obfuscator=veil, max_drop=20)
    assert said.edge.classes == tuple(map(str, range(10)))
    assert said.edge.picture.crop is None
    assert said.edge.policy.proven_drop == 20  # from agreement: it has no labels
    assert not sv.read_profile(tmp_path / "a" / "edge" / "profile.json").data.labelled
    with pytest.raises(NoChoiceError):
        export(split.model, images, tmp_path / "b", cut=4, obfuscator=veil, max_drop=0)
    for settings, error, words in (
        (
            {"obfuscator": veil, "classes": ["a", "b"]},
            ExportError,
            "2 names of classes are given, but the model has 10",
        ),
        ({"obfuscator": veil, "coding": "int8"}, ExportError, "coded as index alone"),
        ({"obfuscator": veil, "operator": "dense"}, ExportError, "have an operator"),
        ({"obfuscator": veil, "cut": 5}, ProfileError, "cut where it was fitted"),
        ({"m": 4}, ExportError, "images alone are to measure on"),
    ):
        with pytest.raises(error, match=words):
            export(split.model, images, tmp_path / "c", **{"cut": 4, **settings})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({}, RankError, "'distilled' needs m"),
        ({"method": "codebook"}, RankError, "needs messages"),
        ({"method": "top"}, ExportError, "'top' needs m"),
        ({"method": "free", "m": 3}, ExportError, "without m"),
        ({"method": "top", "m": 3, "messages": 4}, ExportError, "takes no number of messages"),
        (
            {"method": "top", "m": 3, "codings": ("int8", "index")},
            ExportError,
            "only finite messages are coded as index",
        ),
        ({"method": "magic", "m": 3}, RankError, "no method 'magic'"),
    ],
)
def test_settings_that_do_not_go_together(
    split: sv.SplitModel, data: sv.Dataset, tmp_path: Path, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        export(split.model, data, tmp_path / "bundle", cut=4, **settings)
    assert not (tmp_path / "bundle").exists()


def test_the_fit_reads_no_label(data: sv.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Distilled.fit.__func__.__kwdefaults__, "epochs", 1)  # type: ignore[attr-defined]
    model, bare = made_model(), data.without_hidden()
    one = export(model, bare, tmp_path / "a", cut=6, m=2)
    shuffled = sv.Dataset(
        name=data.name, train=replace(bare.train, y=bare.train.y.flip(0)), val=bare.val, test=bare.test,
        classes=data.classes, hidden_classes={},
    )  # fmt: skip
    two = export(model, shuffled, tmp_path / "b", cut=6, m=2)
    assert (one.edge.method, one.edge.messages.components) == ("distilled", 2)
    assert one.server.identity == two.server.identity


# --- the commands


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pairs"
    train_run(folder, sv.load_data("digit-pairs"), sv.Recipe(epochs=1), source="digit-pairs")
    return folder


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    monkeypatch.setattr(sys, "argv", ["splitveil", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main()
    shown = capsys.readouterr()
    return leaving.value.code, shown.out, shown.err


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of one epoch."""
    for kind in (Distilled, Codebook):
        monkeypatch.setitem(kind.fit.__func__.__kwdefaults__, "epochs", 1)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("quick")
def test_a_plain_run_is_exported_by_the_best_obfuscator(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export_it = ("export", run, "--split", 6, "--out", tmp_path / "b")
    code, out, err = said(capsys, monkeypatch, *export_it, "--m", 3, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["method"], facts["components"], facts["messages"]) == ("distilled", 3, None)
    assert read_server(tmp_path / "b" / "server").manifest.identity == facts["identity"]
    for options, words in (
        ((), "--method distilled needs --m"),
        (("--method", "codebook", "--m", 3), "takes no --m"),
        (("--method", "codebook"), "needs --messages"),
        (("--method", "free", "--messages", 4), "takes no --messages"),
    ):
        code, out, err = said(capsys, monkeypatch, *export_it, *options)
        assert (code, out) == (2, "")
        assert words in " ".join(err.replace("│", " ").split())


@pytest.mark.usefixtures("quick")
def test_a_run_with_an_obfuscator_needs_no_further_options(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fitted"
    obfuscate_run(folder, run, at=6, method="codebook", messages=12)
    code, out, err = said(capsys, monkeypatch, "profile", folder, "--quiet")
    assert code == 0, err
    count = sv.read_profile(folder / "profile.json").rows[0].messages
    assert f"M={count}, " in out
    code, out, err = said(capsys, monkeypatch, "choose", folder)
    assert code == 0, err
    assert f"cut 6 with {count} different messages" in " ".join(out.split())
    assert f"splitveil export {folder} --out FOLDER\n" in err
    code, out, err = said(capsys, monkeypatch, "export", folder, "--out", tmp_path / "b", "--quiet")
    assert code == 0, err
    assert f"certified: one of {count} different messages" in " ".join(out.split())
    assert read_server(tmp_path / "b" / "server").manifest.messages.distinct == count
    for options, words in ((("--m", 1), "settled when it was fitted"), (("--method", "top"), "which settles --method")):
        code, out, err = said(capsys, monkeypatch, "export", folder, "--out", tmp_path / "c", *options, "--quiet")
        assert (code, out) == (2, "")
        assert words in " ".join(err.replace("│", " ").split())


@pytest.mark.usefixtures("quick")
def test_an_obfuscator_is_fitted_for_a_profile(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = ("profile", run, "--out", tmp_path, "--quiet", "--method", "server-aware")
    code, out, err = said(capsys, monkeypatch, *measure, "--split", 6, "--m", 5, "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["m"], row["coding"]) for row in rows] == [
        (m, coding) for m in (1, 2, 4, 5) for coding in ("float32", "int8", "int4")
    ]
    assert {(row["method"], row["cut"]) for row in rows} == {("server-aware", 6)}
    for options, words in (
        (("--m", 5), "is measured at one cut"),
        (("--m", 5, "--split", 5, "--split", 6), "is measured at one cut"),
        (("--split", 6), "needs --m"),
        (("--split", 6, "--m", 5, "--operator", "dense"), "takes no --operator"),
    ):
        code, out, err = said(capsys, monkeypatch, *measure, *options)
        assert (code, out) == (2, "")
        assert words in " ".join(err.replace("│", " ").split())
