"""Export: both halves outside of torch give the uncut model's answers, and nothing of this machine is in them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import splitveil as sv
from made_bundles import made_bundle, made_model
from splitveil.bundle import Bundle, EdgeManifest, Graph, ServerManifest, from_frames, read_edge, read_server, to_frames
from splitveil.cli import main
from splitveil.codec import CODINGS
from splitveil.errors import BundleError, ExportError, NoChoiceError, RankError, RunError, SplitError
from splitveil.export import export
from splitveil.profiling import measure_profile, model_digest

CUTS = [(2, 4, "patch"), (3, 8, "dense"), (4, 8, "patch"), (6, None, "patch")]
TOLERANCE = 1e-5  # of a logit, relative to the largest one


@pytest.fixture(scope="module")
def data() -> sv.Dataset:
    return sv.load_data("digit-pairs")


def graphs(folder: Path) -> tuple[Bundle[EdgeManifest], Bundle[ServerManifest], Graph, Graph]:
    edge, server = read_edge(folder / "edge"), read_server(folder / "server")
    shape = (edge.manifest.messages.components, *edge.manifest.messages.positions)
    return (
        edge, server, Graph(edge.files["edge.onnx"], edge.manifest.picture.shape, shape),
        Graph(server.files["server.onnx"], shape, (server.manifest.n_classes,)),
    )  # fmt: skip


@pytest.mark.parametrize(("cut", "m", "operator"), CUTS)
def test_the_bundles_answer_as_the_model_does(
    data: sv.Dataset, tmp_path: Path, cut: int, m: int | None, operator: Any
) -> None:
    folder = made_bundle(tmp_path / "bundle", cut=cut, m=m, operator=operator)
    edge, server, encoder, answerer = graphs(folder)
    images = data.test.images(slice(0, 33))
    split = sv.SplitModel(made_model(), at=cut)
    with torch.no_grad():
        z = split.client(images)
        factors = sv.factorise(split.server_layer, feature_shape=z.shape[1:], operator=operator, rank=m)
        for kept in {1, edge.manifest.messages.components}:  # one graph serves every m'
            veil = sv.TopComponents(factors, m=kept)
            expected = split.answer(veil, veil.encode(z)).numpy()
            frames = to_frames(
                encoder.run(images.numpy()), edge.manifest.messages, b"name", m=kept, coding="float32"
            )  # fmt: skip
            found = answerer.run(from_frames(frames, server.manifest.messages, b"name"))
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
    if m is None:
        with torch.no_grad():
            uncut = made_model()(images).numpy()
        np.testing.assert_allclose(found, uncut, rtol=0, atol=TOLERANCE * np.abs(uncut).max())


def test_integers_cost_what_their_scales_say(exported: Path, data: sv.Dataset) -> None:
    edge, server, encoder, answerer = graphs(exported)
    messages = edge.manifest.messages
    coefficients = encoder.run(data.test.images(slice(0, 64)).numpy())
    exact = answerer.run(coefficients)
    errors = {}
    for coding in CODINGS:
        frames = to_frames(coefficients, messages, b"name", m=8, coding=coding)
        errors[coding] = np.abs(answerer.run(from_frames(frames, server.manifest.messages, b"name")) - exact).max()
    assert errors["float32"] == 0
    assert 0 < errors["int8"] < errors["int4"] / 4


def test_scales_come_from_the_training_part(exported: Path, data: sv.Dataset) -> None:
    edge, _, encoder, _ = graphs(exported)
    trained = np.abs(encoder.run(data.train.images(slice(0, 2048)).numpy())).max(0)
    reach = 127 * edge.manifest.messages.scale("int8")
    assert (reach <= trained * 1.01).all()
    assert (reach > trained * 0.29).all()


def test_graphs_are_alone_in_their_files_and_silent_about_this_machine(exported: Path) -> None:
    for side in ("edge", "server"):
        content = (exported / side / f"{side}.onnx").read_bytes()
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        for word in (str(Path.cwd()), sys.prefix, "site-packages", ".py"):
            assert word.encode() not in content, word


def test_no_side_holds_what_only_the_other_needs(exported: Path) -> None:
    def numbers(side: str) -> int:
        model = onnx.load(exported / side / f"{side}.onnx")
        return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)

    split = sv.SplitModel(made_model(), at=4)
    basis = 8 * split.server_layer.weight.shape[1]  # type: ignore[union-attr, operator]
    for side, half in (("edge", split.client), ("server", split.server)):
        parameters = sum(p.numel() for p in half.parameters())
        assert parameters <= numbers(side) - basis < parameters + 500  # statistics of normalisation come on top


def test_exporting_again_gives_the_same_bundle(exported: Path, tmp_path: Path) -> None:
    again = made_bundle(tmp_path / "bundle")
    for side in ("edge", "server"):
        for path in (exported / side).iterdir():
            assert (again / side / path.name).read_bytes() == path.read_bytes(), path


def test_identity_tells_models_cuts_and_scales_apart(exported: Path, tmp_path: Path) -> None:
    other = made_bundle(tmp_path / "a", seed=1)
    fewer = made_bundle(tmp_path / "b", m=4)
    codings = made_bundle(tmp_path / "c", codings=("int8",))
    found = [read_server(folder / "server").manifest.identity for folder in (exported, other, fewer, codings)]
    assert len(set(found)) == 4


def test_hidden_labels_are_not_read(data: sv.Dataset, tmp_path: Path, exported: Path) -> None:
    class Part:
        def __init__(self, part: Any) -> None:
            self.images, self.y, self.length = part.images, part.y, len(part)

        def __len__(self) -> int:
            return self.length

    class Blind(sv.Dataset):
        def __init__(self) -> None:
            pass

        def __getattribute__(self, name: str) -> Any:
            if name == "__class__":
                return Blind
            assert name in ("train", "val", "name", "digest", "classes", "n_classes", "input_shape"), name
            value = getattr(data, name)
            return Part(value) if name in ("train", "val") else value

    export(made_model(), Blind(), tmp_path, cut=4, method="top", m=8, name="pairs")
    assert (tmp_path / "server" / "server.onnx").read_bytes() == (exported / "server" / "server.onnx").read_bytes()


def test_the_policy_is_what_is_proven_to_keep_the_answer(tmp_path: Path) -> None:
    folder = made_bundle(tmp_path / "bundle", m=32, max_drop=60.0)
    edge = read_edge(folder / "edge").manifest
    profile = sv.read_profile(folder / "edge" / "profile.json")
    choice = sv.choose(profile, cut=4, max_drop=60.0, coding="int8")
    assert (edge.policy.m, edge.policy.proven_drop) == (choice.row.m, choice.proven)
    assert edge.policy.m < 32
    assert edge.policy.coding == "int8"
    with pytest.raises(NoChoiceError):
        made_bundle(tmp_path / "other", m=1, max_drop=0.0)
    assert not (tmp_path / "other").exists()


def test_the_drop_is_proven_against_the_reference(data: sv.Dataset, tmp_path: Path) -> None:
    other = made_model(1)
    folder = made_bundle(tmp_path / "bundle", m=4, reference=other)
    profile = sv.read_profile(folder / "edge" / "profile.json")
    assert (profile.reference.own, profile.reference.weights) == (False, model_digest(other))
    own = measure_profile(made_model(), data, cuts=[4], kept=[4], epsilons=())
    with pytest.raises(ExportError, match="drops are against another model"):
        made_bundle(tmp_path / "other", m=4, reference=other, profile=own)
    assert not (tmp_path / "other").exists()
    made_bundle(tmp_path / "same", m=4, reference=other, profile=profile)


def test_a_profile_is_used_or_refused(data: sv.Dataset, tmp_path: Path) -> None:
    profile = measure_profile(made_model(), data, cuts=[4, 6], kept=[2, 8], epsilons=())
    folder = made_bundle(tmp_path / "given", profile=profile)
    assert sv.read_profile(folder / "edge" / "profile.json") == profile
    measured = made_bundle(tmp_path / "measured", m=5, profile=profile)  # it has no row of five components
    assert {row.m for row in sv.read_profile(measured / "edge" / "profile.json").rows} >= {5}
    with pytest.raises(ExportError, match="profile is of another model"):
        made_bundle(tmp_path / "other", seed=1, profile=profile)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"cut": 9}, SplitError, "no cut 9"),
        ({"m": 0}, ExportError, "at least one component"),
        ({"m": 1000}, RankError, "1000"),
        ({"cut": 2, "m": None, "operator": "dense"}, ExportError, "nothing can be left out"),
        ({"codings": ("float32",), "coding": "int8"}, ExportError, "not among the codings float32"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing_behind(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        made_bundle(tmp_path / "bundle", **settings)
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_onnx_cannot_say_is_an_export_error(data: sv.Dataset, tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x.flatten(1)[:, :4].reshape(-1, 2, 2)).abs()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd, self.last = Odd(), nn.Linear(2, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.odd(x))  # type: ignore[no-any-return]

    with pytest.raises(ExportError, match=r"ONNX has no operation for aten\.linalg_eig"):
        export(Net(), data, tmp_path / "bundle", cut="last", method="top", m=1)


def test_the_folder_must_be_free(tmp_path: Path) -> None:
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "diary.txt").write_text("mine")
    with pytest.raises(BundleError, match="holds something that is no bundle"):
        made_bundle(tmp_path)
    assert not (tmp_path / "server").exists()


# --- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pairs"
    call("train", "--data", "digit-pairs", "--out", folder, "--epochs", "1", "--recipe", "plain", "--quiet")
    return folder


def call(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "splitveil", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_command_writes_both_and_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "export",
        str(run),
        "--split",
        "4",
        "--method",
        "top",
        "--m",
        "8",
        "--out",
        str(tmp_path / "b"),
        "--quiet",
    ]
    monkeypatch.setattr(sys, "argv", ["splitveil", *arguments, "--json"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 0
    first = capsys.readouterr()
    assert "replaced" not in first.err
    said = json.loads(first.out)
    assert said["identity"] == read_server(tmp_path / "b" / "server").manifest.identity
    assert (said["frame_bytes"], said["policy"]["m"], said["name"]) == (16 + 8, 8, "digit-pairs")
    monkeypatch.setattr(sys, "argv", ["splitveil", *arguments])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr()
    assert "m'=8 as int8" in shown.out
    assert f"splitveil serve {tmp_path / 'b' / 'server'}" in shown.err
    assert f"the bundle that was in {tmp_path / 'b'} is replaced" in shown.err  # by its second writing, not its first


def test_mistakes_are_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, words in (
        (["--split", "9", "--method", "free"], "no cut 9"),
        (
            ["--split", "4", "--method", "top", "--m", "8", "--sign", str(tmp_path / "none.pem")],
            "none.pem cannot be read",
        ),
        (["--split", "4", "--method", "top", "--m", "1", "--max-drop", "0"], "is proven to drop at most 0 points"),
    ):
        monkeypatch.setattr(
            sys, "argv", ["splitveil", "export", str(run), "--out", str(tmp_path / "b"), *arguments, "--quiet"]
        )
        with pytest.raises(SystemExit) as leaving:
            main()
        said = capsys.readouterr()
        assert (leaving.value.code, said.out) == (2, "")
        assert words in said.err
        assert said.err.count("\n") == 1
    assert not (tmp_path / "b" / "edge").exists()


def test_names_that_no_server_offers_are_refused_before_anything(data: sv.Dataset, tmp_path: Path) -> None:
    for name in ("a b", "a/b", "", "ä", "x" * 101, ".hidden"):
        with pytest.raises(ExportError, match="is not to be called"):
            export(made_model(), data, tmp_path / "bundle", cut=4, m=8, name=name)


def test_a_file_in_the_way_is_named(data: sv.Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(RunError, match=r"cannot be written, as .* is a file"):
            export(made_model(), data, out, cut=4, m=8)
    assert (tmp_path / "file").read_text() == "mine"
