"""The edge's half without a network: photos and arrays to exactly the frames that the torch model would send."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from PIL import Image

import splitveil as sv
from made_bundles import made_model
from splitveil.bundle import file_facts, from_frames, read_edge, write_bundle
from splitveil.client import EdgeEncoder, describe
from splitveil.errors import BundleError, DataError, ShapeError, WireError
from splitveil.export import export
from splitveil.picture import read_photo
from splitveil.wire import decode


@pytest.fixture(scope="module")
def data() -> sv.Dataset:
    return sv.load_data("digit-pairs")


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The edge bundle of an untrained network on colour images of 16 by 24 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 3, 16, 24), dtype=np.uint8)
    data = sv.Dataset.from_arrays(pixels, np.arange(200) % 2, classes=["left", "right"])
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("coloured")
    export(sv.Table1Net((3, 16, 24), 2).eval(), data, folder, cut=4, method="top", m=3)
    return folder / "edge"


def changed(folder: Path, to: Path, **fields: Any) -> Path:
    """A copy of an edge bundle whose manifest says something else."""
    bundle = read_edge(folder)
    write_bundle(to, bundle.manifest.model_copy(update=fields), bundle.files)
    return to


def coefficients(encoder: EdgeEncoder, frames: list[bytes]) -> np.ndarray:
    return from_frames(frames, encoder.manifest.messages, encoder.manifest.short_identity)


@pytest.mark.parametrize("m", [8, 3, 1])
def test_frames_hold_the_coefficients_of_the_torch_model(exported: Path, data: sv.Dataset, m: int) -> None:
    split = sv.SplitModel(made_model(), at=4)
    x = data.test.images(slice(0, 20))
    with torch.no_grad():
        z = split.client(x)
        factors = sv.factorise(split.server_layer, feature_shape=z.shape[1:], operator="patch")
        wanted = sv.TopComponents(factors, m=m).encode(z).numpy()
    encoder = EdgeEncoder(exported / "edge", m=m, coding="float32")
    found = coefficients(encoder, encoder.frames(list(x.numpy())))
    np.testing.assert_allclose(found[:, :m], wanted, atol=1e-4, rtol=1e-4)
    assert not found[:, m:].any()


def test_pixels_and_the_network_s_input_give_the_same_frames(exported: Path, data: sv.Dataset) -> None:
    encoder = EdgeEncoder(exported / "edge")
    x = data.test.images(slice(0, 5)).numpy()
    pixels = np.rint(x * 255).astype(np.uint8)
    assert encoder.frames(list(pixels)) == encoder.frames(x) == [encoder.frames([one])[0] for one in pixels]
    assert encoder.frames([]) == []


def test_the_policy_decides_unless_the_user_does(exported: Path) -> None:
    manifest = read_edge(exported / "edge").manifest
    policy = manifest.policy
    blank = np.zeros(manifest.picture.shape, np.uint8)
    default = EdgeEncoder(exported / "edge")
    assert (default.m, default.coding) == (policy.m, policy.coding) == (8, "int8")
    for m, coding, length in ((None, None, 16 + 8), (5, None, 16 + 5), (5, "int4", 16 + 3), (None, "float32", 16 + 32)):
        encoder = EdgeEncoder(exported / "edge", m=m, coding=coding)
        (frame,) = encoder.frames([blank])
        assert len(frame) == length == manifest.messages.frame_bytes(encoder.m, encoder.coding)
        assert decode(frame).identity == bytes.fromhex(manifest.identity)[:4]


@pytest.mark.parametrize(("wish", "sentence"), [({"m": 0}, "1 to 8"), ({"m": 9}, "1 to 8"), ({"coding": "x"}, "int8")])
def test_what_the_messages_do_not_allow_is_refused(exported: Path, wish: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WireError, match=sentence):
        EdgeEncoder(exported / "edge", **wish)


def test_a_certified_bundle_sends_all_components_in_its_one_coding(exported: Path, tmp_path: Path) -> None:
    messages = read_edge(exported / "edge").manifest.messages
    only = messages.model_copy(
        update={"certified": True, "codings": ("int4",), "scales": {"int4": messages.scales["int4"]}}
    )
    policy = read_edge(exported / "edge").manifest.policy.model_copy(update={"coding": "int4"})
    folder = changed(exported / "edge", tmp_path / "certified", messages=only, policy=policy)
    assert EdgeEncoder(folder).coding == "int4"
    for wish in ({"m": 7}, {"coding": "float32"}):
        with pytest.raises(WireError, match=r"certified|coded"):
            EdgeEncoder(folder, **wish)


def test_a_photo_is_turned_upright_made_grey_and_scaled(exported: Path, data: sv.Dataset, tmp_path: Path) -> None:
    encoder = EdgeEncoder(exported / "edge")
    pixels = np.rint(data.test.images(slice(0, 1)).numpy()[0] * 255).astype(np.uint8)
    plain, turned, coloured = tmp_path / "plain.png", tmp_path / "turned.png", tmp_path / "coloured.png"
    picture = Image.fromarray(pixels[0])
    picture.save(plain)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn a quarter clockwise to see it upright"
    picture.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    picture.convert("RGB").save(coloured)
    wanted = encoder.frames([pixels])
    assert encoder.frames([plain]) == encoder.frames([str(turned)]) == encoder.frames([coloured]) == wanted
    double = tmp_path / "double.png"
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(double)
    assert encoder.image(double).shape == encoder.manifest.picture.shape
    assert np.abs(encoder.image(double) - encoder.image(plain)).mean() < 0.1


def test_a_crop_is_in_shares_of_the_upright_photo(coloured: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = tmp_path / "photo.png"
    Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90).save(photo, exif=exif)
    manifest = read_edge(coloured).manifest
    crop = (0.25, 0.5, 0.75, 0.75)  # of 48 by 64: 12 to 36, 32 to 48, which is 24 by 16: the network's own size
    folder = changed(coloured, tmp_path / "cropped", picture=manifest.picture.model_copy(update={"crop": crop}))
    found = EdgeEncoder(folder).image(photo)
    np.testing.assert_array_equal(found, pixels[32:48, 12:36].transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    whole = EdgeEncoder(coloured).image(photo)
    np.testing.assert_array_equal(whole, read_photo(photo, (16, 24)).astype(np.float32) / np.float32(255))


def test_the_divisor_is_the_bundle_s(coloured: Path, tmp_path: Path) -> None:
    picture = read_edge(coloured).manifest.picture.model_copy(update={"divisor": 128})
    encoder = EdgeEncoder(changed(coloured, tmp_path / "halved", picture=picture))
    assert encoder.image(np.full((3, 16, 24), 64, np.uint8)).max() == 0.5


@pytest.mark.parametrize(
    ("array", "error", "sentence"),
    [
        (np.zeros((3, 16, 23), np.uint8), ShapeError, r"\(3, 16, 24\) here, not \(3, 16, 23\)"),
        (np.zeros((16, 24), np.uint8), ShapeError, "not"),
        (np.zeros((3, 16, 24)), DataError, "not of float64"),
        (np.full((3, 16, 24), 1.5, np.float32), DataError, "divide"),
        (np.full((3, 16, 24), -0.1, np.float32), DataError, "divide"),
        (np.full((3, 16, 24), np.nan, np.float32), DataError, "divide"),
        (None, DataError, "a photo is a file, its bytes, a picture or an array, not a NoneType"),
    ],
)
def test_arrays_that_are_no_picture(coloured: Path, array: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        EdgeEncoder(coloured).frames([array])


def test_one_text_is_no_list_of_photos(coloured: Path) -> None:
    with pytest.raises(DataError, match=r"'photo.png' is one text; give \[photo\]"):
        EdgeEncoder(coloured).frames("photo.png")


def test_files_that_are_no_photo(coloured: Path, tmp_path: Path) -> None:
    encoder = EdgeEncoder(coloured)
    text, cut, deep = tmp_path / "text.jpg", tmp_path / "cut.jpg", tmp_path / "deep.tif"
    text.write_text("no photo")
    Image.new("RGB", (200, 200), "red").save(cut)
    cut.write_bytes(cut.read_bytes()[:400])
    Image.new("I;16", (20, 20)).save(deep)
    for file in (text, cut, deep, tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match="cannot be read as a photo"):
            encoder.frames([file])
    with pytest.raises(DataError, match=r"there is no photo .*nothing\.jpg"):
        encoder.frames([tmp_path / "nothing.jpg"])


def with_profile(folder: Path, to: Path, text: bytes) -> Path:
    """A copy of an edge bundle with another profile, of which every file is what the manifest says."""
    bundle = read_edge(folder)
    files = {**bundle.files, "profile.json": text}
    write_bundle(to, bundle.manifest.model_copy(update={"files": file_facts(files)}), files)
    read_edge(to)
    return to


def test_a_profile_of_another_model_or_cut_is_refused(exported: Path, tmp_path: Path) -> None:
    bundle = read_edge(exported / "edge")
    weights = bundle.manifest.model.weights.encode()
    foreign = bundle.files["profile.json"].replace(weights, b"0" * 64)
    with pytest.raises(BundleError, match=r"profile is of the model 000000000000…"):
        EdgeEncoder(with_profile(exported / "edge", tmp_path / "foreign", foreign))
    with pytest.raises(BundleError, match="says nothing of its cut at 'layer5'"):
        EdgeEncoder(changed(exported / "edge", tmp_path / "deeper", layer="layer5"))


def test_a_profile_that_is_none_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"profile\.json is no profile"):
        EdgeEncoder(with_profile(exported / "edge", tmp_path / "spoilt", b'{"rows": 3}'))


def test_a_damaged_bundle_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported / "edge", tmp_path / "edge"))
    graph = folder / "edge.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="changed"):
        EdgeEncoder(folder)
    with pytest.raises(BundleError, match="server bundle"):
        EdgeEncoder(exported / "server")


def test_a_signature_can_be_required(exported: Path, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    bundle = read_edge(exported / "edge")
    write_bundle(tmp_path / "signed", bundle.manifest, bundle.files, private)
    assert EdgeEncoder(tmp_path / "signed", public_key=public).m == 8
    with pytest.raises(BundleError, match="not signed"):
        EdgeEncoder(exported / "edge", public_key=public)


def test_the_raw_feature_s_size_is_the_profile_s(exported: Path) -> None:
    profile = json.loads((exported / "edge" / "profile.json").read_text())
    assert EdgeEncoder(exported / "edge").raw_bytes == profile["rows"][0]["raw_bytes"] == 16 + 4 * 512


@pytest.mark.parametrize(("coding", "m"), [("float32", 2), ("int8", 8), ("int4", 3)])
def test_the_fields_of_a_frame_are_all_of_its_bytes(exported: Path, coding: Any, m: int) -> None:
    encoder = EdgeEncoder(exported / "edge", m=m, coding=coding)
    (frame,) = encoder.frames([np.full(encoder.manifest.picture.shape, 9, np.uint8)])
    fields = describe(frame)
    assert "".join(field.hex for field in fields) == frame.hex()
    found = {field.name: (field.hex, field.meaning) for field in fields}
    assert found["magic"][0] == "5356"
    assert found["version"] == ("01", "1")
    assert found["coding"][1] == coding
    assert found["identity"][0] == encoder.manifest.identity[:8]
    assert found["components"] == (m.to_bytes(2, "little").hex(), f"m' = {m}")
    assert found["positions"] == ("0100", "1 per component")
    assert len(bytes.fromhex(found["checksum"][0])) == 4
    assert found["payload"][1] == f"{m} coefficients as {coding}"
