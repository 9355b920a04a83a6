"""veilray audit: attack a release before it leaves, and say what the attacks could and could not recover."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilray.cli.options import BACKBONE
from veilray.cli.site_keys import PASSPHRASE_FILE
from veilray.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from veilray.privacy.extent import Effort
    from veilray.privacy.policy import Policy
    from veilray.privacy.results import Audit
    from veilray.report.audit import AuditPanel


def audit_command(
    originals: Annotated[
        Path, typer.Option(help="The cohort that the release was made from, with its lists.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the report; results of an earlier run in it are reused.", show_default=False),
    ],
    releases: Annotated[
        list[Path] | None, typer.Argument(metavar="[RELEASE]...", help="Releases to attack.", show_default=False)
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="Levels of noise to try without a release, such as 0.1,0.2,0.3.", show_default=False),
    ] = None,
    mean: Annotated[float, typer.Option(min=-1.0, max=1.0, help="Mean of the noise of --std.")] = 0.1,
    denoiser: Annotated[
        str | None, typer.Option(help="Run or model: what it restores is attacked as well.", show_default=False)
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Run on this cohort that is to leave: do its weights tell whom it was trained on? The denoiser's if "
            "left out.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="So many images at most, those of patients with several first; all if left out.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV: image_id or file, and sex, age, view.", show_default=False)
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Site One's keys, whose ledger says what left before.", show_default=False)
    ] = None,
    passphrase_file: Annotated[Path | None, PASSPHRASE_FILE] = None,
    backbone: Annotated[Path | None, BACKBONE] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes: fewer images and one seed.")] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Hours: other obfuscations for scale, a network trained to undo each, shadow models."
        ),
    ] = False,
    gate: Annotated[
        Path | None, typer.Option(help="TOML file of limits; exit status 4 where one is exceeded.", show_default=False)
    ] = None,
    show_images: Annotated[
        bool, typer.Option("--show-images", help="Put images in the report: for phantoms, or where that is allowed.")
    ] = False,
) -> None:
    """Attack releases, or noise made for the purpose, with everything Veilray has, and write what came of it.

    Runs at Site One, which holds the originals. Attacks are lower bounds: others may do better.
    """
    from veilray.cli.auditing import AuditRequest, Watching, plan_audit
    from veilray.privacy.audit import run_audit
    from veilray.privacy.extent import extent_of
    from veilray.privacy.policy import check_policy, read_policy

    if quick and full:
        raise UsageError("--quick and --full exclude each other")
    policy = read_policy(gate) if gate is not None else None
    effort: Effort = "quick" if quick else "full" if full else "default"
    asked = AuditRequest(
        originals=originals,
        releases=releases or [],
        levels=_levels(std),
        mean=mean,
        denoiser=denoiser,
        labels=labels,
        backbone=backbone,
        extent=extent_of(effort),
        out=out,
        keys=keys,
        passphrase_file=passphrase_file,
        model=model,
        images=images,
    )
    prepared = plan_audit(asked)
    if policy is not None:
        known = [name for name, count in prepared.plan.data.labels.counts().items() if count]
        variants = {one.name: one.kind for one in prepared.plan.variants}
        weakened = {one.name: one.weakened for one in prepared.plan.attacks}
        check_policy(policy[0], variants, where=gate, known=known, weakened=weakened)
    for warning in prepared.warnings:
        typer.echo(f"warning: {warning}", err=True)
    with Watching.over(prepared.plan) as watcher:
        audit = run_audit(prepared.plan, out, watcher)
    if policy is not None:
        audit = _judged(audit, policy, out)
    _write_report(audit, out, prepared.panels() if show_images else [])
    prepared.forget()
    _say(audit, out)


def _levels(std: str | None) -> tuple[float, ...]:
    if std is None:
        return ()
    try:
        levels = tuple(float(part) for part in std.split(","))
    except ValueError:
        levels = ()
    if not levels or not all(0.0 < level <= 10.0 for level in levels) or len(set(levels)) < len(levels):
        raise UsageError(f"--std {std}: write levels of noise above 0 and at most 10, such as 0.1,0.2,0.3")
    return levels


def _judged(audit: Audit, policy: tuple[Policy, str], out: Path) -> Audit:
    from veilray.privacy.gate import judge
    from veilray.privacy.results import write_audit

    limits, digest = policy
    judged = audit.model_copy(update={"gate": judge(limits, audit, policy_sha256=digest)})
    write_audit(out, judged)
    return judged


def _write_report(audit: Audit, out: Path, panels: list[AuditPanel]) -> None:
    from veilray.report.audit import REPORT_FILE, render_audit

    render_audit(audit, out / REPORT_FILE, panels=panels)


def _say(audit: Audit, out: Path) -> None:
    """The verdict on standard output; RefusedError where the gate was not passed."""
    from veilray.report.audit import REPORT_FILE
    from veilray.report.audit_text import verdicts

    for verdict in verdicts(audit):
        typer.echo(verdict.plain)
    if audit.skipped:
        typer.echo(f"Not tested: {len(audit.skipped)} things; the report lists them with the reasons.")
    for reason in audit.audited.left_out:
        typer.echo(f"Left out: {reason}.")
    for release in audit.audited.releases:
        if release.audited < release.total:
            typer.echo(f"Of {release.variant}: {release.audited:,} of {release.total:,} images were audited.")
    typer.echo(f"report: {out / REPORT_FILE}")
    if audit.gate is None:
        return
    if audit.gate.passed:
        typer.echo("; ".join([f"gate: {audit.gate.words}", *audit.gate.notes]))
        return
    first, more = audit.gate.breaches[0], len(audit.gate.breaches) - 1
    others = f"; and {more} more, see the report" if more else ""
    raise RefusedError(f"gate not passed: {first.reason}{others}")
