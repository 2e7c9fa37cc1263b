"""Both bundles on disk: what stands in the way is found before any work, and what fails half-way leaves nothing."""

import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from splitveil.bundle import NAME, EdgeManifest, ServerManifest, check_free, write_bundle
from splitveil.bundle.manifest import MANIFEST, SIGNATURE
from splitveil.bundle.signing import sign
from splitveil.errors import BundleError, ExportError, RunError
from splitveil.files import check_writable, is_there, make_folder, remove_empty

EDGE, SERVER = "edge", "server"
Content = tuple[EdgeManifest | ServerManifest, Mapping[str, bytes]]


def check_target(out: str | Path, name: str | None, private_key: Path | None, *, replace_signed: bool = False) -> None:
    """See that bundles can be written, named and signed as asked, before the work begins.

    Raises:
        RunError: the folder cannot be written.
        BundleError: it holds something else; or a signed bundle, and there is no key; or the key cannot be used.
        ExportError: the name is none.
    """
    folder = Path(out)
    check_writable(folder)
    for side in (EDGE, SERVER):
        check_free(folder / side)
        check_writable(folder / side)
        if private_key is None and not replace_signed and is_there(folder / side / SIGNATURE):
            raise BundleError(
                f"{folder / side} holds a signed bundle, and one without a signature would take its place; sign it "
                "(--sign KEY), or say --replace-signed (in Python: replace_signed=True)"
            )
    if name is not None and not re.fullmatch(NAME, name):
        raise ExportError(
            f"a model is not to be called {name!r}; take at most 100 letters, digits, dots, hyphens and underscores"
        )
    if private_key is not None:
        sign(b"", private_key)


def write_pair(folder: Path, edge: Content, server: Content, private_key: Path | None) -> None:
    """Write ``folder/edge`` and ``folder/server``: whole beside them first, then put in place file by file.

    Raises:
        RunError: the disk is full, or the folder cannot be written; what was there before is as it was.
        BundleError: the key cannot be used.
    """
    made = make_folder(folder)
    aside = folder / f".new-{secrets.token_hex(8)}"
    try:
        for side, (manifest, files) in ((SERVER, server), (EDGE, edge)):
            write_bundle(aside / side, manifest, files, private_key)
        for side in (SERVER, EDGE):
            _place(aside / side, folder / side)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error}); free space or choose another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        remove_empty(made)  # where nothing came of it


def _place(new: Path, folder: Path) -> None:
    """Move a bundle's files into its folder, the manifest last, so that one that was interrupted is refused."""
    make_folder(folder)
    for name in (MANIFEST, SIGNATURE):
        (folder / name).unlink(missing_ok=True)
    for path in sorted(new.iterdir(), key=lambda each: each.name == MANIFEST):
        path.replace(folder / path.name)
