"""A user's own trained model: read from a file or made by a function, and cut at its own names."""

import copy
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import splitveil as sv
from made_models import ResidualNet, residual_net, write_program
from splitveil.cost import multiply_accumulates
from splitveil.errors import ModelError, NoLinearLayerError, SplitError
from splitveil.models import call_function, is_reference, known_shape, load_exported, sample_images
from splitveil.split import possible_cuts

CUTS = ("stem", "layer1", "layer1.1", "layer2", "layer2.0", "layer2.1", "fc1", "fc2")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_program(tmp_path_factory.mktemp("program") / "model.pt2", residual_net())


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_an_exported_model_answers_as_the_original(program: Path, images: Tensor) -> None:
    model = load_exported(program)
    torch.testing.assert_close(model(images), residual_net()(images), rtol=0, atol=0)
    torch.testing.assert_close(model(images[:1]), residual_net()(images[:1]), rtol=0, atol=0)
    assert not model.training
    assert type(model).__name__ == "ResidualNet"
    assert known_shape(model, None) == (1, 8, 8)


@pytest.mark.parametrize("at", CUTS)
def test_an_exported_model_is_cut_where_the_original_is(program: Path, images: Tensor, at: str) -> None:
    model = load_exported(program)
    split, same = sv.SplitModel(model, at), sv.SplitModel(residual_net(), at)
    z = split.client(images)
    torch.testing.assert_close(z, same.client(images), rtol=0, atol=0)
    torch.testing.assert_close(split.server(z), model(images), rtol=0, atol=0)
    torch.testing.assert_close(split.server(z[:3]), model(images[:3]), rtol=0, atol=0)
    assert multiply_accumulates(split.client, images) == multiply_accumulates(same.client, images)
    # A copy, as it is tuned along with an obfuscator, can be cut at the same names.
    again = sv.SplitModel(copy.deepcopy(model), at)
    torch.testing.assert_close(again.server(z), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("at", ["stem", "layer2", "fc1", "fc2"])
def test_the_layers_of_an_exported_model_can_be_factorised(program: Path, images: Tensor, at: str) -> None:
    found, wanted = (sv.SplitModel(model, at).server_layer for model in (load_exported(program), residual_net()))
    for layer, same in zip(*(one if isinstance(one, tuple) else (one,) for one in (found, wanted)), strict=True):
        assert repr(layer) == repr(same)
        torch.testing.assert_close(layer.weight, same.weight, rtol=0, atol=0)
    split = sv.SplitModel(load_exported(program), at)
    z = split.client(images)
    veil = (
        sv.DistortionFree(sv.factorise(split.server_layer, feature_shape=z.shape[1:], rank=None))
        if at != "stem"
        else None
    )
    if veil:
        torch.testing.assert_close(split.answer(veil, veil.encode(z)), split.model(images), rtol=1e-3, atol=1e-4)


def test_every_possible_cut_is_one_and_no_other_name_is_another_tensor(program: Path) -> None:
    model = load_exported(program)
    assert possible_cuts(model) == possible_cuts(residual_net())
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    known = {}
    for name in possible_cuts(model):
        split = sv.SplitModel(model, name)
        known[name] = split.client(x)
        torch.testing.assert_close(split.server(known[name]), model(x), rtol=0, atol=0)
    names = [name for name, _ in residual_net().named_modules() if name not in known and name]
    for name in names:
        try:
            z = sv.SplitModel(model, name).client(x)
        except SplitError:
            continue
        assert any(z.shape == other.shape and torch.equal(z, other) for other in known.values()), name


@pytest.mark.parametrize("at", ["layer1", "layer1.1", "layer2.1"])
def test_a_residual_block_can_be_cut_off_but_has_no_first_layer(program: Path, at: str) -> None:
    with pytest.raises(NoLinearLayerError, match="residual connection"):
        _ = sv.SplitModel(load_exported(program), at).server_layer


def test_a_place_that_is_not_there_lists_the_names_of_the_original(program: Path) -> None:
    with pytest.raises(
        SplitError,
        match=r"no module 'layer9'; choose one of: stem, layer1, layer1.1, layer2, layer2.1, drop, fc1, fc2$",
    ):
        sv.SplitModel(load_exported(program), "layer9")
    with pytest.raises(SplitError, match="no numbered cuts"):
        sv.SplitModel(load_exported(program), 2)
    with pytest.raises(SplitError, match=r"2 tensors cross a cut at 'layer2.0.conv2'"):
        sv.SplitModel(load_exported(program), "layer2.0.conv2")


class Functional(nn.Module):
    """A model without a module where one would like to cut; its operations have names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(64)[:4].clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(x.flatten(1), self.weight))


def test_an_operation_can_be_named_too(tmp_path: Path, images: Tensor) -> None:
    model = load_exported(write_program(tmp_path / "model.pt2", Functional()))
    split = sv.SplitModel(model, "tanh")
    assert split.client(images).shape == (5, 4)
    torch.testing.assert_close(split.server(split.client(images)), Functional()(images))


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.flatten(1)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + torch.rand_like(x)).flatten(1)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, 0]


def exported(model: nn.Module, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[[Path], object]:
    shapes = ({0: torch.export.Dim("batch")},)
    return lambda path: torch.export.save(
        torch.export.export(model, (torch.zeros(*shape, dtype=dtype),), dynamic_shapes=shapes), path
    )


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (
            lambda path: write_program(path, residual_net(), batch=False),
            r"batches of exactly 2; export it .*dynamic_sh",
        ),
        (exported(ResidualNet().train(), 2, 1, 8, 8), r"in training mode; call model.eval\(\)"),
        (exported(nn.Sequential(nn.Dropout(), nn.Flatten()).train(), 2, 1, 8, 8), "in training mode"),
        (exported(Noise(), 2, 1, 8, 8), r"draws random numbers \('rand_like'\)"),
        (exported(Two(), 2, 1, 8, 8), "takes 1 inputs and gives 2 outputs"),
        (exported(nn.Linear(8, 3), 2, 8), r"does not take float32 images \(B, C, H, W\)"),
        (exported(nn.Flatten(), 2, 1, 8, 8, dtype=torch.float64), "does not take float32 images"),
        (lambda path: path.write_bytes(b"no archive"), "cannot be read as a model of torch.export"),
        (lambda path: torch.save(nn.Linear(2, 2), path), r"written by torch.save; export the model by .*dynamic_sh"),
        (lambda _: None, "there is no file"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, write: Callable[[Path], object], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "model.pt2")
    capfd.readouterr()
    with pytest.raises(ModelError, match=sentence):
        load_exported(tmp_path / "model.pt2")


def test_a_damaged_file_is_no_traceback_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, records = logging.getLogger("torch.export"), []
    monkeypatch.setattr(logger, "handle", records.append)
    level = logger.level
    (tmp_path / "model.pt2").write_bytes(b"no archive")
    with pytest.raises(ModelError):
        load_exported(tmp_path / "model.pt2")
    assert not records
    assert logger.level == level


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a module that no other test has imported."""
    monkeypatch.chdir(tmp_path)
    for name in ("mynets", "forms"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "mynets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def small():\n    return nn.Sequential(nn.Dropout(), nn.Flatten(), nn.LazyLinear(3))\n"
        "class Box:\n    def net():\n        return nn.Flatten()\n"
        "def fails():\n    raise OSError('no such weights')\n"
        "def nothing():\n    return 5\n"
        "plain = 7\n"
    )
    return tmp_path


@pytest.mark.usefixtures("beside")
def test_a_function_of_the_current_folder_makes_a_model() -> None:
    path = list(sys.path)
    model = call_function("mynets:small")
    assert model(torch.rand(2, 3, 4, 4)).shape == (2, 3)
    assert not model.training
    assert isinstance(call_function("mynets:Box.net"), nn.Flatten)
    assert sys.path == path


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("mynets", "is no function's name; write package.module:function"),
        ("mynets:small()", "is no function's name"),
        ("absent_nets:small", "gives no model .*No module named 'absent_nets'"),
        ("mynets:absent", "gives no model .*has no attribute 'absent'"),
        ("mynets:fails", "gives no model .*OSError: no such weights"),
        ("mynets:plain", "gives no model .*not callable"),
        ("mynets:nothing", "returns a int; let it return a torch.nn.Module"),
    ],
)
def test_a_function_that_makes_no_model_is_refused(reference: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        call_function(reference)


@pytest.mark.usefixtures("beside")
@pytest.mark.filterwarnings("ignore")  # torch's own, of its older ways to quantise and compile
def test_models_in_another_form_are_taken_as_they_were_or_refused(tmp_path: Path) -> None:
    (tmp_path / "forms.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
        "def quantised():\n    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})\n"
        "def compiled():\n    return torch.compile(net(), backend='eager')\n"
        "def empty():\n    return net().to('meta')\n"
        "def parallel():\n    return nn.DataParallel(net())\n"
    )
    assert list(call_function("forms:compiled").state_dict()) == ["1.weight", "1.bias"]
    for name, sentence in (
        ("quantised", r"keeps '1._packed_params.dtype' as a dtype, as quantisation does; return the model as it was"),
        ("empty", r"a model without weights \('1.weight' is on the device 'meta'\)"),
    ):
        with pytest.raises(ModelError, match=sentence):
            call_function(f"forms:{name}")
    parallel, x = call_function("forms:parallel"), torch.rand(2, 3, 2, 2)
    split = sv.SplitModel(parallel, "module.1")
    assert torch.equal(split.server(split.client(x)), parallel(x))


def test_what_is_a_reference() -> None:
    for text in ("nets:small", "my.nets:Box.net", "_a:b"):
        assert is_reference(text)
    for text in ("nets", "nets:", ":small", "runs/x:small", "nets.pt2", "a:b c", "a:b\n", "C:\\nets"):
        assert not is_reference(text)


class Standardised(nn.Module):
    """Takes each image's own mean and deviation, and so has no answer to an image of one colour."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(60, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)).flatten(1))


class Dice(Standardised):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x))


class Squeezed(Standardised):
    """Drops the axis of the batch where it holds one image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class Counting(Standardised):
    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) * self.calls


def test_a_model_is_tried_on_images_that_have_something_on_them() -> None:
    assert known_shape(Standardised(), (4, 5)) == (3, 4, 5)
    for model, sentence in (
        (Dice(), r"differently the second time: it draws random numbers in evaluation mode \('dropout'\)"),
        (Counting(), "differently the second time: it keeps something in between"),
        (Squeezed(), r"answers 1 images with \(3,\)"),
    ):
        with pytest.raises(ModelError, match=sentence):
            known_shape(model.eval(), (4, 5))


def test_images_to_try_a_model_on_differ_and_are_no_single_colour() -> None:
    images = sample_images((3, 5, 7), 7)
    assert images.shape == (7, 3, 5, 7)
    assert images.min() >= 0
    assert images.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in images}) == 7
    assert bool((images.flatten(2).std(2) > 0.01).all())
    assert torch.equal(images, sample_images((3, 5, 7), 7))


def test_the_shape_of_images_is_what_the_model_says_or_takes() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 2)).eval()
    assert known_shape(flat, (4, 5)) == (3, 4, 5)
    assert known_shape(nn.Sequential(nn.Flatten(), nn.Linear(20, 2)).eval(), (4, 5)) == (1, 4, 5)
    assert known_shape(residual_net(3), (8, 8)) == (3, 8, 8)
    assert known_shape(sv.Table1Net((1, 8, 8), 2).eval(), None) == (1, 8, 8)
    for model, size, sentence in (
        (flat, None, "does not say the size of its images; give it: --size HxW"),
        (flat, (5, 5), "takes neither RGB nor grey images of 5x5 pixels"),
        (sv.Table1Net((1, 8, 8), 2).eval(), (9, 9), "takes images of 8x8 pixels, not 9x9"),
        (nn.Flatten(2).eval(), (4, 5), r"answers 2 images with \(2, 3, 20\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(60, 1)).eval(), (4, 5), r"answers 2 images with \(2, 1\)"),
        (Two().eval(), (4, 5), "answers 2 images with tuple"),
    ):
        with pytest.raises(ModelError, match=sentence):
            known_shape(model, size)
