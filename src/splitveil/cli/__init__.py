"""The command line: each command is a signature, one library call, and a table or one JSON object."""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from splitveil.cli import (
    attack,
    budget,
    choose,
    data,
    demo,
    deploy,
    doctor,
    export,
    infer,
    inspect,
    obfuscate,
    profile,
    reproduce,
    serve,
    train,
)
from splitveil.cli.output import MISTAKE, Stopped, closed_quietly, fail, note, prepare
from splitveil.errors import SplitveilError
from splitveil.extras import explain_missing
from splitveil.version import __version__

_UsageError: Any = typer.BadParameter.__base__
"""What the parser raises for arguments that make no sense; typer has no public name for it."""

app = typer.Typer(
    name="splitveil",
    help="Private split inference: train, cut, obfuscate, and measure what still leaks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("demo")(demo.demo)
app.command("data")(data.data)
app.command("inspect")(inspect.inspect)
app.command("train")(train.train)
app.command("obfuscate")(obfuscate.obfuscate)
app.command("profile")(profile.profile)
app.command("choose")(choose.choose)
app.command("reproduce")(reproduce.reproduce)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("infer")(infer.infer)
app.command("budget")(budget.budget)
app.add_typer(deploy.app, name="deploy")
app.command("attack")(attack.attack)
app.command("doctor")(doctor.doctor)


def _print_version(times: int) -> None:
    if not times:
        return
    typer.echo(f"splitveil {__version__}")
    if times > 1:
        from splitveil.doctor import diagnose

        found = diagnose()
        typer.echo(f"Python {found.python} on {found.platform}")
        for name, version in found.packages.items():
            typer.echo(f"{name} {version}")
        typer.echo(f"telemetry: {found.telemetry}")
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        int,
        typer.Option(
            "--version",
            "-V",
            count=True,
            callback=_print_version,
            is_eager=True,
            show_default=False,
            help="Print the version and exit; -VV adds those of the packages, and whether telemetry is off.",
        ),
    ] = 0,
) -> None:
    del version  # the callback has acted on it


def main() -> None:
    """Entry point: a user's mistake or signal is one sentence and an exit code, never a traceback."""
    prepare()
    with _signals() as caught, _warnings_as_notes():
        try:
            code = _run()
        except Stopped as stopped:
            fail(str(stopped), 128 + caught[-1])
    sys.exit(code)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM ends a command as Ctrl-C does, so that files are put in order first; yields the signals that came."""
    caught = [int(signal.SIGINT)]

    def end(number: int, _frame: object) -> None:
        caught.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Our own warnings are sentences for the user; others keep their form."""
    with warnings.catch_warnings():
        otherwise = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if category.__module__.startswith("splitveil"):
                note(str(message))
            else:
                otherwise(message, category, *place, **more)

        warnings.showwarning = show
        yield


def _run() -> int:
    """Run the command, and return its exit code."""
    code: Any = 0
    try:
        with closed_quietly(sys.stdout):
            code = app(prog_name="splitveil", standalone_mode=False)
    except _UsageError as error:
        said = " ".join(error.format_message().split()).rstrip(".")
        if not said:  # without a command the help was shown
            sys.exit(MISTAKE)
        fail(f"{said}; see '{error.ctx.command_path if error.ctx else 'splitveil'} --help'")
    except SplitveilError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        if (sentence := explain_missing(error, "this command")) is None:
            raise
        fail(sentence)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be written has no place to go
        fail("the output cannot be written: no space is left where it goes")
    if code == 128 + signal.SIGINT:  # typer has made this of KeyboardInterrupt
        raise Stopped("stopped before it was done")
    return code if isinstance(code, int) else 0
