"""What stands in the way of a bundle is found before the work, and nothing half-written is left."""

import os
import resource
import signal
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import splitveil as sv
from made_bundles import made_bundle, made_model
from splitveil.bundle import read_edge, read_server
from splitveil.cli import main
from splitveil.errors import BundleError, ExportError, RunError
from splitveil.export import check_target, export
from splitveil.export.writing import write_pair


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEM files: a private key, its public one, the private one with a passphrase, and what is no key."""
    folder, key = tmp_path_factory.mktemp("keys"), Ed25519PrivateKey.generate()
    pkcs8 = PrivateFormat.PKCS8
    contents = {
        "private": key.private_bytes(Encoding.PEM, pkcs8, NoEncryption()),
        "locked": key.private_bytes(Encoding.PEM, pkcs8, BestAvailableEncryption(b"word")),
        "public": key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "noise": b"no key",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in [*contents, "missing"]}


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("missing", "cannot be read .*name the file"), ("public", "no private key but a public one"),
        ("noise", "holds no private key"), ("locked", "has a passphrase"),
    ],
)  # fmt: skip
def test_a_key_that_cannot_sign_is_noticed_before_any_work(
    tmp_path: Path, keys: dict[str, Path], key: str, words: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with pytest.raises(BundleError, match=words):
        check_target(tmp_path / "bundle", None, keys[key])
    # The run does not even exist: the key comes first.
    given = [tmp_path / "none", "--out", tmp_path / "bundle", "--sign", keys[key]]
    monkeypatch.setattr(sys, "argv", ["splitveil", "export", *map(str, given)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert str(keys[key]) in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unsigned_bundle_takes_no_signed_ones_place_unasked(tmp_path: Path, keys: dict[str, Path]) -> None:
    folder = made_bundle(tmp_path / "bundle", private_key=keys["private"])
    read_server(folder / "server", public_key=keys["public"])
    with pytest.raises(BundleError, match=r"holds a signed bundle.*--replace-signed"):
        check_target(folder, None, None)
    edge, server = read_edge(folder / "edge"), read_server(folder / "server")
    pair = (edge.manifest, edge.files), (server.manifest, server.files)
    check_target(folder, None, None, replace_signed=True)
    write_pair(folder, *pair, None)
    with pytest.raises(BundleError, match="not signed"):
        read_server(folder / "server", public_key=keys["public"])
    check_target(folder, None, keys["private"])
    assert sorted(path.name for path in folder.iterdir()) == ["edge", "server"]


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_what_was_there(exported: Path, tmp_path: Path, there: bool) -> None:
    """A limit on the size of files is as a full disk: the server's graph no longer fits."""
    edge, server = read_edge(exported / "edge"), read_server(exported / "server")
    pair = (edge.manifest, edge.files), (server.manifest, server.files)
    folder = tmp_path / "deep" / "bundle"
    if there:
        write_pair(folder, *pair, None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    child = os.fork()
    if not child:  # limits cannot be taken back
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(server.files["server.onnx"]) - 1,) * 2)
        try:
            write_pair(folder, *pair, None)
        except RunError as error:
            os._exit(0 if "cannot be written" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert there or not list(tmp_path.iterdir())


def test_a_name_or_a_folder_that_cannot_be_is_noticed_first(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not to be called 'a b'"):
        check_target(tmp_path, "a b", None)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        check_target(tmp_path / "file", None, None)


def test_classes_are_counted_before_the_fit(tmp_path: Path) -> None:
    data = sv.load_data("digit-pairs")
    steps: list[int] = []
    with pytest.raises(ExportError, match="3 names of classes are given, but the model has 10"):
        export(made_model(), data, tmp_path / "b", cut=4, m=4, classes=list("abc"), progress=lambda *_: steps.append(1))
    assert not steps
