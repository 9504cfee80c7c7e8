"""`vdmini services start | stop | status`: the team's servers on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vdmini_core.errors import VDMiniError
from vdmini_core.printing import JsonOption, print_json, print_rows

app = typer.Typer(
    no_args_is_help=True,
    help="PostgreSQL, S3, MLflow, Prefect and two Ray nodes on this machine, without Docker or root.",
)
RootOption = Annotated[Path, typer.Option("--root", help="project folder", exists=True, file_okay=False)]


@app.command("start")
def start_command(root: RootOption = Path()) -> None:
    """Start what does not run, in order; returns when all of them answer."""
    from flows.services.control import start
    from flows.services.setup import services_home

    setup = start(services_home(root), lambda line: typer.echo(line, err=True))
    shown = setup.env_file.relative_to(root.resolve())
    typer.echo(f"MLflow {setup.url('mlflow')}  Prefect {setup.url('prefect')}")
    typer.echo(f"to use them: set -a; . {shown}; set +a    or: make demo SETTINGS=team")
    typer.echo(f"accounts and passwords: {shown}    logs: {shown.parent / 'logs'}")


@app.command("stop")
def stop_command(root: RootOption = Path()) -> None:
    """Stop them in the opposite order; data and passwords stay."""
    from flows.services.control import stop
    from flows.services.setup import services_home

    if not stop(services_home(root), lambda line: typer.echo(line, err=True)):
        typer.echo("no services run here")


@app.command("status")
def status_command(as_json: JsonOption = False, root: RootOption = Path()) -> None:
    """Sign in at each of them; exit 1 where one does not answer."""
    from flows.services.setup import load, services_home

    setup = load(services_home(root))
    if setup is None:
        raise VDMiniError("no services were set up here", fix="make services, or vdmini services start")
    rows = service_findings(root)
    print_json(rows) if as_json else print_rows(rows)
    if any(row["state"] != "ok" for row in rows):
        raise typer.Exit(1)


def service_findings(root: Path) -> list[dict[str, Any]]:
    """A row per service that was set up here: what, state, detail, to do; none where none were."""
    from flows.services.control import states
    from flows.services.programs import PROGRAMS
    from flows.services.setup import load, services_home

    try:
        setup = load(services_home(root))
        known = {} if setup is None else states(setup)
    except VDMiniError as error:
        return [{"what": "services", "state": "broken", "detail": error.problem, "to do": error.fix}]
    rows = []
    for program in PROGRAMS if setup is not None else ():
        assert setup is not None
        row = {"what": f"service {program.says}", "state": "ok", "detail": "", "to do": ""}
        if set(known.values()) == {"STOPPED"}:
            row |= {"state": "absent", "detail": "stopped", "to do": "make services"}
        else:
            try:
                row["detail"] = program.check(setup)
            except VDMiniError as error:
                detail = f"{error.problem} ({known[program.name]})" + (
                    f": {error.found}" if error.found else ""
                )
                row |= {"state": "broken", "detail": detail, "to do": error.fix}
        rows.append(row)
    return rows
