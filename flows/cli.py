"""`vdmini`: the stages, the run, and the tools. The door that may see every room.

Heavy libraries are imported by the command that needs them, so that `--help` is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_progressive import StepsOption, run_progressive
from flows.cli_project import (
    ForceOption,
    ProfileOption,
    RootOption,
    SetOption,
    VideosOption,
    WorkspaceOption,
    pipeline_extra,
    project_folder,
)
from flows.cli_registry import (
    evaluate_registered_command,
    gc_command,
    reproduce_command,
    rollback_command,
)
from flows.cli_services import app as services_app
from flows.cli_stages import stage_commands
from flows.distill_command import DryRunOption
from tasks.stage import STAGES
from vdmini_core.cli import CORE_COMMANDS, new_app, run_app
from vdmini_core.printing import JsonOption, print_json

app = new_app("Compress video diffusion models: profile, plan, prune, recover with ICMD, evaluate, register.")


@app.command("run")
def run(
    profile: ProfileOption = None,
    assignments: SetOption = None,
    videos: VideosOption = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Run the whole story (the Prefect flow); stages that are up to date are skipped."""
    if dry_run:
        _only_wet({"--workspace": workspace, "--force": force})
        _dry_run(root.resolve(), profile, videos, assignments, as_json)
        return
    with pipeline_extra():
        from flows.console import RunConsole
        from flows.own_server import start_own_server
        from flows.quiet import quiet_servers

        folder = project_folder(root, workspace, profile, videos, assignments)
        quiet_servers()
        from flows.compress import compress

        start_own_server()
        console = RunConsole(folder)
        reports = compress(root=str(folder), force=force, listen=console.listen)
    summary = console.summary(reports)
    print_json(summary) if as_json else console.show(summary)


def _dry_run(
    root: Path, profile: str | None, videos: str | None, assignments: list[str] | None, as_json: bool
) -> None:
    """Say what a run would do, need and cost; what is missing is no failure."""
    from tasks.dry_run import examine_run, is_complete, to_rows
    from tasks.project import preview_params
    from vdmini_core.printing import print_rows

    params = preview_params(root, profile=profile, videos=videos, assignments=tuple(assignments or ()))
    steps = examine_run(root, params)
    if as_json:
        print_json({"ready": is_complete(steps), "steps": to_rows(steps)})
        return
    print_rows(to_rows(steps), title="What a run would do")
    typer.echo(
        "ready to run"
        if is_complete(steps)
        else "some things are missing; the last column says how to get them"
    )


def _only_wet(options: Mapping[str, object]) -> None:
    """Refuse options that mean nothing in a dry run."""
    if wrong := ", ".join(name for name, value in options.items() if value):
        raise typer.BadParameter(f"{wrong}: not with --dry-run")


@app.command("progressive")
def progressive(
    steps: StepsOption = 3,
    profile: ProfileOption = None,
    assignments: SetOption = None,
    videos: VideosOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    root: RootOption = Path(),
) -> None:
    """Several students from one run: prune a little, recover, profile again, to the budget of the plan.

    The rounds are workspaces (workspaces/round-1, ...); a killed run goes on where it stopped.
    """
    with pipeline_extra():
        run_progressive(project_folder(root, None, profile, videos, assignments), steps, force, as_json)


@app.command("init")
def init(folder: Annotated[Path, typer.Argument(help="new project folder")]) -> None:
    """Lay out a project: dvc.yaml, params.yaml, profiles."""
    with pipeline_extra():
        from tasks.project import lay_out
        from tasks.versioning import init_repository

        lay_out(folder)
        init_repository(folder)
    typer.echo(f"{folder}: ready. Next: cd {folder} && vdmini run --profile nano")


@app.command("doctor")
def doctor(as_json: JsonOption = False, root: RootOption = Path()) -> None:
    """Check installation, project and services, and say how to mend what is wrong."""
    from flows.doctor import examine
    from vdmini_core.printing import print_rows

    findings = examine(root.resolve())
    print_json(findings) if as_json else print_rows(findings)
    if any(finding["state"] == "broken" for finding in findings):
        raise typer.Exit(1)


for _name, _function in stage_commands().items():
    app.command(_name)(_function)
app.command("rollback")(rollback_command)
app.command("gc")(gc_command)
app.command("reproduce")(reproduce_command)
app.command("evaluate-registered")(evaluate_registered_command)
app.add_typer(services_app, name="services")
for _name, _function in CORE_COMMANDS.items():
    if _name not in STAGES:
        app.command(_name)(_function)


def main() -> None:
    """Entry point of `vdmini`."""
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
