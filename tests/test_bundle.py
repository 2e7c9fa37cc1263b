"""Bundles on disk: whole or refused by name, and never a way out of their folder."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from splitveil.bundle import (
    Graph,
    Messages,
    from_frames,
    identity_of,
    read_edge,
    read_server,
    to_frames,
)
from splitveil.bundle.folder import write_bundle
from splitveil.errors import BundleError, WireError

READ: dict[str, Callable[..., Any]] = {"edge": read_edge, "server": read_server}
SIDES = ("edge", "server")


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("side", SIDES)
def test_a_bundle_is_read_with_all_its_files(exported: Path, side: str) -> None:
    found = READ[side](exported / side)
    assert set(found.files) == {path.name for path in (exported / side).iterdir()} - {"manifest.json"}
    assert all(len(found.files[name]) == facts.bytes for name, facts in found.manifest.files.items())
    assert found.manifest.kind == side


def test_both_sides_agree_and_hold_only_their_own(exported: Path) -> None:
    edge, server = read_edge(exported / "edge").manifest, read_server(exported / "server").manifest
    assert (edge.identity, edge.messages, edge.name) == (server.identity, server.messages, server.name)
    assert {path.name for path in (exported / "server").iterdir()} == {"manifest.json", "server.onnx"}
    assert {path.name for path in (exported / "edge").iterdir()} == {"manifest.json", "edge.onnx", "profile.json"}


@pytest.mark.parametrize("side", SIDES)
def test_any_changed_byte_of_any_file_is_refused(bundle: Path, side: str) -> None:
    folder = bundle / side
    for name in read_names(folder):
        original = (folder / name).read_bytes()
        for place in (0, len(original) // 2, len(original) - 1):
            changed = bytearray(original)
            changed[place] ^= 1
            (folder / name).write_bytes(changed)
            with pytest.raises(BundleError, match=f"{name} is not what its bundle says"):
                READ[side](folder)
        for cut in (original[:-1], original + b"\0", b""):
            (folder / name).write_bytes(cut)
            with pytest.raises(BundleError, match=name):
                READ[side](folder)
        (folder / name).write_bytes(original)
    READ[side](folder)


def read_names(folder: Path) -> list[str]:
    return list(json.loads((folder / "manifest.json").read_text())["files"])


@pytest.mark.parametrize("side", SIDES)
def test_a_missing_file_is_named(bundle: Path, side: str) -> None:
    for name in [*read_names(bundle / side), "manifest.json"]:
        moved = (bundle / side / name).rename(bundle / "elsewhere")
        with pytest.raises(BundleError, match=f"it has no file {name}"):
            READ[side](bundle / side)
        moved.rename(bundle / side / name)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c.update(schema_version=2), "bundle of version 2, but version 1 is read here"),
        (lambda c: c.update(schema_version="1"), "schema_version"),
        (lambda c: c.update(more=1), "more"),
        (lambda c: c.pop("messages"), "messages"),
        (lambda c: c["messages"].update(components=0), "components"),
        (lambda c: c["messages"].update(components=9), "one scale for each of the 9 components"),
        (lambda c: c["messages"].update(codings=["int8", "int8"]), "named twice"),
        (lambda c: c["messages"].update(codings=["float32"]), "every integer coding has scales"),
        (lambda c: c["messages"]["scales"].update(int8=[-1.0] * 8), "scales"),
        (lambda c: c["messages"]["scales"].update(int8=[1e39] * 8), "scales"),  # more than float32 can hold
        (lambda c: c["messages"]["scales"].update(int8=[1e38] * 8), "scales"),  # 127 times of it are
        (lambda c: c["messages"]["scales"].update(int8=[1e-46] * 8), "scales"),  # zero to float32
        (lambda c: c["messages"].update(certified=True), "exactly one coding"),
        (lambda c: c["messages"].update(positions=[300, 300]), "do not fit into a frame"),
        (lambda c: c.update(identity="0" * 64), "identity is not that of this graph"),
        (lambda c: c.update(n_classes=1), "n_classes"),
        (lambda c: c["files"].update({"../server.onnx": c["files"]["server.onnx"]}), "no name of a file inside"),
        (lambda c: c["files"].update({"/etc/passwd": c["files"]["server.onnx"]}), "no name of a file inside"),
        (lambda c: c["files"].update({"manifest.json": c["files"]["server.onnx"]}), "no name of a file inside"),
        (lambda c: c["files"].update({"more.onnx": c["files"]["server.onnx"]}), "holds server.onnx"),
        (lambda c: c["files"]["server.onnx"].update(sha256="f" * 64), "identity is not that of this graph"),
        (lambda c: c["files"]["server.onnx"].update(bytes=10**9), "not what its bundle says it is"),
        (lambda c: c.update(name="a/b"), "name"),
    ],
)
def test_a_wrong_server_manifest_is_refused(bundle: Path, edit: Callable[[dict[str, Any]], object], words: str) -> None:
    change(bundle / "server", edit)
    with pytest.raises(BundleError, match=words):
        read_server(bundle / "server")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c["policy"].update(m=9), "policy asks for what the messages cannot be"),
        (lambda c: c["policy"].update(coding="int3"), "coding"),
        (lambda c: c["picture"].update(shape=[1, 16, 31]), "not those of the model"),
        (lambda c: c["picture"].update(shape=[2, 16, 32]), "1 or 3 channels"),
        (lambda c: c["picture"].update(crop=[0.5, 0.0, 0.5, 1.0]), "is empty"),
        (lambda c: c["picture"].update(crop=[0.5, 0.0, 1.5, 1.0]), "crop"),
        (lambda c: c.update(classes=["a", "b"]), "not those of the model"),
        (lambda c: c["files"].pop("profile.json"), "holds edge.onnx and profile.json"),
    ],
)
def test_a_wrong_edge_manifest_is_refused(bundle: Path, edit: Callable[[dict[str, Any]], object], words: str) -> None:
    change(bundle / "edge", edit)
    with pytest.raises(BundleError, match=words):
        read_edge(bundle / "edge")


def test_the_other_side_and_no_bundle_are_told_apart(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is the edge bundle; name the server bundle"):
        read_server(exported / "edge")
    with pytest.raises(BundleError, match="is no bundle: it has no file manifest"):
        read_server(exported)
    with pytest.raises(BundleError, match="is no bundle"):
        read_edge(tmp_path / "nowhere")


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"kind": "server"}', b"null"])
def test_a_manifest_that_is_none_is_refused(bundle: Path, text: bytes) -> None:
    (bundle / "server" / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError):
        read_server(bundle / "server")


@pytest.mark.parametrize("name", ["server.onnx", "manifest.json", "manifest.sig"])
@pytest.mark.parametrize("kind", ["out", "inside", "dangling", "loop"])
def test_a_file_of_a_bundle_is_no_link(bundle: Path, keys: tuple[Path, Path], name: str, kind: str) -> None:
    file = signed(bundle, keys[0]) / name
    target = {"out": bundle / "elsewhere", "inside": file.parent / "other", "dangling": bundle / "none", "loop": file}
    moved = file.rename(target["out" if kind in ("dangling", "loop") else kind])
    file.symlink_to(target[kind])
    with pytest.raises(BundleError, match=f"{name} is a link, which leads out of its bundle"):
        read_server(bundle / "server", public_key=keys[1])
    file.unlink()
    moved.rename(file)
    (bundle / "current").symlink_to("server")  # releases are switched by such a link
    assert read_server(bundle / "current", public_key=keys[1]).manifest.name == "pairs"


@pytest.mark.parametrize("name", ["server.onnx", "manifest.json", "manifest.sig"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_pipe_is_not_waited_for(
    bundle: Path, keys: tuple[Path, Path], name: str, make: Callable[..., object]
) -> None:
    file = signed(bundle, keys[0]) / name
    file.unlink()
    make(file)
    with pytest.raises(BundleError, match=rf"{name} (is no file|cannot be read)"):
        read_server(bundle / "server", public_key=keys[1])


def test_a_sparse_file_is_refused_by_its_size(bundle: Path) -> None:
    graph, huge = bundle / "server" / "server.onnx", 10 * 2**30
    honest = graph.stat().st_size
    os.truncate(graph, huge)
    messages = read_edge(bundle / "edge").manifest.messages
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=f"it was changed and has {huge} bytes, not {honest}"):
            read_server(bundle / "server")
        change(bundle / "server", lambda c: c["files"]["server.onnx"].update(bytes=huge, sha256="0" * 64))
        change(bundle / "server", lambda c: c.update(identity=identity_of(messages, "0" * 64)))
        with pytest.raises(BundleError, match=f"has {huge} bytes, but at most 2147483647 are read"):
            read_server(bundle / "server")
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("side", "name", "key"),
    [("server", "manifest.json", "kind"), ("edge", "manifest.json", "divisor"), ("edge", "profile.json", "layer")],
)
def test_a_key_that_stands_twice_is_refused(bundle: Path, side: str, name: str, key: str) -> None:
    file = bundle / side / name
    text = re.sub(rf'("{key}": [^\n]*?)(,?\n)', r"\1, \1\2", file.read_text(), count=1)
    file.write_text(text)
    if name == "profile.json":
        facts = {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        change(bundle / side, lambda c: c["files"].update({name: facts}))
    with pytest.raises(BundleError, match=f"{name} has the key '{key}' twice"):
        READ[side](bundle / side)


def test_what_is_no_graph_is_refused() -> None:
    for content in (b"", b"no graph", bytes(range(256)) * 10):
        with pytest.raises(BundleError, match="cannot be loaded"):
            Graph(content, (8,), (10,))


def test_a_graph_of_other_shapes_is_refused(exported: Path) -> None:
    content = read_server(exported / "server").files["server.onnx"]
    assert Graph(content, (8,), (10,)).run(np.zeros((3, 8), np.float32)).shape == (3, 10)
    with pytest.raises(BundleError, match="is not what its bundle says"):
        Graph(content, (7,), (10,))


@example(place=50, byte=ord("1"), length=1)  # a file's size that is too large
@given(place=st.integers(0, 2000), byte=st.integers(0, 255), length=st.integers(0, 3))
def test_damaged_manifests_are_read_or_refused(exported: Path, place: int, byte: int, length: int) -> None:
    text = bytearray((exported / "server" / "manifest.json").read_bytes())
    place %= len(text)
    text[place : place + length] = bytes([byte])
    folder = exported.parent / "damaged"
    folder.mkdir(exist_ok=True)
    shutil.copy(exported / "server" / "server.onnx", folder)
    (folder / "manifest.json").write_bytes(text)
    with contextlib.suppress(BundleError):
        found = read_server(folder).manifest
        there = read_server(exported / "server").manifest
        # What is still a bundle means the same, but for two names that bind nothing, and for the number of classes,
        # with which `Graph` compares the graph itself when it is loaded.
        free = {"name", "splitveil", "n_classes"}
        assert found.model_dump(exclude=free) == there.model_dump(exclude=free)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def copied(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server bundle whose manifest is written over again and again."""
    return Path(shutil.copytree(exported / "server", tmp_path_factory.mktemp("copied") / "server"))


@pytest.mark.parametrize("size", [10**15, 2**63, 2**70])
def test_a_file_that_is_claimed_to_be_huge_asks_for_no_memory(exported: Path, copied: Path, size: int) -> None:
    content = json.loads((exported / "server" / "manifest.json").read_text())
    content["files"]["server.onnx"]["bytes"] = size
    (copied / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="it was changed"):
        read_server(copied)


@given(data=st.data())
def test_any_json_in_any_field_is_read_or_refused(exported: Path, copied: Path, data: st.DataObject) -> None:
    content = json.loads((exported / "server" / "manifest.json").read_text())
    part: Any = data.draw(
        st.sampled_from([content, content["messages"], content["files"], content["files"]["server.onnx"]])
    )
    part[data.draw(st.sampled_from(list(part)))] = data.draw(JSON)
    (copied / "manifest.json").write_text(json.dumps(content))
    with contextlib.suppress(BundleError):
        read_server(copied)


# --- signatures


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key file."""
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def signed(bundle: Path, private: Path) -> Path:
    found = read_server(bundle / "server")
    write_bundle(bundle / "server", found.manifest, found.files, private)
    return bundle / "server"


def test_a_signed_bundle_is_read_with_its_key_and_without(bundle: Path, keys: tuple[Path, Path]) -> None:
    folder = signed(bundle, keys[0])
    assert read_server(folder, public_key=keys[1]).manifest == read_server(folder).manifest
    assert (folder / "manifest.sig").stat().st_size == 64


def test_an_unsigned_or_forged_bundle_is_refused(bundle: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(BundleError, match="is not signed, but a signature is required"):
        read_server(bundle / "server", public_key=keys[1])
    folder = signed(bundle, keys[0])
    change(folder, lambda c: c.update(name="other"))  # harmless without a signature
    assert read_server(folder).manifest.name == "other"
    with pytest.raises(BundleError, match="does not carry the signature"):
        read_server(folder, public_key=keys[1])
    (folder / "manifest.sig").write_bytes(b"")
    with pytest.raises(BundleError, match="does not carry the signature"):
        read_server(folder, public_key=keys[1])


def test_an_old_signature_does_not_outlive_its_manifest(bundle: Path, keys: tuple[Path, Path]) -> None:
    folder = signed(bundle, keys[0])
    found = read_server(folder)
    write_bundle(folder, found.manifest, found.files)
    assert not (folder / "manifest.sig").exists()


def test_keys_that_are_none_are_named(bundle: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    other = tmp_path / "x.pem"
    other.write_bytes(X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = tmp_path / "x.pub"
    public.write_bytes(
        X25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    for key, words in (
        (keys[1], "no private key"),
        (other, "another kind"),
        (tmp_path / "none", "none cannot be read"),
    ):
        with pytest.raises(BundleError, match=words):
            signed(bundle, key)
        read_server(bundle / "server")  # nothing is lost
    for key, words in (
        (keys[0], "no public key"),
        (public, "another kind"),
        (tmp_path / "none", "none cannot be read"),
    ):
        with pytest.raises(BundleError, match=words):
            read_edge(bundle / "edge", public_key=key)


# --- writing


def test_an_interrupted_bundle_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_server(bundle / "server")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("splitveil.bundle.folder.write_bytes", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle / "server", found.manifest, found.files)
    with pytest.raises(BundleError, match="it has no file manifest"):
        read_server(bundle / "server")


def test_a_folder_with_something_else_is_left_alone(exported: Path, tmp_path: Path) -> None:
    found = read_server(exported / "server")
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(BundleError, match="holds something that is no bundle"):
        write_bundle(tmp_path, found.manifest, found.files)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


# --- frames, as the messages say


def messages(**more: Any) -> Messages:
    facts: dict[str, Any] = {
        "components": 4, "positions": (2, 3), "codings": ("float32", "int8", "int4"), "certified": False,
        "scales": {"int8": (0.5, 0.25, 0.125, 1.0), "int4": (1.0, 2.0, 3.0, 4.0)},
    }  # fmt: skip
    return Messages(**{**facts, **more})


CERTIFIED = {"codings": ("int8",), "scales": {"int8": (0.5, 0.25, 0.125, 1.0)}, "certified": True}
NAME = b"abcd"
IDENTITY = "bf014c6bb224c415011c08afd0bd2f28e617aadf2776909a47afb69299b8b98a"


@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 4), coding=st.sampled_from(["float32", "int8", "int4"]))
def test_frames_give_back_what_they_can_hold(seed: int, m: int, coding: Any) -> None:
    facts = messages()
    largest = {"float32": 100, "int8": 127, "int4": 7}[coding]
    integers = np.random.default_rng(seed).integers(-largest, largest + 1, (5, 4, 2, 3))
    scale = np.ones(4) if coding == "float32" else facts.scale(coding)
    values = (integers * scale.reshape(1, 4, 1, 1)).astype(np.float32)
    frames = to_frames(values, facts, NAME, m=m, coding=coding)
    assert {len(frame) for frame in frames} == {facts.frame_bytes(m, coding)}
    found = from_frames(frames, facts, NAME)
    np.testing.assert_array_equal(found[:, :m], values[:, :m])
    assert not found[:, m:].any()


def test_frames_of_another_form_are_refused() -> None:
    values = np.zeros((1, 4, 2, 3), np.float32)
    certified = messages(**CERTIFIED)
    for m, coding, words in ((3, "int8", "has 4 components, not 3"), (4, "int4", "coded as int8 here, not as int4"),
                             (4, "float32", "coded as int8 here")):  # fmt: skip
        frames = to_frames(values, messages(), NAME, m=m, coding=coding)  # type: ignore[arg-type]
        with pytest.raises(WireError, match=words):
            from_frames(frames, certified, NAME)
        with pytest.raises(WireError, match=words):
            to_frames(values, certified, NAME, m=m, coding=coding)  # type: ignore[arg-type]
    frames = to_frames(values, certified, NAME, m=4, coding="int8")
    assert from_frames(frames, certified, NAME).shape == (1, 4, 2, 3)
    with pytest.raises(WireError, match="hold different models"):
        from_frames(frames, certified, b"efgh")
    for m in (0, 5):
        with pytest.raises(WireError, match="1 to 4 components"):
            to_frames(values, messages(), NAME, m=m, coding="int8")
    wide = to_frames(np.zeros((1, 4, 2, 4), np.float32), messages(positions=(2, 4)), NAME, m=4, coding="int8")
    with pytest.raises(WireError, match="6 coefficients here, not 8"):
        from_frames(wide, messages(), NAME)


def test_coefficients_that_are_not_finite_are_not_sent() -> None:
    values = np.zeros((1, 4, 2, 3), np.float32)
    values[0, 3, 1, 2] = np.nan
    for coding in ("float32", "int8", "int4"):
        with pytest.raises(WireError, match="not finite"):
            to_frames(values, messages(), NAME, m=4, coding=coding)  # type: ignore[arg-type]
        to_frames(values, messages(), NAME, m=3, coding=coding)  # type: ignore[arg-type]


@given(data=st.binary(max_size=80))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with contextlib.suppress(WireError):
        found = from_frames([data], messages(), data[4:8])
        assert found.shape == (1, 4, 2, 3)


def test_the_messages_are_checked_when_made() -> None:
    assert messages(**CERTIFIED).frame_bytes(4, "int8") == 16 + 24
    with pytest.raises(ValidationError, match="exactly one coding, of integers"):
        messages(codings=("float32",), scales={}, certified=True)


# --- finite messages: of digits, and always certified


FINITE: dict[str, Any] = {
    "components": 3, "positions": (), "codings": ("index",), "scales": {}, "certified": True, "levels": (5, 7, 11),
}  # fmt: skip


def test_the_number_of_messages_is_known_where_a_bundle_keeps_to_it() -> None:
    assert Messages(**FINITE).distinct == 5 * 7 * 11
    assert Messages(**{**FINITE, "components": 20, "levels": (2**16 - 1,) * 20}).distinct == (2**16 - 1) ** 20
    assert messages(**CERTIFIED).distinct == 255 ** (4 * 6)
    four_bits = {"codings": ("int4",), "scales": {"int4": (1.0,)}, "certified": True, "components": 1, "positions": ()}
    assert messages(**four_bits).distinct == 15
    assert messages().distinct is messages(**{**CERTIFIED, "certified": False}).distinct is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"levels": None}, "which have levels, are coded as index"),
        ({"codings": ("int8",), "scales": {"int8": (1.0,) * 3}}, "which have levels, are coded as index"),
        ({"codings": ("index", "float32")}, "exactly one coding"),
        ({"certified": False}, "is certified, and they are coded as index alone"),
        ({"certified": False, "codings": ("index", "float32")}, "is certified, and they are coded as index alone"),
        ({"scales": {"int8": (1.0,) * 3}}, "every integer coding has scales, and no other"),
        ({"scales": {"index": (1.0,) * 3}}, "scales.index"),
        ({"positions": (1,)}, "each component of a finite message is one digit"),
        ({"components": 2}, "each component of a finite message is one digit"),
        ({"levels": (5, 7, 0)}, "levels.2"),
        ({"levels": (5, 7, 2**16)}, "levels.2"),
        ({"levels": (2**16 - 1,) * 40_000, "components": 40_000}, "does not fit into a frame"),
    ],
)
def test_messages_that_contradict_their_levels_are_refused(change: dict[str, Any], words: str) -> None:
    assert Messages(**FINITE).frame_bytes(3, "index") == 16 + 2
    with pytest.raises(ValidationError, match=words):
        Messages(**{**FINITE, **change})


def test_levels_are_part_of_the_identity_and_their_absence_is_none() -> None:
    graph = "ab" * 32
    # As it was written before bundles could have levels.
    assert identity_of(messages(), graph) == IDENTITY
    names = {identity_of(Messages(**{**FINITE, "levels": levels}), graph) for levels in ((5, 7, 11), (5, 11, 7))}
    assert len(names) == 2


def test_a_manifest_from_before_there_were_levels_is_read(bundle: Path) -> None:
    for side in SIDES:
        before = READ[side](bundle / side).manifest
        change(bundle / side, lambda content: content["messages"].pop("levels"))
        assert READ[side](bundle / side).manifest == before


def test_digits_are_given_back_and_those_that_are_none_are_not_sent() -> None:
    facts = Messages(**FINITE)
    digits = np.stack(np.unravel_index(np.arange(385), (5, 7, 11)), axis=1).astype(np.float32)
    frames = to_frames(digits, facts, NAME, m=3, coding="index")
    assert {len(frame) for frame in frames} == {facts.frame_bytes(3, "index")}
    found = from_frames(frames, facts, NAME)
    assert found.dtype == np.float32  # what graphs take
    np.testing.assert_array_equal(found, digits)
    for bad in (0.5, -1, 11, np.nan):
        with pytest.raises(WireError, match="no whole numbers below their levels"):
            to_frames(np.array([[0, 0, bad]], np.float32), facts, NAME, m=3, coding="index")
    for m, coding, words in ((2, "index", "3 components, not 2"), (3, "int8", "coded as index here, not as int8")):
        with pytest.raises(WireError, match=words):
            to_frames(digits, facts, NAME, m=m, coding=coding)  # type: ignore[arg-type]


def test_indices_are_not_read_where_coefficients_are_expected() -> None:
    frames = to_frames(np.zeros((1, 3), np.float32), Messages(**FINITE), NAME, m=3, coding="index")
    for facts in (messages(), messages(**CERTIFIED)):
        with pytest.raises(WireError, match="not as index"):
            from_frames(frames, facts, NAME)
