"""Commands about registered versions: `promote`, `rollback`, `reproduce`, `evaluate-registered`, `gc`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_project import (
    ProfileOption,
    RootOption,
    SetOption,
    WorkspaceOption,
    pipeline_extra,
    project_folder,
    run_one,
)
from vdmini_core.printing import JsonOption, print_json

ANOTHER = "look who changed it on MLflow; `vdmini promote` with another version"


def promote_command(
    assignments: SetOption = None,
    profile: ProfileOption = None,
    workspace: WorkspaceOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="overrule the gate's judgement; needs --reason")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="why, kept with the version")] = None,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Stage: the gate.

    With --force and --reason the candidate becomes champion although the gate would keep it out; files that
    are unsafe or do not load stay out all the same.
    """
    if force and not (reason or "").strip():
        raise typer.BadParameter("--force needs --reason TEXT: it is kept with the version")
    if reason is not None and not force:
        raise typer.BadParameter("--reason: only with --force")
    with pipeline_extra():
        from tasks.promote import insisting

        folder = project_folder(root, workspace, profile, None, assignments)
        with insisting(reason) if reason else nullcontext():
            run_one("promote", folder, True, as_json)  # asked for: it answers each time


def rollback_command(
    reason: Annotated[str, typer.Option(help="why, kept with both versions")] = "no reason given",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """The version before becomes champion again; a second rollback takes the first one back."""
    with pipeline_extra():
        from flows.notices import notify
        from tasks.promote import look_at_files
        from tasks.rollback import roll_back
        from tasks.tracking import connect
        from vdmini_core.params import load_params

        folder = project_folder(root, workspace, None, None, None)
        params = load_params(folder / "params.yaml")
        name, alias = params.register_.name, params.promote.alias
        look = partial(look_at_files, folder, fix=ANOTHER)
        move = roll_back(connect(folder), name, alias, reason, look)
        told = f"{name}: version {move.after} is {alias} again, in place of version {move.before}"
        notify("rolled-back", f"{told}: {reason}", model=name, version=move.after, before=move.before)
    if as_json:
        print_json(asdict(move))
    else:
        typer.echo(told)


def reproduce_command(
    uri: Annotated[str, typer.Argument(metavar="models:/NAME@ALIAS", help="or models:/NAME/3")],
    videos: Annotated[
        Path | None, typer.Option(help="where its videos are now", exists=True, file_okay=False)
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Make a registered version again and compare its hashes; exits 1 where they differ."""
    with pipeline_extra():
        from tasks.reproduce import reproduce

        folder = project_folder(root, workspace, None, None, None)
        found = reproduce(folder, uri, videos=videos, listen=lambda line: typer.echo(line, err=as_json))
    if as_json:
        print_json(asdict(found) | {"equal": found.equal, "folder": str(found.folder)})
    else:
        for line in (*found.remarks, *found.differences):
            typer.echo(f"  {line}")
        told = "equal" if found.equal else f"different; it lies in {found.folder}"
        typer.echo(f"{found.model} version {found.version}: {told}")
    if not found.equal:
        raise typer.Exit(1)


def evaluate_registered_command(
    uri: Annotated[
        str | None, typer.Argument(metavar="models:/NAME@ALIAS", help="or models:/NAME/3; none: the champion")
    ] = None,
    week: Annotated[
        str | None, typer.Option(metavar="2026-W48", help="draws the clips; none: this week")
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(help="where its videos are now", exists=True, file_okay=False)
    ] = None,
    workspace: WorkspaceOption = None,
    force: Annotated[bool, typer.Option("--force", help="measure again what was measured")] = False,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Measure a registered version on data it has not seen; exits 1 where it got worse than recorded."""
    with pipeline_extra():
        from flows.notices import quality_fell
        from flows.quiet import quiet_servers

        quiet_servers()
        from tasks.rescore import rescore
        from vdmini_core.params import load_params

        folder = project_folder(root, workspace, None, None, None)
        params = load_params(folder / "params.yaml")
        address = uri or f"models:/{params.register_.name}@{params.promote.alias}"
        result = rescore(folder, address, week=week, videos=videos, force=force, tell=quality_fell)
    print_json(asdict(result)) if as_json else typer.echo(result.text)
    if result.verdict == "fell":
        raise typer.Exit(1)


def gc_command(
    cloud: Annotated[bool, typer.Option("--cloud", help="in the bucket as well")] = False,
    remote: Annotated[str | None, typer.Option(help="DVC's remote; its default where not given")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove; without it nothing goes")] = False,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Remove data that no workspace and no registered version rests on.

    Without --yes it only says how much that is. What other projects have pushed to the same bucket goes too
    unless a registered version rests on it; so does what only older commits of git name.
    """
    if remote is not None and not cloud:
        raise typer.BadParameter("--remote: only with --cloud")
    with pipeline_extra():
        from flows.quiet import quiet_servers

        quiet_servers()
        from tasks.unused_data import collect_unused

        found = collect_unused(root, cloud, remote, remove=yes)
    if as_json:
        facts = {**asdict(found), "kept_projects": [str(path) for path in found.kept_projects]}
        print_json(facts | {"removed": yes})
        return
    names = ", ".join(found.kept_versions) or "no registered version"
    typer.echo(f"kept: what {_folders(len(found.kept_projects))} now, and {names}")
    size = f"{found.local_bytes / 2**20:,.1f} MiB"
    bucket = f", {found.remote} in the bucket" if cloud else ""
    typer.echo(f"{'removed' if yes else 'not in use'}: {found.local} files in the cache ({size}){bucket}")
    if not yes and found.local + found.remote:
        typer.echo("to remove them: the same command with --yes")


def _folders(count: int) -> str:
    return "the project uses" if count == 1 else f"the project and {count - 1} workspace(s) use"
