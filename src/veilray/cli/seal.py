"""veilray seal: a release, a model, denoised images or means become one signed and encrypted file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilray.cli.site_keys import KEYS, PASSPHRASE_FILE
from veilray.errors import UsageError


def seal_command(
    source: Annotated[
        Path,
        typer.Argument(
            help="Release, run (only its model leaves), denoised images, or evaluation (only its means leave).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="New file for the bundle, *.veil.", show_default=False)],
    keys: Annotated[Path, KEYS],
    to: Annotated[list[str], typer.Option(help="Pinned site that may open it; repeat for more.", show_default=False)],
    passphrase_file: Annotated[Path | None, PASSPHRASE_FILE] = None,
    override_name: Annotated[
        str | None, typer.Option(help="Who answers for a release that the ledger does not let go.", show_default=False)
    ] = None,
    override_reason: Annotated[str | None, typer.Option(help="Why; both are kept.", show_default=False)] = None,
    audit: Annotated[
        Path | None,
        typer.Option(help="Audit of this very release, whose gate it must have passed.", show_default=False),
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option(help="The policy that the audit must have passed; any if left out.", show_default=False),
    ] = None,
) -> None:
    """Sign and encrypt a folder for one or more sites; nobody else can open it, not even the sender."""
    from veilray.cli.progress import progress
    from veilray.cli.site_keys import open_keys, parse_override
    from veilray.exchange.sealing.seal import seal

    if audit is not None:
        _demand_audit(source, audit, gate)
    elif gate is not None:
        raise UsageError("--gate names the policy of an audit; name the audit too, with --audit")
    override = parse_override(override_name, override_reason)
    site = open_keys(keys, passphrase_file)
    receivers = [site.peer(name) for name in to]
    with progress(None, "sealing", "bytes") as bar:
        sealed = seal(source, out, keys=site, receivers=receivers, override=override, advance=bar.advance)
    manifest = sealed.manifest
    names = ", ".join(card.name for card in receivers)
    typer.echo(f"{out}: {manifest.kind}, {len(manifest.parts):,} files, {manifest.n_bytes:,} bytes, for {names}")
    for note in sealed.notes:
        typer.echo(note)
    typer.echo(f"bundle {manifest.bundle_id}, sequence {manifest.sequence}")


def _demand_audit(source: Path, audit: Path, gate: Path | None) -> None:
    """RefusedError unless the audit is of this release and passed its gate, by the policy in `gate` if one is named."""
    from veilray.cohort.release import Release
    from veilray.privacy.gate import demand_passed
    from veilray.privacy.policy import read_policy
    from veilray.privacy.results import read_audit

    digest = read_policy(gate)[1] if gate is not None else None
    release = Release.open(source)
    outcome = demand_passed(read_audit(audit), release_digest=release.digest, where=audit, policy_sha256=digest)
    by = f"by {gate}" if gate is not None else "by a policy that --gate did not name"
    words = f"audit: {outcome.words}, {by} (SHA-256 {outcome.policy_sha256[:16]})"
    typer.echo("; ".join([words, *outcome.notes]))
