"""A profile's numbers against those of real frames, its independence of hidden labels, and what is refused."""

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from safetensors.torch import save
from torch import Tensor, nn

import splitveil as sv
from made_veils import made_veil
from splitveil import profiling
from splitveil.attack import Guess
from splitveil.codec import CODINGS, Coding, dequantise, quantise
from splitveil.cost import edge_cost
from splitveil.errors import AttackError, ModelError, NoLinearLayerError, ProfileError, SplitError
from splitveil.figures import profile_figure, write_figure
from splitveil.linear import Operator
from splitveil.message import Obfuscator
from splitveil.obfuscate import Affine, Codebook, Tables
from splitveil.profile import Profile, Row, read_profile, weights_digest, write_profile
from splitveil.profiling import model_digest
from splitveil.profiling.fitted import obfuscator_digest
from splitveil.profiling.scaling import coding_scales
from splitveil.tensors import write_tensors
from splitveil.wire import Frame, decode, encode

ROOT = Path(__file__).parents[1]
KEPT, EPSILONS = (1, 3, 16, 64), (0.1, 0.5)
OPERATORS: dict[int, Operator] = {2: "patch", 4: "dense"}


def network(seed: int, n_classes: int = 3) -> sv.Table1Net:
    torch.manual_seed(seed)
    net = sv.Table1Net((1, 8, 8), n_classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0  # its statistics are those of the images below, so that answers differ
    with torch.no_grad():
        net.train()(torch.rand(64, 1, 8, 8))
    return net.eval()


def noise() -> sv.Dataset:
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (400, 1, 8, 8), dtype=np.uint8)
    hidden = {"colour": random.integers(0, 2, 400), "constant": np.zeros(400, dtype=int)}
    return sv.Dataset.from_arrays(x, random.integers(0, 3, 400), hidden)


@pytest.fixture(scope="module")
def model() -> sv.Table1Net:
    return network(5)


@pytest.fixture(scope="module")
def data() -> sv.Dataset:
    return noise()


@pytest.fixture(scope="module")
def found(model: sv.Table1Net, data: sv.Dataset) -> Profile:
    return sv.measure_profile(model, data, kept=KEPT, epsilons=EPSILONS)


def veil_of(row: Row, split: sv.SplitModel, x: Tensor) -> Obfuscator:
    shape = tuple(split.client(x[:1]).shape[1:])
    factors = sv.factorise(split.server_layer, feature_shape=shape, operator=row.operator)
    if row.method == "top":
        return sv.TopComponents(factors, m=row.m or 0)
    if row.method == "free":
        return sv.DistortionFree(factors)
    return sv.DistortionBounded(factors, epsilon=row.epsilon or 0.0, relative=True)


def in_integers(split: sv.SplitModel, veil: Obfuscator, data: sv.Dataset, coding: Coding) -> tuple[list[bytes], Tensor]:
    """Frames of the validation images, and the answers to what they decode to."""
    scales = coding_scales(split, veil, data.train, [coding])[coding]
    with torch.no_grad():
        integers = quantise(veil.encode(split.client(data.val.x)).numpy(), scales, coding)
        frames = [encode(Frame(b"name", one.reshape(len(one), -1), coding)) for one in integers]
        read = np.stack([decode(frame).values for frame in frames]).reshape(integers.shape).astype(np.int8)
        return frames, split.answer(veil, torch.from_numpy(dequantise(read, scales))).argmax(1)


def test_every_row_is_what_real_frames_give(model: sv.Table1Net, data: sv.Dataset, found: Profile) -> None:
    x, y = data.val.x, data.val.y
    uncut = model(x).argmax(1)
    for row in found.rows:
        split = sv.SplitModel(model, at=row.cut or 0)
        veil = veil_of(row, split, x)
        frames = sv.Client(split, veil).send(x)
        answers = sv.Server(split, veil).answer(frames).argmax(1)
        _, kept = sv.Server(split, veil).read(frames)
        if row.coding != "float32":
            frames, answers = in_integers(split, veil, data, row.coding)
        sizes = [len(frame) for frame in frames]
        assert (row.bytes_mean, row.bytes_most) == (pytest.approx(np.mean(sizes)), max(sizes))
        assert row.mean_components == pytest.approx(float(kept.double().mean()))
        assert (row.message_shape, row.fixed_length) == (veil.message.shape, veil.message.fixed_length)
        assert (row.samples, row.agreeing) == (len(x), int((answers == uncut).sum()))
        assert row.accuracy is not None
        assert row.drop is not None
        assert row.accuracy.value == pytest.approx(float((answers == y).double().mean()))
        assert row.lost == int(((uncut == y) & (answers != y)).sum())
        assert row.gained == int(((uncut != y) & (answers == y)).sum())
        assert row.drop.low < row.drop.value < row.drop.high
        cost = edge_cost(split, veil, x[:1])
        assert (row.client_macs, row.encoder_macs) == (cost.client_macs, cost.encoder_macs)
        assert (row.client_parameters, row.raw_bytes) == (cost.parameters, cost.raw_bytes)
    assert found.reference.own
    assert found.reference.accuracy is not None
    assert found.reference.accuracy.value == pytest.approx(float((uncut == y).double().mean()))


def kept_at(found: Profile, cut: int, coding: Coding = "float32") -> list[tuple[str, int | None]]:
    return [(row.method, row.m) for row in found.rows if (row.cut, row.coding) == (cut, coding)]


def test_the_grid_goes_up_to_the_rank_and_not_beyond(found: Profile) -> None:
    bounded = [("bounded", None)] * 2
    assert kept_at(found, 1) == [("top", 1), ("top", 3), ("top", 9), *bounded]  # 9 pixels, all seen by 16 filters
    assert kept_at(found, 2) == [("top", 1), ("top", 3), ("top", 16), ("free", 32), *bounded]
    assert kept_at(found, 4) == [("top", 1), ("top", 3), ("top", 16), ("top", 64), *bounded]
    assert kept_at(found, 6) == [("top", 1), ("free", 3), *bounded]
    assert [row.operator for row in found.rows if row.m == 1] == ["patch"] * 9 + ["dense"] * 9
    first = {row.cut: row for row in found.rows if row.m == 3 and row.coding == "float32"}
    assert first[2].encoder_parameters == 3 * 16 * 9
    assert first[4].encoder_parameters == 3 * 64
    stored = [row.encoder_parameters for row in found.rows if (row.cut, row.m) == (4, 3)]
    assert stored == [3 * 64, 3 * 64 + 3, 3 * 64 + 3]  # one scale per component


def test_every_message_of_fixed_length_is_measured_in_every_coding(model: sv.Table1Net, data: sv.Dataset) -> None:
    found = sv.measure_profile(model, data, cuts=[2, 4], kept=KEPT, epsilons=EPSILONS)
    for cut in (2, 4):
        fixed = [place for place in kept_at(found, cut) if place[0] != "bounded"]
        assert kept_at(found, cut, "int8") == kept_at(found, cut, "int4") == fixed
    assert [row.coding for row in found.rows[:3]] == ["float32", "int8", "int4"]
    few = sv.measure_profile(model, data, cuts=[2, 4], kept=KEPT, epsilons=EPSILONS, codings=["int4"])
    assert {row.coding for row in few.rows if row.fixed_length} == {"int4"}
    assert {row.coding for row in few.rows if not row.fixed_length} == {"float32"}
    alike = [row for row in found.rows if row.coding == "int4" or not row.fixed_length]
    assert list(few.rows) == alike
    assert any(row.agreement.value < 1 for row in alike if row.fixed_length)


@pytest.mark.parametrize("cut", [2, 4])
def test_the_scales_of_fewer_components_are_the_first_of_those_of_more(
    model: sv.Table1Net, data: sv.Dataset, cut: int
) -> None:
    split = sv.SplitModel(model, at=cut)
    factors = sv.factorise(
        split.server_layer, feature_shape=tuple(split.client(data.val.x[:1]).shape[1:]), operator=OPERATORS[cut]
    )
    longest, *shorter = (coding_scales(split, sv.TopComponents(factors, m=m), data.train, CODINGS) for m in (16, 1, 5))
    assert set(longest) == {"int8", "int4"}
    for found in shorter:
        for coding, scales in found.items():
            np.testing.assert_array_equal(scales, longest[coding][: len(scales)])
    as_images = coding_scales(split, sv.TopComponents(factors, m=16), data.train.x, CODINGS)
    np.testing.assert_array_equal(as_images["int8"], longest["int8"])


def test_scales_are_those_of_the_training_part(model: sv.Table1Net, data: sv.Dataset) -> None:
    dark = sv.Dataset(
        name="dark", train=replace(data.train, pixels=data.train.pixels // 50), val=data.val, test=data.test,
        classes=data.classes, hidden_classes=data.hidden_classes,
    )  # fmt: skip
    ours, theirs = (
        sv.measure_profile(model, each, cuts=[4], kept=(1,), epsilons=(), codings=("int4",)).rows[-1].agreeing
        for each in (data, dark)
    )
    assert ours != theirs


def test_a_dense_convolution_keeps_at_most_64_components(model: sv.Table1Net, data: sv.Dataset) -> None:
    dense = sv.measure_profile(model, data, cuts=[2, 6], kept=(1, 64, 65), epsilons=(0.1,), operator="dense")
    assert kept_at(dense, 2) == [("top", 1), ("top", 64)]
    assert kept_at(dense, 6) == [("top", 1), ("free", 3), ("bounded", None)]
    assert {row.operator for row in dense.rows} == {"dense"}


def test_hidden_labels_are_not_read(model: sv.Table1Net, data: sv.Dataset, found: Profile) -> None:
    bare = sv.measure_profile(model, data.without_hidden(), kept=KEPT, epsilons=EPSILONS)
    assert bare.rows == found.rows
    assert bare.data.digest != found.data.digest


def test_images_without_labels_give_agreement_alone(model: sv.Table1Net, data: sv.Dataset, found: Profile) -> None:
    bare = sv.measure_profile(model, data.val.x, kept=KEPT, epsilons=EPSILONS)
    nothing = {"accuracy": None, "lost": None, "gained": None, "drop": None}
    exact, known = ([row for row in each.rows if row.coding == "float32"] for each in (bare, found))
    assert exact == [row.model_copy(update=nothing) for row in known]  # integers have other scales here
    assert len(bare.rows) == len(found.rows)
    assert (bare.data.part, bare.data.labelled, bare.reference.accuracy) == ("given", False, None)
    other = sv.measure_profile(model, data.val.x.flip(0), cuts=[6])
    assert other.data.digest != bare.data.digest


def test_the_drop_against_another_model_counts_its_right_answers(
    model: sv.Table1Net, data: sv.Dataset, found: Profile
) -> None:
    plain = network(6)
    against = sv.measure_profile(model, data, cuts=[4], kept=KEPT, epsilons=EPSILONS, reference=plain)
    right = plain(data.val.x).argmax(1) == data.val.y
    assert (against.reference.own, against.reference.weights) == (False, model_digest(plain))
    assert against.reference.accuracy is not None
    assert against.reference.accuracy.value == pytest.approx(float(right.double().mean()))
    for row, own in zip(against.rows, [row for row in found.rows if row.cut == 4], strict=True):
        assert (row.agreement, row.accuracy) == (own.agreement, own.accuracy)
        assert row.accuracy is not None
        assert row.lost is not None
        assert row.gained is not None
        assert row.lost + row.gained > 10  # two networks that know nothing hardly agree
        assert (row.lost - row.gained) / row.samples == pytest.approx(float(right.double().mean()) - row.accuracy.value)


FITTED = ("covariance-aware", "distilled", "hidden", "quantised", "codebook")


@pytest.mark.parametrize("kind", FITTED)
def test_rows_of_a_fitted_obfuscator_are_what_real_frames_give(
    model: sv.Table1Net, data: sv.Dataset, kind: str
) -> None:
    split, x, y = sv.SplitModel(model, at=4), data.val.x, data.val.y
    veil = made_veil(kind, split, data.train, m=5)
    found = sv.measure_profile(model, data, cuts=[4], obfuscator=veil)
    uncut = model(x).argmax(1)
    sizes = [5] if isinstance(veil, Tables) else [1, 2, 4, 5]
    codings = ["index"] if isinstance(veil, Tables) else list(CODINGS)
    if not isinstance(veil, Tables):
        assert [(row.m, row.coding) for row in found.rows] == [(m, coding) for m in sizes for coding in codings]
    for row in found.rows:
        kept = veil if isinstance(veil, Tables) else veil.keep(row.m or 0)
        frames = sv.Client(split, kept).send(x)
        answers = sv.Server(split, kept).answer(frames).argmax(1)
        if row.coding in ("int8", "int4"):
            frames, answers = in_integers(split, kept, data, row.coding)  # type: ignore[arg-type]
        assert {len(frame) for frame in frames} == {row.bytes_most}
        assert (row.bytes_mean, row.fixed_length, row.message_shape) == (row.bytes_most, True, kept.message.shape)
        assert (row.agreeing, row.lost) == (int((answers == uncut).sum()), int(((uncut == y) & (answers != y)).sum()))
        assert (row.operator, row.method, row.cut, row.layer) == ("dense", veil.name, 4, "layer4")
        assert row.messages == veil.message.distinct
        assert row.bits == (None if row.messages is None else sv.Certificate(row.messages).bits)
        cost = edge_cost(split, kept, x[:1])
        assert (row.client_macs, row.encoder_macs, row.raw_bytes) == (
            cost.client_macs, cost.encoder_macs, cost.raw_bytes,
        )  # fmt: skip
        assert row.encoder_parameters >= row.encoder_macs > 0  # every weight of an encoder is used once
    assert len({row.obfuscator for row in found.rows}) == 1
    assert found.rows[-1].agreement.value > 0


def test_what_the_edge_stores_of_a_fitted_obfuscator(model: sv.Table1Net, data: sv.Dataset) -> None:
    split, stored = sv.SplitModel(model, at=4), {}
    for kind in FITTED:
        veil = made_veil(kind, split, data.train, m=5)
        rows = sv.measure_profile(model, data, cuts=[4], obfuscator=veil, kept=[2]).rows
        stored[kind] = [row.encoder_parameters for row in rows]
        if isinstance(veil, Codebook):
            parts = (veil.encoder.mean, *veil.encoder.weights.values())
            assert stored[kind] == [sum(part.numel() for part in parts if part is not None)]
    n = 64  # of the feature, and its mean
    affine = [n + 2 * n, n + 2 * n + 2, n + 2 * n + 2, n + 5 * n, n + 5 * n + 5, n + 5 * n + 5]
    assert stored["covariance-aware"] == stored["distilled"] == affine
    assert stored["hidden"][0] == n + 13 * (n + 1) + 2 * 13  # a hidden layer of 13 units with biases


def test_a_fitted_obfuscator_is_told_apart_and_must_fit(model: sv.Table1Net, data: sv.Dataset) -> None:
    split = sv.SplitModel(model, at=4)
    veil, other = (made_veil("distilled", split, part, m=3) for part in (data.train, data.test))
    assert isinstance(veil, Affine)
    digests = [obfuscator_digest(each) for each in (veil, made_veil("distilled", split, data.train, m=3), other)]
    assert digests[0] == digests[1] != digests[2]
    assert obfuscator_digest(veil.keep(2)) != digests[0]
    for options, says in (
        ({"cuts": [5]}, "but here they have"),
        ({"cuts": [4, 5]}, "belongs to one cut"),
        ({}, "belongs to one cut"),
        ({"cuts": [4], "obfuscator": sv.Identity((64,))}, "Identity was not fitted to images"),
    ):
        with pytest.raises(ProfileError, match=says):
            sv.measure_profile(model, data, **{"obfuscator": veil, **options})


def test_a_fitted_obfuscator_needs_no_linear_layer_and_no_labels(model: sv.Table1Net, data: sv.Dataset) -> None:
    split = sv.SplitModel(model, at="layer4.1")  # a ReLU
    veil = made_veil("server-aware", split, data.train, m=2)
    found = sv.measure_profile(model, data.val.x, cuts=["layer4.1"], obfuscator=veil)
    assert [(row.cut, row.layer, row.m) for row in found.rows if row.coding == "int8"] == [
        (None, "layer4.1", 1), (None, "layer4.1", 2),
    ]  # fmt: skip
    assert not found.data.labelled


def test_leakage_of_finite_messages_is_measured_too(model: sv.Table1Net, data: sv.Dataset) -> None:
    veil = made_veil("codebook", sv.SplitModel(model, at=4), data.train)
    (row,) = sv.measure_profile(model, data, cuts=[4], obfuscator=veil, hidden=["colour"], attacks=[Shrug()]).rows
    assert row.leakage["colour"]["message_bytes"] == row.bytes_most == 17


class Shrug:
    """An attack that learns nothing, in no time."""

    name = "shrug"

    def fit(self, *_: object, n_values: int, **__: object) -> Guess:
        return lambda view: torch.full((len(view), n_values), 1 / n_values).log()


def test_leakage_is_measured_where_it_is_asked_for(
    model: sv.Table1Net, data: sv.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    made = profiling.measuring.reference_lines

    def counted(split: sv.SplitModel, data: sv.Dataset, *, hidden: str, **options: Any) -> Any:
        calls.append((split.layer_name, hidden))
        return made(split, data, hidden=hidden, **options)

    monkeypatch.setattr(profiling.measuring, "reference_lines", counted)
    asked = sv.measure_profile(model, data, cuts=[4, 5], kept=(1, 2), hidden=["colour"], attacks=[Shrug()])
    assert calls == [("layer4", "colour"), ("layer5", "colour")]  # once per cut
    for row in asked.rows:
        assert set(row.leakage) == ({"colour"} if row.fixed_length and row.coding == "float32" else set())
    leak = asked.rows[0].leakage["colour"]
    assert leak["best"] == "shrug"
    assert leak["attack"].value == pytest.approx(float((data.test.hidden["colour"] == 0).double().mean()))  # type: ignore[union-attr]
    bare = sv.measure_profile(model, data, cuts=[4, 5], kept=(1, 2))
    assert tuple(row.model_copy(update={"leakage": {}}) for row in asked.rows) == bare.rows


def test_a_model_without_numbered_cuts_is_profiled_by_names(data: sv.Dataset) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    named = sv.measure_profile(net, data.val.x, cuts=["1", "3", "3"], kept=(2,), epsilons=(), codings=["float32"])
    assert [(row.cut, row.layer, row.method, row.m) for row in named.rows] == [
        (None, "1", "top", 2), (None, "1", "free", 8), (None, "3", "top", 2), (None, "3", "free", 3),
    ]  # fmt: skip
    with pytest.raises(ProfileError, match="Sequential has no numbered cuts; name the layers"):
        sv.measure_profile(net, data.val.x)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"kept": ()}, ProfileError, "kept must name whole numbers of at least 1"),
        ({"kept": (0,)}, ProfileError, "kept must name whole numbers of at least 1"),
        ({"kept": (1.5,)}, ProfileError, "kept must name"),
        ({"epsilons": (float("nan"),)}, ProfileError, "from 0 to 1"),
        ({"epsilons": (1.5,)}, ProfileError, "from 0 to 1"),
        ({"codings": ()}, ProfileError, "codings must name some of float32, int8, int4, each once"),
        ({"codings": ("int8", "int8")}, ProfileError, "codings must name"),
        ({"codings": ("int3",)}, ProfileError, "codings must name"),
        ({"codings": ("int8",), "hidden": ["colour"]}, ProfileError, "add float32 to the codings"),
        ({"cuts": ()}, ProfileError, "no cut was given"),
        ({"cuts": [7]}, SplitError, "there is no cut 7"),
        ({"cuts": ["layer4.1"]}, NoLinearLayerError, "not a fully connected or convolutional layer"),
        ({"hidden": ["race"]}, AttackError, "no hidden attribute 'race'"),
        ({"hidden": ["constant"]}, AttackError, "'constant' is constant in the train part"),
    ],
)
def test_an_impossible_profile_is_refused(
    model: sv.Table1Net, data: sv.Dataset, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        sv.measure_profile(model, data, **options)


def test_impossible_images_and_models_are_refused(model: sv.Table1Net, data: sv.Dataset) -> None:
    with pytest.raises(ProfileError, match=r"on a Dataset or on images .* not on a str"):
        sv.measure_profile(model, "digit-pairs")  # type: ignore[arg-type]
    with pytest.raises(ProfileError, match="need a data set with labels"):
        sv.measure_profile(model, data.val.x, reference=model)
    with pytest.raises(ProfileError, match="need a data set with labels"):
        sv.measure_profile(model, data.val.x, hidden=["colour"])
    for bad in (data.val.pixels, data.val.x[0], data.val.x[:0]):
        with pytest.raises(ProfileError, match=r"floats of shape \(N, C, H, W\)"):
            sv.measure_profile(model, bad)
    with pytest.raises(ModelError, match="cannot read images of shape"):
        sv.measure_profile(model, torch.rand(2, 3, 8, 8))
    broken = network(5)
    nn.init.zeros_(broken.layer5[0].weight)
    with pytest.raises(ProfileError, match="the weights of 'layer5' are all zero"):
        sv.measure_profile(broken, data, cuts=[5])
    nn.init.constant_(broken.layer5[0].weight, torch.nan)
    with pytest.raises(ModelError, match="not one finite number per class"):
        sv.measure_profile(broken, data)


def test_a_profile_from_before_there_were_codings_is_read(found: Profile, tmp_path: Path) -> None:
    content = found.model_dump(mode="json")
    content["rows"] = [row for row in content["rows"] if row["coding"] == "float32"]
    for row in content["rows"]:
        del row["coding"]
    (tmp_path / "profile.json").write_text(json.dumps(content), encoding="utf-8")
    old = read_profile(tmp_path / "profile.json")
    assert list(old.rows) == [row for row in found.rows if row.coding == "float32"]
    assert sv.choose(old).row.coding == "float32"


def test_a_profile_survives_its_file(found: Profile, tmp_path: Path) -> None:
    write_profile(tmp_path / "profile.json", found)
    assert read_profile(tmp_path / "profile.json") == found


def damaged(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Profiles with one thing wrong each, and a word of what is to be said."""

    def with_row(**changes: Any) -> dict[str, Any]:
        return {**content, "rows": [{**content["rows"][0], **changes}, *content["rows"][1:]]}

    row, bounded = content["rows"][0], next(one for one in content["rows"] if one["method"] == "bounded")
    yield "profile of version 2", {**content, "schema_version": 2}
    yield "schema_version", {key: value for key, value in content.items() if key != "schema_version"}
    yield "schema_version", {**content, "schema_version": "1"}
    yield "extra", {**content, "extra": 1}
    yield "rows", {**content, "rows": []}
    yield "rows.0.m", with_row(m="1")
    yield "rows.0.m", with_row(m=0)
    yield "rows.0.extra", with_row(extra=1)
    yield "of 60 samples", with_row(agreeing=61)
    yield "does not hold its value", with_row(agreement={**row["agreement"], "high": row["agreement"]["value"] - 0.01})
    yield "is not", with_row(agreeing=row["agreeing"] - 1)
    yield "more than the 60 samples", with_row(lost=50, gained=50 - row["lost"] + row["gained"])
    yield "the drop of", with_row(lost=row["lost"] + 1)
    yield "together or not at all", with_row(drop=None)
    yield "has a drop", with_row(drop=None, lost=None, gained=None, accuracy=None)
    yield "has 61 samples", with_row(samples=61, **shares(row, 61))
    yield "do not add up", with_row(accuracy={"value": 1.0, "low": 0.0, "high": 1.0})
    yield "mean lies above", with_row(bytes_mean=row["bytes_most"] + 1.0)
    yield "so their mean is not", with_row(mean_components=0.5)
    yield "does not go with", with_row(m=None)
    yield "does not go with", with_row(fixed_length=False)
    yield "two rows are of the same cut", {**content, "rows": [row, row]}
    yield "rows.0.coding", with_row(coding="int3")
    yield "rows.0.method", with_row(method="magic")
    yield "names its obfuscator", with_row(method="distilled")
    yield "coded as index", with_row(messages=9)
    yield "coded as index", with_row(coding="index")
    yield "has 17 bytes, not", with_row(coding="index", messages=256, bytes_most=18, bytes_mean=18.0)
    yield "bytes, not", with_row(bytes_most=row["bytes_most"] + 1)
    yield "bytes, not", with_row(bytes_mean=row["bytes_mean"] - 1)
    yield "bytes, not", with_row(coding="int4")
    yield "bytes, not", {**content, "rows": [{**bounded, "bytes_most": 10**6}]}
    yield "of varying length are written as float32", {**content, "rows": [{**bounded, "coding": "int8"}]}
    yield "in the same codings", {**content, "rows": content["rows"][1:]}
    yield "has not the shape", with_row(message_shape=[row["message_shape"][0] + 1, *row["message_shape"][1:]])
    yield "one layer and one cost", with_row(client_macs=row["client_macs"] + 1)
    yield "one layer and one cost", with_row(layer="layer6")
    yield (
        "cannot cost the client less",
        {**content, "rows": [{**one, "cut": 9 - one["cut"]} for one in content["rows"]]},
    )
    yield "mean lies above", {**content, "rows": [{**bounded, "mean_components": bounded["message_shape"][0] + 1.0}]}
    yield "of other weights", {**content, "reference": {**content["reference"], "weights": "0" * 64}}
    yield "has an accuracy", {**content, "reference": {**content["reference"], "accuracy": None}}
    yield "weights", {**content, "model": {**content["model"], "weights": "xyz"}}
    yield "confidence", {**content, "confidence": 1.5}
    yield "not a valid profile", [content]


def shares(row: dict[str, Any], samples: int) -> dict[str, Any]:
    """A row's shares, were there so many samples."""
    agreement, drop = row["agreeing"] / samples, (row["lost"] - row["gained"]) / samples
    return {
        name: {"value": value, "low": -1.0, "high": 1.0} for name, value in (("agreement", agreement), ("drop", drop))
    }


def test_a_damaged_profile_is_named(found: Profile, tmp_path: Path) -> None:
    path, content = tmp_path / "profile.json", found.model_dump(mode="json")
    for says, bad in damaged(content):
        path.write_text(json.dumps(bad), encoding="utf-8")
        with pytest.raises(ProfileError, match=str(path)) as error:
            read_profile(path)
        assert says in str(error.value)
        assert "\n" not in str(error.value)
    for text in ("", "{", "[" * 100_000, '{"schema_version": NaN}', "\udcff"):
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(ProfileError, match=r"cannot be read as JSON|is not a valid profile"):
            read_profile(path)
    with pytest.raises(ProfileError, match="does not exist; make one with 'splitveil profile RUN'"):
        read_profile(tmp_path / "nowhere.json")
    with pytest.raises(ProfileError, match="cannot be read"):
        read_profile(tmp_path)


def test_the_published_schema_is_the_models() -> None:
    published = json.loads((ROOT / "docs" / "profile.schema.json").read_text(encoding="utf-8"))
    assert published == Profile.model_json_schema()  # renew it with 'splitveil profile --schema'
    assert set(published["$defs"]) >= {"Row", "Interval", "Reference"}


def test_every_field_is_explained() -> None:
    page = (ROOT / "docs" / "profile.md").read_text(encoding="utf-8")
    assert [name for name in (*Profile.model_fields, *Row.model_fields) if f"`{name}`" not in page] == []


def thin(axes: Axes) -> list[Any]:
    """The heights of the lines of integer codings, in the order drawn."""
    return [line.get_ydata() for line in axes.lines if line.get_linestyle() in ("--", ":")]


def test_the_plot_shows_every_cut_and_repeats_itself(found: Profile, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        write_figure(tmp_path / name, profile_figure(found))
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    axes = profile_figure(found).axes
    labels = axes[1].get_legend_handles_labels()[1]
    assert [label.partition(",")[0] for label in labels] == [f"cut {cut}" for cut in range(1, 7)]
    assert "drop against its own uncut model" in axes[0].get_ylabel()
    drawn = axes[0].containers[0].lines[0].get_ydata()
    first = [row for row in found.rows if row.cut == 1 and row.fixed_length and row.drop is not None]
    for coding, line in (("float32", drawn), *zip(("int8", "int4"), thin(axes[0]), strict=False)):
        assert list(line) == [pytest.approx(100 * row.drop.value) for row in first if row.coding == coding]  # type: ignore[union-attr]
    bare = found.model_copy(update={
        "data": found.data.model_copy(update={"labelled": False}),
        "rows": tuple(row.model_copy(update={"drop": None}) for row in found.rows),
    })  # fmt: skip
    assert "other than the uncut model" in profile_figure(bare).axes[0].get_ylabel()


def test_the_plot_shows_a_fitted_obfuscator(model: sv.Table1Net, data: sv.Dataset) -> None:
    for kind, places in (("codebook", [1]), ("server-aware", [1, 2, 4, 5])):
        veil = made_veil(kind, sv.SplitModel(model, at=4), data.train, m=5)
        found = sv.measure_profile(model, data, cuts=[4], obfuscator=veil)
        axes = profile_figure(found).axes
        line = axes[0].containers[0].lines[0]
        exact = [row for row in found.rows if row.coding in ("float32", "index")]
        assert list(line.get_xdata()) == places
        assert list(line.get_ydata()) == [pytest.approx(100 * row.drop.value) for row in exact if row.drop is not None]
        assert axes[1].get_legend_handles_labels()[1][0].startswith(f"cut 4, {kind}: ")


def test_one_digest_for_a_model_in_memory_and_in_its_file(model: sv.Table1Net, tmp_path: Path) -> None:
    write_tensors(tmp_path / "weights", model.state_dict(), {"anything": 1})
    assert weights_digest((tmp_path / "weights").read_bytes()) == model_digest(model)
    assert model_digest(network(5)) == model_digest(model) != model_digest(network(6))


def test_the_digest_is_of_names_types_shapes_and_values_alone() -> None:
    a, b = torch.arange(6.0), torch.ones(2)
    digest = weights_digest(save({"a": a, "b": b}))
    assert weights_digest(save({"b": b, "a": a}, metadata={"made": "today"})) == digest
    others = [{"a": a, "c": b}, {"a": a.reshape(2, 3), "b": b}, {"a": a.int(), "b": b}, {"a": a + 1, "b": b}, {"a": a}]
    assert len({weights_digest(save(other)) for other in others} | {digest}) == 6


def test_the_digest_is_the_same_in_every_process() -> None:
    state = hashlib.sha256()
    for name in "abcdefgh":
        state.update(json.dumps([name, "U8", [1]]).encode() + name.encode())
    tensors = {name: torch.tensor([ord(name)], dtype=torch.uint8) for name in "hgfedcba"}
    assert weights_digest(save(tensors)) == state.hexdigest()


def header(content: Any, tail: bytes = b"\0" * 8) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + tail


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff" * 8, b"\xff" * 64, struct.pack("<Q", 3) + b"{", header([]), header({"a": 1}),
        header({"a": {"dtype": "F32", "shape": [2]}}),
        header({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}),
        header({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}),
        header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}),
        header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}),
        header({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}}),
    ],
)  # fmt: skip
def test_bytes_that_are_no_weights_are_refused(data: bytes) -> None:
    with pytest.raises(ProfileError, match="train again"):
        weights_digest(data)


@given(st.binary(max_size=64))
def test_any_bytes_have_a_digest_or_are_refused(tail: bytes) -> None:
    for data in (tail, struct.pack("<Q", len(tail)) + tail):
        with contextlib.suppress(ProfileError):  # and nothing else
            assert len(weights_digest(data)) == 64
