"""veilray serve: a DICOM node that denoises what it receives and sends the derived objects on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from veilray.clinic.queue import Queue


def serve_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file of the node.", show_default=False)],
    status: Annotated[
        bool, typer.Option("--status", help="Show the queue, what was kept and why, and dead letters; then end.")
    ] = False,
    retry_dead: Annotated[
        bool, typer.Option("--retry-dead", help="Put dead letters back into the queue; then end.")
    ] = False,
    retry_kept: Annotated[
        bool, typer.Option("--retry-kept", help="Put images that were kept back, as for another model; then end.")
    ] = False,
    forget: Annotated[
        str | None,
        typer.Option(
            help="Forget a delivered image, by its 12 digits in the log, or all: sent again, it is new; then end.",
            show_default=False,
        ),
    ] = None,
    discard: Annotated[
        Literal["kept", "dead"] | None,
        typer.Option(help="Delete what was kept, or dead letters and dead images; then end.", show_default=False),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Option(help="With --discard dead: the dead letters of this destination only.", show_default=False),
    ] = None,
) -> None:
    """Run a DICOM node: C-STORE in, denoised derived objects out by C-STORE or STOW-RS. For research, not diagnosis.

    Ctrl-C or SIGTERM end it; nothing that was acknowledged is lost, however it ends.
    """
    from veilray.errors import UsageError

    try:
        import httpx  # noqa: F401
        import pydicom  # noqa: F401
        import pynetdicom  # noqa: F401
    except ImportError:
        raise UsageError("a DICOM node needs more packages: install Veilray with its extra 'clinic'") from None
    from veilray.clinic.config import load_serve_config

    settings = load_serve_config(config)
    if destination is not None and discard != "dead":
        raise UsageError("--destination goes with --discard dead")
    if forget is not None and forget != "all" and not re.fullmatch(r"[0-9a-f]{12,32}", forget):
        raise UsageError("--forget takes the 12 digits by which the log names an image, or all")
    if status or retry_dead or retry_kept or discard or forget:
        with _existing_queue(settings.node.state) as queue:
            given_up = queue.given_up
            if retry_dead or retry_kept:
                count = given_up.retry_dead() if retry_dead else 0
                count += given_up.retry_kept() if retry_kept else 0
                typer.echo(f"{count:,} put back")
            if forget is not None:
                typer.echo(f"{queue.forget_delivered('' if forget == 'all' else forget):,} forgotten")
            if discard is not None:
                count = given_up.discard_kept() if discard == "kept" else given_up.discard_dead(destination)
                typer.echo(f"{count:,} discarded")
            _show(queue)
        return
    from veilray.clinic.node import serve

    serve(settings)


@contextmanager
def _existing_queue(state: Path) -> Iterator[Queue]:
    from veilray.clinic.queue import Queue
    from veilray.errors import UsageError

    if not (state / "queue.sqlite").exists():
        raise UsageError(f"there is no queue in {state}; the node makes it at its first start")
    with closing(Queue(state)) as queue:
        yield queue


def _show(queue: Queue) -> None:
    for name, count in queue.counts().items():
        typer.echo(f"{name}: {count:,}")
    for letter in queue.given_up.letters():
        where = f" for {letter.destination}" if letter.destination else ""
        typer.echo(f"{letter.name} {letter.state}{where}: {letter.reason}")
