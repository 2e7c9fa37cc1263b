"""``splitveil infer``: answers for photos, of which the server sees nothing but frames; runs without torch."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitveil.certificate import in_bits
from splitveil.cli.options import AsJson, Quiet
from splitveil.cli.output import note, print_json, print_table, progress_bar
from splitveil.codec import Coding

if TYPE_CHECKING:
    from splitveil.budget import Budget
    from splitveil.client import Answer, EdgeClient


def infer(
    bundle: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", help="The folder 'edge' that 'splitveil export' wrote, or that above it."),
    ],
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="Files of pictures.")],
    url: Annotated[str, typer.Option("--url", help="Of the server: https://HOST[:PORT].")],
    m: Annotated[
        int | None, typer.Option("--m", min=1, help="Components to send; what the bundle's policy says if not given.")
    ] = None,
    coding: Annotated[Coding | None, typer.Option("--coding", help="Of the coefficients; likewise.")] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="Holds the bearer token.")
    ] = None,
    token_over_http: Annotated[
        bool, typer.Option("--token-over-http", help="Send the token although anybody on the way may read it.")
    ] = False,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="PEM of the authorities to trust, not the public ones.")
    ] = None,
    client_cert: Annotated[
        Path | None, typer.Option("--client-cert", metavar="FILE", help="PEM of this client's certificate.")
    ] = None,
    client_key: Annotated[
        Path | None, typer.Option("--client-key", metavar="FILE", help="PEM of its key, without a passphrase.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Of one attempt.")] = 10.0,
    deadline: Annotated[
        float, typer.Option("--deadline", metavar="SECONDS", help="Of a request with all its attempts.")
    ] = 30.0,
    retries: Annotated[
        int | None,
        typer.Option("--retries", min=0, help="Attempts after the first; until the deadline if not given."),
    ] = None,
    show_wire: Annotated[bool, typer.Option("--show-wire", help="Print exactly what was sent.")] = False,
    require_signature: Annotated[
        Path | None,
        typer.Option("--require-signature", metavar="PUBLIC_KEY", help="PEM; the bundle must carry its signature."),
    ] = None,
    budget: Annotated[
        Path | None,
        typer.Option("--budget", metavar="FILE", help="Debited before anything is sent; needs a certified bundle."),
    ] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", metavar="NAME", help="Whose photos these are, for the budget.")
    ] = None,
    budget_bits: Annotated[
        float | None, typer.Option("--budget-bits", metavar="BITS", help="Of each subject, to begin a new budget.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Ask a server about photos, and show it no more of them than the bundle lets out."""
    from PIL.Image import DecompressionBombWarning

    from splitveil.client import Access, EdgeClient, Patience, is_exposed
    from splitveil.errors import SplitveilError

    # Telephones take photos of 108 megapixels; from 179 on Pillow refuses to read one.
    warnings.simplefilter("ignore", DecompressionBombWarning)
    ledger = _ledger(budget, budget_bits, bundle, require_signature)
    access = Access(_token(token_file), ca, client_cert, client_key, token_over_http)
    patience = Patience(timeout=timeout, deadline=deadline, retries=retries)
    answers: list[Answer] = []
    trouble: SplitveilError | None = None
    with (
        EdgeClient(
            bundle,
            url,
            m=m,
            coding=coding,
            public_key=require_signature,
            access=access,
            patience=patience,
            budget=ledger,
        ) as client,
        progress_bar(quiet) as progress,
    ):
        if is_exposed(url):
            note("frames cross to the server without TLS: who reads them on the way knows what the server knows")
        frames: list[bytes] = []
        for start in range(0, len(photos), client.batch):  # all of them, so that a bad one is found before any is sent
            frames += client.encoder.frames(photos[start : start + client.batch])
            if progress:
                progress(len(frames), len(photos), "reading")
        client.check_budget(len(frames), subject=subject)
        for start in range(0, len(frames), client.batch):
            try:
                answers += client.ask(frames[start : start + client.batch], subject=subject)
            except SplitveilError as error:
                if not answers:
                    raise
                trouble = error  # what came before is paid for, and shown
                break
            if progress:
                progress(len(answers), len(photos), "asking")
    found = [_row(client, photo, answer, show_wire) for photo, answer in zip(photos, answers, strict=False)]
    left = _left(ledger, subject)
    _print(client, bundle, url, found, left, as_json=as_json)
    if trouble:
        note(f"{len(answers)} of {len(photos)} photos were answered before this:")
        raise trouble


def _print(
    client: EdgeClient, bundle: Path, url: str, found: list[dict[str, Any]], left: float | None, *, as_json: bool
) -> None:
    if as_json:
        manifest = client.encoder.manifest
        print_json(
            {"bundle": str(bundle), "url": url, "model": manifest.name, "identity": manifest.identity,
             "m": client.encoder.m, "coding": client.encoder.coding, "answers": found,
             "bits_left": left}
        )  # fmt: skip
        return
    cells = [
        [row["photo"], row["label"], f"{row['probabilities'][row['index']]:.1%}", row["frame_bytes"]] for row in found
    ]
    print_table(f"answers of {url}", ["photo", "answer", "probability", "bytes of its frame"], cells)
    if left is not None:
        note(f"left of this subject's budget: {in_bits(left)}")
    for row in found:
        if "wire" in row:
            _print_wire(row)


def _ledger(file: Path | None, bits: float | None, bundle: Path, public_key: Path | None) -> Budget | None:
    from splitveil.budget import Budget
    from splitveil.bundle import read_edge
    from splitveil.client import check_certified, edge_folder
    from splitveil.errors import BudgetError

    if file is None:
        if bits is not None:
            raise BudgetError("--budget-bits is the limit of a budget; name its file with --budget")
        return None
    check_certified(read_edge(edge_folder(bundle), public_key=public_key).manifest)  # no ledger is begun for another
    ledger = Budget(file, limit_bits=bits)
    if ledger.begun:
        note(f"began the budget {file}; nothing that was told before counts in it")
    return ledger


def _left(ledger: Budget | None, subject: str | None) -> float | None:
    from splitveil.errors import BudgetError

    if ledger is None or subject is None:
        return None
    try:
        return ledger.left(subject)
    except BudgetError as error:  # the answers are there all the same
        note(str(error))
        return None


def _token(file: Path | None) -> str | None:
    from splitveil.errors import RemoteError

    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"  # never a part of what it holds
        raise RemoteError(f"the token cannot be read from {file} ({reason}); name a file that holds it") from error


def _row(client: EdgeClient, photo: Path, answer: Answer, show_wire: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "photo": str(photo), "label": answer.label, "index": answer.index,
        "probabilities": [float(share) for share in answer.probabilities],
        "logits": [float(logit) for logit in answer.logits], "frame_bytes": len(answer.frame),
    }  # fmt: skip
    return {**row, "wire": _wire(client, photo, answer)} if show_wire else row


def _wire(client: EdgeClient, photo: Path, answer: Answer) -> dict[str, Any]:
    from splitveil.client import describe

    return {
        "frame": answer.frame.hex(), "fields": [asdict(field) for field in describe(answer.frame)],
        "frame_bytes": len(answer.frame), "request_bytes": answer.sent.request_bytes,
        "photos_in_request": answer.sent.rows, "attempts": answer.sent.attempts,
        "raw_feature_bytes": client.encoder.raw_bytes, "photo_bytes": photo.stat().st_size,
    }  # fmt: skip


def _print_wire(row: dict[str, Any]) -> None:
    wire = row["wire"]
    print_table(
        f"what was sent of {row['photo']}", ["field", "bytes", "meaning"],
        [[field["name"], _pairs(field["hex"]), field["meaning"]] for field in wire["fields"]],
    )  # fmt: skip
    rows, attempts = wire["photos_in_request"], wire["attempts"]
    request = f"{wire['request_bytes']} (HTTP/1.1; photos in it: {rows}, times sent: {attempts})"
    sizes = [["frame", wire["frame_bytes"]], ["whole request", request],
             ["raw feature's frame", wire["raw_feature_bytes"]], ["photo's file", wire["photo_bytes"]]]  # fmt: skip
    print_table("sizes", ["what", "bytes"], sizes)


def _pairs(digits: str) -> str:
    """Hexadecimal digits in groups of four bytes, so that a line can break."""
    return " ".join(digits[start : start + 8] for start in range(0, len(digits), 8))
