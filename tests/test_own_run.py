"""An obfuscator fitted to a user's own model and unlabelled images: the run's folder, trust, and the commands."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image

import splitveil as sv
from made_models import residual_net, write_images, write_program
from made_server import serving
from splitveil import obfuscate
from splitveil.cli.fitted import check_options
from splitveil.cli.methods import Fit
from splitveil.data import Dataset, DataWarning, Part, Unlabelled, load_unlabelled
from splitveil.errors import DataError, ModelError, RunError
from splitveil.export import export
from splitveil.picture import read_photo
from splitveil.profiling.samples import samples_of
from splitveil.runs import MANIFEST, OBFUSCATOR, Run, obfuscate_run, train_run
from test_cli import Splitveil

CUT = "layer2.1"
CODE = "from made_models import residual_net\ndef net():\n    return residual_net(1)\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, so that it was never here before."""
    monkeypatch.setenv("SPLITVEIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_program(tmp_path_factory.mktemp("program") / "net.pt2", residual_net())


@pytest.fixture
def splitveil(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Splitveil:
    monkeypatch.delenv("SPLITVEIL_DATA", raising=False)
    return Splitveil(capsys, monkeypatch)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run of splitveil's own, on images in class folders."""
    for label in ("left", "right"):
        write_images(tmp_path / "classes" / label, 60, channels=3, depth=False, seed=len(label))
    source, options = f"folder:{tmp_path / 'classes'}", {"size": [8, 8]}
    data = sv.load_data(source, **options)
    train_run(tmp_path / "trained", data, sv.Recipe(epochs=1), source=source, options=options)
    return tmp_path / "trained"


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a user's module that no other test has imported."""
    folder = tmp_path / "beside"
    folder.mkdir()
    (folder / "my_nets.py").write_text(CODE)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    return folder


def fitted(out: Path, model: object, photos: Path | None, **settings: Any) -> Run:
    obfuscate_run(out, str(model), **{"at": CUT, "method": "server-aware", "m": 2, "images": photos, **settings})
    return Run(out)


# Images without labels


def test_images_of_any_folder_are_read_at_the_models_size(photos: Path) -> None:
    images = load_unlabelled(photos, (1, 8, 8))
    assert images.fitted.shape == (32, 1, 8, 8)
    assert images.measured.shape == (8, 1, 8, 8)
    assert images.fitted.dtype == torch.uint8
    everything = {row.numpy().tobytes() for row in torch.cat([images.fitted, images.measured])}
    assert len(everything) == 40
    with Image.open(photos / "deep" / "er" / "1.png") as one:  # of that size already
        assert one.tobytes() in everything
    assert load_unlabelled(write_images(photos.parent / "colour", 5, channels=3), (3, 6, 4)).fitted.shape[1:] == (
        3,
        6,
        4,
    )


def test_which_part_an_image_is_in_depends_on_its_pixels_alone(photos: Path, cache: Path) -> None:
    images = load_unlabelled(photos, (1, 8, 8))
    other = photos.parent / "other"
    other.mkdir()
    for index, file in enumerate(sorted(photos.rglob("*.png"), reverse=True)):
        shutil.copy(file, other / f"{index:02}.png")
        shutil.copy(file, other / f"again-{index:02}.png")
    twice = load_unlabelled(other, (1, 8, 8))
    assert [row.tolist() for row in twice.measured[::2]] == [row.tolist() for row in images.measured]
    assert [row.tolist() for row in twice.measured[1::2]] == [row.tolist() for row in images.measured]
    assert twice.digest != images.digest
    # The cache gives the same, and a damaged one does no harm.
    reports: list[object] = []
    assert load_unlabelled(photos, (1, 8, 8), progress=lambda *r: reports.append(r[2])).digest == images.digest
    assert set(reports) == {"reading"}
    for file in cache.glob("images-*.safetensors"):
        file.write_bytes(file.read_bytes()[:-7])
    assert load_unlabelled(photos, (1, 8, 8)).digest == images.digest


def test_files_that_are_no_images_are_left_out_or_refused(photos: Path, tmp_path: Path) -> None:
    (photos / "notes.txt").write_text("not read")
    (photos / "broken.png").write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=r"1 of the 41 files of .*photos cannot be used, more than 1 %.*broken.png: not an"
    ):
        load_unlabelled(photos, (1, 8, 8))
    write_images(photos / "more", 120, seed=1)
    with pytest.warns(DataWarning, match="left out 2"):
        found = load_unlabelled(photos, (1, 8, 8))
    assert found.skipped == ("broken.png: not an image", "notes.txt: not an image")
    with pytest.raises(DataError, match="there is no folder"):
        load_unlabelled(tmp_path / "absent", (1, 8, 8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no image files"):
        load_unlabelled(tmp_path / "empty", (1, 8, 8))
    with pytest.raises(DataError, match="holds 2 different images; give at least three"):
        load_unlabelled(write_images(tmp_path / "two", 2), (1, 8, 8))
    with pytest.raises(DataError, match="the model takes 4 channels"):
        load_unlabelled(photos, (4, 8, 8))


# A run's folder


def test_a_run_of_a_file_holds_all_that_is_needed(program: Path, photos: Path, tmp_path: Path) -> None:
    run = fitted(tmp_path / "run", program, photos, classes=["cat", "dog", "owl"], seed=3)
    assert {path.name for path in run.folder.iterdir()} == {MANIFEST, OBFUSCATOR, "model.pt2"}
    split, veil, images = run.split(), run.obfuscator(), run.samples()
    assert isinstance(images, Unlabelled)
    # Scales of integers come from the images of the fit, so that those measured have decided nothing.
    samples = samples_of(images)
    assert isinstance(samples.training, Part)
    assert samples.training.pixels is images.fitted
    torch.testing.assert_close(samples.images(slice(0, 99)), images.measured / 255, rtol=0, atol=0)
    assert samples.facts == samples_of(images.measured / 255).facts
    assert split.layer_name == CUT
    assert veil.name == "server-aware"
    assert run.classes(images) == ("cat", "dog", "owl")
    assert images.digest == load_unlabelled(photos, (1, 8, 8)).digest
    measured = images.measured / 255
    torch.testing.assert_close(split.model(measured), residual_net()(measured), rtol=0, atol=0)
    # Fitted to the other part, as the library does it.
    again = obfuscate.fit_obfuscator(
        "server-aware", split, load_unlabelled(photos, (1, 8, 8)).fitted / 255, m=2, seed=3
    )
    z = split.client(measured)
    torch.testing.assert_close(veil.encode(z), again.encode(z))
    assert split.answer(veil, veil.encode(z)).shape == (8, 3)


def test_a_run_keeps_no_image_that_the_model_was_exported_with(photos: Path, tmp_path: Path) -> None:
    private = torch.rand(50, 1, 8, 8)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(residual_net(), (private[:2],), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    images = [each.numpy().tobytes() for each in private]
    with_images = (tmp_path / "net.pt2").read_bytes()
    assert all(image in with_images for image in images)  # all fifty, of which two were shown
    run = fitted(tmp_path / "run", tmp_path / "net.pt2", photos)
    kept = b"".join(path.read_bytes() for path in run.folder.iterdir())
    assert len(kept) < len(with_images)
    assert not any(image in kept for image in images)
    torch.testing.assert_close(run.model()(private), residual_net()(private), rtol=0, atol=0)


def test_a_run_of_a_function_keeps_the_weights_that_it_had(beside: Path, photos: Path, tmp_path: Path) -> None:
    run = fitted(tmp_path / "run", "my_nets:net", photos, size=(8, 8))
    assert json.loads((run.folder / MANIFEST).read_text())["model"] == {
        "name": "function", "reference": "my_nets:net", "input_shape": [1, 8, 8], "n_classes": 3,
    }  # fmt: skip
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = residual_net()(images)
    del sys.modules["my_nets"]
    # Other weights on each call, as of a function that only builds.
    (beside / "my_nets.py").write_text("from made_models import ResidualNet\nnet = ResidualNet\n")
    torch.testing.assert_close(run.model()(images), wanted, rtol=0, atol=0)
    del sys.modules["my_nets"]
    (beside / "my_nets.py").write_text("from torch import nn\ndef net():\n    return nn.Flatten()\n")
    with pytest.raises(RunError, match="are of another model"):
        run.model()


def test_a_run_of_a_training_is_fitted_to_its_own_data_or_to_images(trained: Path, tmp_path: Path) -> None:
    run, before = fitted(tmp_path / "run", trained, None, at=4), Run(trained)
    assert (run.manifest.model, run.manifest.data) == (before.manifest.model, before.manifest.data)
    assert run.data().digest == before.data().digest
    assert run.split().layer_name == "layer4"
    assert run.classes(run.data()) == ("left", "right")
    x = run.data().test.x
    torch.testing.assert_close(run.model()(x), before.model()(x), rtol=0, atol=0)
    other = fitted(tmp_path / "other", trained, write_images(tmp_path / "photos"), at="layer5")
    images = other.samples()
    assert isinstance(images, Unlabelled)
    assert images.measured.shape == (8, 3, 8, 8)
    assert other.classes(images) == ("0", "1")
    with pytest.raises(RunError, match="fitted to images without labels"):
        other.data()
    # And what was fitted once can be fitted again, to the same images.
    assert fitted(tmp_path / "third", other.folder, None, m=1, at=5).manifest.data == other.manifest.data
    with pytest.raises(RunError, match="was only trained; fit an obfuscator to it with 'splitveil obfuscate'"):
        before.obfuscator()
    with pytest.raises(ModelError, match="takes images of 8x8 pixels; drop --size"):
        fitted(tmp_path / "fourth", trained, None, size=(9, 8))


def test_changed_files_are_refused(program: Path, photos: Path, tmp_path: Path) -> None:
    run = fitted(tmp_path / "run", program, photos)
    (run.folder / "model.pt2").write_bytes(program.read_bytes() + b"\0")
    with pytest.raises(RunError, match="is not the file that this run was made of"):
        run.model()
    write_images(photos, 1, seed=9)
    with pytest.raises(RunError, match="have changed since"):
        run.samples()
    (run.folder / OBFUSCATOR).unlink()
    with pytest.raises(RunError, match="does not exist"):
        run.obfuscator()
    (run.folder / "model.pt2").unlink()
    with pytest.raises(RunError, match="holds no finished training"):
        Run(run.folder)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"model": "nowhere.pt2"}, ModelError, "there is no model 'nowhere.pt2'; name a run's folder, a .pt2 file, or"),
        ({"model": "x" * 300}, RunError, "cannot be looked up"),
        ({"size": (9, 9)}, ModelError, "takes images of 8x8 pixels, not 9x9"),
        ({"classes": ["a", "b"]}, ModelError, "2 class names are given, but the model has 3 answers"),
        ({"images": None}, RunError, "name a folder of images: --images FOLDER"),
        ({"at": "layer7"}, sv.SplitveilError, "no module 'layer7'"),
        ({"method": "top"}, sv.SplitveilError, "no null space here"),
        ({"m": 10_000}, sv.SplitveilError, "m=10000 is more than the 128 numbers of the feature"),
        ({"m": 100}, sv.SplitveilError, "directions"),
    ],
)
def test_what_cannot_be_fitted_leaves_no_run(
    program: Path, photos: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    asked: dict[str, Any] = {"model": str(program), "images": photos, "at": CUT, "method": "server-aware", "m": 2}
    with pytest.raises(error, match=sentence):
        obfuscate_run(tmp_path / "run", **{**asked, **change})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["run", "new/deep/run"])
def test_a_folder_that_is_closed_is_named_before_anything_is_fitted(
    program: Path, photos: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    run = fitted(tmp_path / "fitted", program, photos)
    closed = tmp_path / "closed"
    closed.mkdir()
    # Not by its mode, which is nothing to an administrator.
    monkeypatch.setattr("os.access", lambda path, mode: closed not in (path, *path.parents) and mode)
    monkeypatch.setattr("splitveil.runs.fitting.fit_obfuscator", None)
    monkeypatch.setattr("splitveil.export.bundles.choose_veil", None)
    sentence = f"{place} cannot be written, as {closed} is closed to you; choose another folder"
    with pytest.raises(RunError, match=sentence):
        fitted(closed / place, program, photos)
    with pytest.raises(RunError, match=sentence):
        train_run(closed / place, Run(trained).data(), sv.Recipe(epochs=1), source="digit-pairs")
    with pytest.raises(RunError, match=sentence):
        export(run.model(), run.samples(), closed / place, cut=CUT, obfuscator=run.obfuscator(), name="net")
    monkeypatch.undo()
    fitted(tmp_path / place, program, photos)


def test_no_run_is_overwritten(program: Path, photos: Path, trained: Path, tmp_path: Path) -> None:
    run = fitted(tmp_path / "run", program, photos)
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(RunError, match="holds a run already; choose another folder"):
        fitted(run.folder, program, photos)
    with pytest.raises(RunError, match="holds a run of 'splitveil obfuscate'"):
        train_run(run.folder, Run(trained).data(), sv.Recipe(epochs=1), source="digit-pairs")
    assert before == {path.name: path.read_bytes() for path in run.folder.iterdir()}
    (run.folder / MANIFEST).unlink()
    with pytest.raises(RunError, match=r"holds weights but no run\.json"):
        fitted(run.folder, program, photos)


# Trust


@pytest.mark.parametrize("kind", ["function", "file"])
def test_the_code_of_a_run_from_elsewhere_is_not_run_unasked(
    program: Path, beside: Path, photos: Path, tmp_path: Path, cache: Path, kind: str
) -> None:
    model = program if kind == "file" else "my_nets:net"
    run = fitted(tmp_path / "run", model, photos, size=(8, 8))
    moved = shutil.copytree(run.folder, tmp_path / "moved")
    assert Run(moved).model()(torch.zeros(1, 1, 8, 8)).shape == (1, 3)  # made here, wherever it lies
    for note in cache.glob("made-here-*"):
        note.unlink()
    if kind == "function":  # what would run, were it called
        del sys.modules["my_nets"]
        (beside / "my_nets.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(RunError, match=r"is code \((my_nets:net|model.pt2)\), .* say --trust"):
        Run(moved).model()
    with pytest.raises(RunError, match="say --trust"):
        fitted(tmp_path / "again", moved, None)
    if kind == "function":
        (beside / "my_nets.py").write_text(CODE)
    assert Run(moved, trust=True).model()(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


@pytest.mark.usefixtures("beside")
def test_a_run_that_was_made_here_and_changed_since_is_from_elsewhere(photos: Path, tmp_path: Path) -> None:
    run = fitted(tmp_path / "run", "my_nets:net", photos, size=(8, 8))
    manifest = (run.folder / MANIFEST).read_text()
    (run.folder / MANIFEST).write_text(manifest.replace("my_nets:net", "os:getcwd"))
    with pytest.raises(RunError, match=r"is code \(os:getcwd\)"):
        Run(run.folder).model()


def test_a_trained_run_is_data_and_needs_no_trust(trained: Path, cache: Path) -> None:
    assert not list(cache.glob("made-here-*"))
    assert Run(trained).model()(torch.zeros(1, 3, 8, 8)).shape == (1, 2)


# No labels


def test_no_label_is_read_anywhere(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a data set with labels the fit takes the images alone; of a folder there are none."""
    data = Run(trained).data()

    class Unread(Part):
        def __getattribute__(self, name: str) -> Any:
            assert name not in ("y", "hidden"), "a label was read"
            return super().__getattribute__(name)

    parts = {name: Unread(part.pixels, part.y, part.hidden) for name, part in data.parts.items()}
    with pytest.raises(AssertionError, match="a label was read"):
        _ = parts["train"].y
    unread = object.__new__(Dataset)
    unread.__dict__.update({**data.__dict__, **parts, "digest": data.digest})
    monkeypatch.setattr("splitveil.runs.run.load_data", lambda *_, **__: unread)
    for method in get_args(Fit):
        asked = {"m": None if method == "codebook" else 1, "messages": 2 if method in obfuscate.FINITE else None}
        run = fitted(tmp_path / method, trained, None, at=4, method=method, **asked)
        split, veil, images = run.split(), run.obfuscator(), unread.test.images(slice(0, 4))
        frames = sv.Client(split, veil).send(images)
        assert sv.Server(split, veil).answer(frames).shape == (4, 2)


# The commands


def test_the_methods_of_the_command_line_are_those_of_the_library() -> None:
    assert get_args(Fit) == obfuscate.METHODS


def test_the_command_says_what_it_made(
    splitveil: Splitveil,
    program: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "names.txt").write_text("cat\n dog\n\nowl\n", encoding="utf-8-sig")  # as some editors write it
    code, out, err = splitveil(
        "obfuscate", program, "--split", CUT, "--images", photos, "--m", 2, "--out", tmp_path / "run", "--seed", 7,
        "--classes", tmp_path / "names.txt", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert found == {
        "run": str(tmp_path / "run"), "model": "exported", "input_shape": [1, 8, 8], "answers": 3, "layer": CUT,
        "method": "distilled", "message_shape": [2], "messages": None,
        "data": load_unlabelled(photos, (1, 8, 8)).digest,
    }  # fmt: skip
    assert "40/40" in err
    manifest = Run(tmp_path / "run").manifest
    assert manifest.classes == ("cat", "dog", "owl")
    assert manifest.obfuscator is not None
    assert manifest.obfuscator.seed == 7
    code, out, err = splitveil(
        "obfuscate", program, "--split", CUT, "--images", photos, "--method", "codebook", "--messages", 3, "--out",
        tmp_path / "finite", "--quiet",
    )  # fmt: skip
    assert (code, err.count("\n")) == (0, 1)
    assert CUT in out
    assert Run(tmp_path / "finite").obfuscator().message.distinct in (2, 3)
    for width in (4, 0):  # of the default method
        code, _, err = splitveil(
            "obfuscate", program, "--split", CUT, "--images", photos, "--m", 2, "--width", width, "--out",
            tmp_path / f"run{width}", "--quiet",
        )  # fmt: skip
        assert code == 0, err
        run = Run(tmp_path / f"run{width}")
        veil, asked = run.obfuscator(), run.manifest.obfuscator
        assert asked is not None
        assert (asked.method, asked.width) == ("distilled", width)
        assert isinstance(veil, sv.Distilled)
        assert (0 if veil.layer is None else len(veil.layer.weight)) == width


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--method", "codebook", "--m", 2), "codebook takes no --m"),
        (("--method", "codebook"), "codebook needs --messages"),
        (("--method", "server-aware"), "server-aware needs --m"),
        (("--m", 2, "--messages", 4), "distilled takes no --messages"),
        (("--m", 2, "--method", "top", "--width", 4), "top takes no --width"),
        (("--m", 2, "--width", -1), "greater than or equal to 0"),
        (("--m", 2, "--width", 10**14), "cannot be; take 0 for no hidden layer, or at most 4096 units"),
        (("--m", 2, "--width", 3), "a hidden layer of 3 units cannot carry 2 coefficients"),
        (("--m", 2, "--size", "8"), "--size takes height and width in pixels"),
        (("--m", 2, "--classes", "absent.txt"), "--classes absent.txt cannot be read"),
        (("--m", 2, "--split", "layer9"), "no module 'layer9'"),
        (("--m", 2, "--device", "nonsense"), "choose cpu"),
    ],
)
def test_a_mistake_is_one_sentence(
    splitveil: Splitveil, program: Path, photos: Path, tmp_path: Path, options: tuple[object, ...],
    sentence: str,
) -> None:  # fmt: skip
    code, out, err = splitveil(
        "obfuscate", program, "--images", photos, "--out", tmp_path / "run", "--split", CUT, *options
    )
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_what_a_run_has_settled_is_not_asked_again(
    splitveil: Splitveil,
    program: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    run = fitted(tmp_path / "run", program, photos)
    for command in (
        ("profile", run.folder, "--split", "layer1"),
        ("export", run.folder, "--out", tmp_path / "bundle", "--method", "top"),
        ("attack", run.folder, "--method", "top"),
    ):
        code, _, err = splitveil(*command)
        assert code == 2
        assert f"which settles {command[-2]}" in " ".join(err.replace("│", " ").split())
    assert run.fitted is not None
    for cut in (run.fitted.cut, [run.fitted.cut]):  # which is what the run says itself
        check_options(run, {"--split": cut})
    code, _, err = splitveil("attack", run.folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "fitted to images without labels" in err


def test_inspect_lists_the_cuts_of_a_model_of_ones_own(
    splitveil: Splitveil, program: Path, photos: Path, tmp_path: Path
) -> None:
    code, out, _ = splitveil("inspect", program, "--m", 3, "--json")
    assert code == 0
    cuts = {row["cut"]: row for row in json.loads(out)["cuts"]}
    assert list(cuts) == ["stem", "layer1", "layer1.1", "layer2", "layer2.1", "drop", "fc1", "fc2"]
    # A convolution of 3×3 from 1 to 4 channels on 8×8 pixels; the whole model.
    assert cuts["layer1"]["client_macs"] == 9 * 4 * 64
    assert (cuts["layer1"]["feature"], cuts["layer1"]["n"]) == ([4, 8, 8], 256)
    assert (cuts["layer1"]["raw_bytes"], cuts["layer1"]["message_bytes"]) == (16 + 4 * 256, 16 + 4 * 3)
    assert (cuts["layer1"]["linear_next"], cuts["layer2"]["linear_next"]) == ("no", "yes")
    assert 0 < cuts["layer1"]["edge_share"] < cuts["fc2"]["edge_share"] < 1
    run = fitted(tmp_path / "run", program, photos)
    assert json.loads(splitveil("inspect", run.folder, "--m", 3, "--json").out)["cuts"] == list(cuts.values())
    assert "layer2.1" in splitveil("inspect", program).out
    assert splitveil("inspect", tmp_path / "none.pt2").code == 2


@pytest.mark.parametrize(("method", "settings"), [("server-aware", ("--m", 3)), ("codebook", ("--messages", 4))])
def test_from_a_file_and_a_folder_of_images_to_answers_of_the_server(
    splitveil: Splitveil, program: Path, photos: Path, tmp_path: Path, method: str, settings: tuple[object, ...]
) -> None:
    """obfuscate, profile, export, serve and infer, with no label anywhere."""
    run, bundle, names = tmp_path / "run", tmp_path / "bundle", tmp_path / "names.txt"
    names.write_text("cat\ndog\nowl\n", encoding="utf-8")
    options = ("--split", CUT, "--images", photos, "--method", method, *settings, "--classes", names, "--out", run)
    assert splitveil("obfuscate", program, *options, "--quiet").code == 0
    code, out, _ = splitveil("profile", run, "--quiet", "--json")
    assert code == 0
    profile = json.loads(out)
    assert (profile["data"]["samples"], profile["data"]["labelled"]) == (8, False)
    assert profile["model"]["name"] == "ResidualNet"
    assert {(row["layer"], row["method"]) for row in profile["rows"]} == {(CUT, method)}
    assert all(row["accuracy"] is None and 0 <= row["agreement"]["value"] <= 1 for row in profile["rows"])
    code, out, err = splitveil("export", run, "--out", bundle, "--quiet", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["layer"], facts["name"]) == (CUT, "run")
    pictures = sorted(photos.rglob("*.png"))[:4]
    with serving(bundle / "server") as server:
        code, out, err = splitveil("infer", bundle / "edge", *pictures, "--url", server.rest, "--quiet", "--json")
    assert code == 0, err
    labels = [answer["label"] for answer in json.loads(out)["answers"]]
    opened = Run(run)
    split, veil = opened.split(), opened.obfuscator()
    pixels = torch.stack([torch.from_numpy(read_photo(file, (8, 8), mode="L").copy()) for file in pictures])
    logits = split.answer(veil, veil.encode(split.client(pixels / 255)))
    assert labels == [("cat", "dog", "owl")[index] for index in logits.argmax(1)]
