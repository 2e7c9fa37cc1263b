"""``splitveil deploy``: server bundles on the Triton Inference Server, or on a Ray cluster."""

import signal
import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

from splitveil.cli.options import AsJson
from splitveil.cli.output import note, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Serve bundles beyond one machine: by Triton, or on a Ray cluster.")

Bundles = Annotated[
    list[Path], typer.Option("--bundle", metavar="FOLDER", help="A server bundle; may be given again for more models.")
]
PublicKey = Annotated[
    Path | None,
    typer.Option("--require-signature", metavar="KEY", help="PEM file of the Ed25519 key that has signed the bundles."),
]


@app.command("triton")
def triton(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The model repository.")],
    bundles: Bundles,
    backend: Annotated[
        Literal["python", "onnxruntime"],
        typer.Option("--backend", help="python answers frames and coefficients, onnxruntime coefficients only."),
    ] = "python",
    instances: Annotated[int, typer.Option("--instances", min=1, help="Of each model that run at once.")] = 1,
    public_key: PublicKey = None,
    as_json: AsJson = False,
) -> None:
    """Write a model repository for Triton into DIR, each bundle as the next version of its model."""
    from splitveil.deploy.triton import write_repository

    placed = write_repository(folder, bundles, backend=backend, instances=instances, public_key=public_key)
    rows = [
        {"name": each.name, "version": each.version, "identity": each.identity, "folder": str(each.folder)}
        for each in placed
    ]
    if as_json:
        print_json({"repository": str(folder), "backend": backend, "models": rows})
        return
    print_table(f"model repository {folder}", list(rows[0]), [list(row.values()) for row in rows])
    note(f"serve it: tritonserver --model-repository {folder}")


@app.command("ray")
def ray(
    bundles: Bundles,
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="Of the server, each with one CPU.")] = 2,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Of a running Ray cluster, such as auto; this machine alone if not given."),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="That every node's proxy listens on; 0.0.0.0 for other machines to reach it.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option("--http-port", min=1, max=65535, help="Of every node's proxy.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="Bearer tokens, one per line.")
    ] = None,
    public_key: PublicKey = None,
    as_json: AsJson = False,
) -> None:
    """Serve bundles on a Ray cluster (REST only) until stopped by SIGINT or SIGTERM."""
    from splitveil.deploy.ray import ray_service

    stop = threading.Event()
    with ray_service(
        bundles, replicas=replicas, address=address, host=host, http_port=http_port, token_file=token_file,
        public_key=public_key,
    ) as url:  # fmt: skip
        # Only now, since Ray sets handlers of its own when it starts.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        if as_json:
            print_json({"url": url, "replicas": replicas})
        else:
            typer.echo(f"serving at {url} with {replicas} replicas; stop with Ctrl-C")
        stop.wait()
