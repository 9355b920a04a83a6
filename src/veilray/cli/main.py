"""The command line: parses, calls, prints. Each command lives in a module of its own."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
import traceback
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

import veilray
from veilray.cli.audit import audit_command
from veilray.cli.benchmark import benchmark_command
from veilray.cli.compare import compare_command
from veilray.cli.demo import demo_command
from veilray.cli.denoise import denoise_command
from veilray.cli.evaluate import evaluate_command
from veilray.cli.import_ import import_command
from veilray.cli.keygen import keygen_command
from veilray.cli.keys import keys_app
from veilray.cli.ledger import ledger_app
from veilray.cli.models import models_command
from veilray.cli.obfuscate import obfuscate_command
from veilray.cli.open_ import open_command
from veilray.cli.receive import receive_command
from veilray.cli.seal import seal_command
from veilray.cli.send import send_command
from veilray.cli.serve import serve_command
from veilray.cli.train import train_command
from veilray.errors import ToldElsewhere, UsageError, VeilrayError
from veilray.parallel.devices import is_out_of_memory, use_huge_pages
from veilray.parallel.ending import SIGNALS, interrupt_once
from veilray.parallel.joining import has_met, raise_together
from veilray.parallel.restart import counted
from veilray.parallel.spawn import under_launcher

# What typer makes of Ctrl-C.
INTERRUPTED = 130
# Commands whose ranks meet and share their work.
_SHARED = ("import", "train", "evaluate", "denoise")
# Click's UsageError, which typer brings along under a name of its own.
_WRONG_WORDS = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


class _Commands(TyperGroup):
    """The commands, of which one that comes to the end of a file too early fails as with any error.

    Typer takes EOFError for the end of what a user types, and says no more than "Aborted."
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise VeilrayError(f"a file ended too early: {error} (run with --debug for the traceback)") from error


app = typer.Typer(
    cls=_Commands,
    help="Obfuscate chest radiographs, train denoisers on them, and measure what both really achieve. "
    "Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo_command)
app.command("import")(import_command)
app.command("keygen")(keygen_command)
app.add_typer(keys_app, name="keys")
app.add_typer(ledger_app, name="ledger")
app.command("obfuscate")(obfuscate_command)
app.command("seal")(seal_command)
app.command("open")(open_command)
app.command("send")(send_command)
app.command("receive")(receive_command)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("compare")(compare_command)
app.command("benchmark")(benchmark_command)
app.command("denoise")(denoise_command)
app.command("models")(models_command)
app.command("audit")(audit_command)
app.command("serve")(serve_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"veilray {veilray.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that come before the command."""


def run() -> None:
    """Entry point of `veilray`: exit status 0 done, 2 usage, 3 bad data, 4 refused, 1 anything else."""
    end = _Ending()
    if under_launcher():
        atexit.register(end)  # the first to be registered, so the last to run
        interrupt_once()
    else:
        # A scheduler's way to stop a job: cleans up as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # in the middle of the last words
        end.status = _status(sys.argv[1:])
    # What stops a process that is ending anyway would only bring forth a traceback.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(end.status)


class _Ending:
    """The end of a rank: without C++ destructors, of which one that meets a thread of gloo's aborts the process.

    A launcher would start the ranks again although this one had done its work.
    """

    status = 1

    def __call__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.status)


def _status(arguments: list[str]) -> int:
    use_huge_pages()
    # Torch has a thread for each core. Those of numpy's OpenBLAS would wait for work on the same cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    debug = "--debug" in arguments
    try:
        _run_command([word for word in arguments if word != "--debug"], given=arguments)
        return 0
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # A launcher that has started ranks again stops those that have not yet met for a reason that one has told.
            again = under_launcher() and counted()
            return 1 if again else _fail("stopped", 1, debug)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ToldElsewhere as error:
        return error.exit_status
    except VeilrayError as error:
        return _fail(str(error), error.exit_status, debug)
    except OSError as error:
        return _fail(_explain(error), 1, debug)
    except Exception as error:
        if is_out_of_memory(error):
            return _fail("out of memory: try smaller images, a smaller batch or a smaller tile", 1, debug)
        reason = str(error).splitlines()[0] if str(error) else ""
        return _fail(f"unexpected {type(error).__name__}: {reason} (run with --debug for the traceback)", 1, debug)


def _run_command(words: list[str], *, given: list[str]) -> None:
    """Run a command; may end in SystemExit, 2 for wrong usage. One that starts others hands on what it was `given`.

    What is wrong with a rank's words is told once, as all that is found later is.
    """
    if not (under_launcher() and words and words[0] in _SHARED):
        app(args=words, obj=given)
        return
    try:
        raise SystemExit(app(args=words, obj=given, standalone_mode=False))
    except _WRONG_WORDS as error:
        help_ = f"veilray {words[0]} --help tells what there is"
        raise_together(UsageError(f"{error.format_message()} ({help_})"))
    except VeilrayError as error:
        if has_met():
            raise
        raise_together(error)


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _say(message)
    return status


def _explain(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    advice = "; free some space and run the command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{where}{error.strerror or error}{advice}"


def _say(message: str) -> None:
    try:
        typer.echo(f"veilray: {message}", err=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
