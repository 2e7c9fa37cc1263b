"""A model that mixes images, draws random numbers or is not of float32 is refused at each door."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import made_nets as nets
import splitveil as sv
from splitveil.errors import ModelError, SplitError
from splitveil.export import export
from splitveil.models import answer_of, fixed_images, known_shape
from splitveil.obfuscate import Features, fit_obfuscator
from splitveil.obfuscate.tuning import Lesson
from splitveil.profiling import measure_profile
from splitveil.soundness import Rows, check_model, check_rows, check_server

MIXING = [
    (nets.NoStatistics, "'norm' (BatchNorm2d)", "server"),
    (nets.NormalisedAtTheClient, "'norm' (BatchNorm2d)", "client"),
    (nets.MeanOfAll, "mean", "server"), (nets.SoftmaxOverTheBatch, "softmax", "server"),
    (nets.AttentionOverTheBatch, "'attention' (MultiheadAttention)", "server"), (nets.Cumulated, "cumsum", "server"),
    (nets.Sorted, "sort", "server"), (nets.HardlyMixed, "amax", "server"), (nets.Recurrent, "'rnn' (LSTM)", "server"),
]  # fmt: skip
FORMATS: list[tuple[str, Callable[[], nn.Module], str]] = [
    ("half", lambda: nets.Double(torch.float16), "'conv.weight' are float16"),
    ("bfloat16", lambda: nets.Double(torch.bfloat16), "'conv.weight' are bfloat16"),
    ("double", lambda: nets.Double(torch.float64), "'conv.weight' are float64"),
    ("mixed", nets.Mixed, "'fc.weight' are float64"),
    ("between", nets.HalfBetween, "half in the server's half gives float16"),
    ("answers", nets.DoubleAnswers, "answers in float64"),
]


@pytest.mark.parametrize(("net", "place", "side"), MIXING, ids=lambda value: getattr(value, "__name__", ""))
def test_a_model_that_mixes_images_is_refused_with_the_operation(net: type[nets.Net], place: str, side: str) -> None:
    with pytest.raises(ModelError, match="one image's") as caught:
        check_model(sv.SplitModel(net(), at="mid"), nets.made_images())
    assert f"in the {side}'s half" in str(caught.value)
    assert f"; {place} does it" in str(caught.value)


@pytest.mark.parametrize(("net", "place"), [(nets.Dropped, "dropout"), (nets.Noisy, "randn_like")])
def test_a_model_that_throws_dice_is_refused_with_the_operation(net: type[nets.Net], place: str) -> None:
    before = torch.get_rng_state()
    split = sv.SplitModel(net(), at="mid", verify=False)
    with pytest.raises(SplitError, match=f"draws random numbers in evaluation mode \\('{place}'\\)") as caught:
        check_model(split, nets.made_images())
    assert "\n" not in str(caught.value)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "net", [nets.Net, nets.Attention, nets.InstanceNormalised, nets.RandomOnlyInTraining, nets.Standardised]
)
def test_models_that_answer_each_image_by_itself_are_taken(net: type[nets.Net]) -> None:
    model, images = net(), nets.made_images(3)
    with torch.no_grad():
        expected = model(images)
    answers = check_model(sv.SplitModel(model, at="mid"), images)
    assert any(torch.allclose(answers[0], row, atol=1e-5) for row in expected)


@pytest.mark.parametrize(("build", "words"), [each[1:] for each in FORMATS], ids=[each[0] for each in FORMATS])
def test_other_number_formats_are_refused_before_any_fit(build: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Features.of(sv.SplitModel(build(), at="mid"), nets.made_images())


def test_a_feature_in_double_is_refused() -> None:
    with pytest.raises(ModelError, match="client's half answers in float64"):
        check_model(sv.SplitModel(nets.DoubleFeature(), at="cut"), nets.made_images())


def test_a_quantised_model_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that quantised tensors will go
        model[1] = nn.quantized.dynamic.Linear(768, 4)
    with pytest.raises(ModelError, match="the layer '1' is quantised"):
        known_shape(model, (16, 16))


def doors(split: sv.SplitModel) -> dict[str, Callable[[], object]]:
    """Every way in, called with a cut model."""
    images, z = nets.made_images(), torch.rand(20, 8, 8, 8)
    pixels = (images * 255).byte().numpy()
    part = {"x": pixels, "y": np.arange(len(pixels)) % 5}
    data = sv.Dataset.from_arrays(part["x"], part["y"], hidden={"secret": np.arange(len(pixels)) % 2})
    return {
        "features": lambda: sv.Features.of(split, images),
        "fit": lambda: fit_obfuscator("distilled", split, images, m=2),
        "server-aware": lambda: sv.ServerAware.fit(split, Features.known(z), m=2),
        "lesson": lambda: Lesson.of(split, Features.known(z)),
        "profile": lambda: measure_profile(split.model, images, cuts=["mid"]),
        "export": lambda: export(split.model, images, "never-written", cut="mid", method="top", m=2),
        "leakage": lambda: sv.leakage(split, sv.Identity((8, 8, 8)), data, hidden="secret"),
    }  # fmt: skip


@pytest.mark.parametrize("door", doors(sv.SplitModel(nets.Net(), at="mid")))
@pytest.mark.parametrize("net", [nets.NoStatistics, nets.Dropped, nets.Mixed])
def test_every_door_refuses(net: type[nets.Net], door: str) -> None:
    with pytest.raises((ModelError, SplitError), match=r"one image|random numbers|float64"):
        doors(sv.SplitModel(net(), at="mid", verify=False))[door]()


def test_only_the_server_is_tried_on_features() -> None:
    check_server(sv.SplitModel(nets.NormalisedAtTheClient(), at="mid"), torch.rand(3, 8, 8, 8))


def test_rows_are_compared_bit_by_bit_where_batches_have_one_length() -> None:
    rows = Rows.of(torch.rand(8, 5), torch.rand(3, 5))
    assert torch.equal(rows.batch[[0, 4, 7]], rows.swapped[[0, 4, 7]])
    assert not (rows.batch[[1, 2, 3, 5, 6]] == rows.swapped[[1, 2, 3, 5, 6]]).any()
    assert check_rows(lambda x: 2 * x, rows)[1] is None
    found = check_rows(lambda x: x + 1e-5 * x.mean(0), rows)[1]
    assert found is not None
    assert found.size < 1e-4
    turned = check_rows(lambda x: x * torch.arange(1, len(x) + 1)[:, None], rows)[1]
    assert turned is not None


def test_models_are_tried_on_more_than_a_black_image() -> None:
    assert known_shape(nets.Standardised(), None) == nets.SHAPE
    assert not nets.Standardised()(torch.zeros(1, *nets.SHAPE)).isfinite().any()
    with pytest.raises(ModelError, match="not finite"):
        answer_of(nets.Standardised(), torch.zeros(1, *nets.SHAPE))


def test_fixed_images_are_the_same_everywhere() -> None:
    images = fixed_images((3, 5, 7))
    assert images.shape == (8, 3, 5, 7)
    assert images[:, 0, 0, 0].mul(255).round().tolist() == [50, 7, 6, 119, 217, 68, 49, 105]
    assert len(images[3, 0].unique()) == 1  # a square of sixteen pixels
