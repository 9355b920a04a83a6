"""veilray serve: a DICOM node that denoises what it receives and sends the derived objects on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML file of the node.", show_default=False)],
    status: Annotated[
        bool, typer.Option("--status", help="Show the queue, what was kept and why, and dead letters; then end.")
    ] = False,
    retry_dead: Annotated[
        bool, typer.Option("--retry-dead", help="Put dead letters back into the queue; then end.")
    ] = False,
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
        raise UsageError("a DICOM node needs more packages: pip install 'veilray[clinic]'") from None
    from veilray.clinic.config import load_serve_config

    settings = load_serve_config(config)
    if status or retry_dead:
        _look(settings.node.state, retry_dead=retry_dead)
        return
    from veilray.clinic.node import serve

    serve(settings)


def _look(state: Path, *, retry_dead: bool) -> None:
    from veilray.clinic.queue import Queue
    from veilray.errors import UsageError

    if not (state / "queue.sqlite").exists():
        raise UsageError(f"there is no queue in {state}; the node makes it at its first start")
    queue = Queue(state)
    if retry_dead:
        typer.echo(f"{queue.retry_dead()} put back")
    for name, count in queue.counts().items():
        typer.echo(f"{name}: {count:,}")
    for letter in queue.letters():
        where = f" for {letter.destination}" if letter.destination else ""
        typer.echo(f"{letter.name} {letter.state}{where}: {letter.reason}")
    queue.close()
